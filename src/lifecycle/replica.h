// One replica's life, from the request to its end, on a thread of its own. The table decides what
// may follow; this does it.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "lifecycle/checkpoints.h"
#include "lifecycle/plan.h"
#include "lifecycle/slots.h"
#include "lifecycle/table.h"
#include "lifecycle/turns.h"
#include "state/database.h"
#include "util/fault.h"

namespace thaw::lifecycle {

// The one switch that lets traffic in. Implemented over the gateway by the floor above.
class Gate {
 public:
  virtual ~Gate() = default;
  // `spec` is the replica's own, which may be another version's than its pod's; `restored`: it goes
  // on from where it, or another, was.
  virtual void open(const state::PodSpec& spec, const std::string& replica, const Fd& netns,
                    bool restored) = 0;
  virtual void close(const std::string& pod, const std::string& replica) = 0;
  virtual Fd drained(const std::string& replica) = 0;  // readable when none is in flight
  virtual void drop(const std::string& replica) = 0;
  // Ends those of its connections that are at rest: without a byte for so long, and with none asked
  // for.
  virtual void end_quiet(const std::string& replica, std::int64_t quiet_us) = 0;
};

struct Services {
  const Settings& settings;
  state::Database& database;
  Slots& slots;
  Checkpoints& checkpoints;
  Turns& turns;
  Gate& gate;
};

class Replica {
 public:
  // A new one. `requested_us` (monotonic) is when it was asked for: its phases count from there.
  // `changed` is called after every change of state, from the replica's thread, without locks held.
  // A standby is restored, never started cold, and then waits in `standby` until it is taken.
  Replica(Services services, PodPlan plan, std::string id, std::int64_t requested_us,
          std::function<void()> changed, bool standby = false);
  // One that lived under an earlier daemon, in a slot that was adopted; without one it has its
  // state in a checkpoint of its own, and waits.
  Replica(Services services, PodPlan plan, state::ReplicaRow row, std::unique_ptr<Slot> slot,
          std::function<void()> changed);
  ~Replica();  // detach()ed or ended replicas only wait for the thread; a living one is stopped
               // first
  Replica(const Replica&) = delete;
  Replica& operator=(const Replica&) = delete;

  state::ReplicaRow row() const;
  State state() const;
  const PodPlan& plan() const { return plan_; }

  // Writes the intent down, then ends it: drain, SIGTERM, SIGKILL after the grace time. Returns at
  // once. The drain takes `drain_us` at most, or the grace time; asked again, the shorter.
  // Connections that have been quiet for `quiet_us` are not waited for.
  void stop(const std::string& why, std::optional<std::int64_t> drain_us = {},
            std::optional<std::int64_t> quiet_us = {});
  // The daemon ends, the replica runs on.
  void detach();
  // A standby that nobody has taken yet.
  bool resting() const;
  // Makes a standby one that serves; `requested_us` as above. One that is still being restored goes
  // on to serve. False when it is none (any more).
  bool take(std::int64_t requested_us);
  // Of one that is ready and that nobody uses: its connections end as above, then it waits as its
  // pod's `idle` says. 0, or when it may be asked again (monotonic): it could not, just now.
  std::int64_t pause(std::optional<std::int64_t> quiet_us);
  // Asked to pause, or paused: it does not serve.
  bool paused() const;
  // It is needed again; `requested_us` as above. False when it is not paused (any more).
  bool resume(std::int64_t requested_us);
  // Dumps a ready replica; its traffic waits. The checkpoint's id, or the Error.
  std::string checkpoint_now(Deadline deadline);
  // For exec; Error kConflict when it does not run.
  std::shared_ptr<ShimClient> running_shim() const;

 private:
  void live();
  void start();
  void pass_over(const std::string& why, std::optional<Outcome> outcome);
  void take_slot();
  bool try_restore(const UsableCheckpoint& checkpoint, bool own = false);
  void note_inflating(const UsableCheckpoint& checkpoint);
  void wait_until_taken();
  void wake_standby();
  void fall_back(const RestoreEnd& end, Outcome outcome, const UsableCheckpoint& checkpoint);
  void start_cold();
  void warm_up();
  void wait_ready();
  void probe_alive();
  void dump(const PodPlan& plan, bool forced, std::string* checkpoint_id, std::string* failure);
  void open_gate(const char* outcome, const std::string& message);
  void open_gate_after_dump(const std::string& checkpoint_id, const std::string& failure);
  void open_gate_again(const std::string& message);
  void reach();
  void serve();
  void when_there_is_room(const char* what, const std::function<void()>& work);
  // replica_pause.cc
  void rest_and_go_on();
  void rest();
  void run_on(const std::string& why);
  void rest_frozen(const std::string& why);
  void put_away(const std::string& checkpoint);
  bool finish_connections();
  bool wait_for(int fd, Deadline deadline = Deadline::never());
  std::int64_t end_quiet();
  std::string dump_own(std::string* failure, std::shared_ptr<void>* pin);
  void wake_processes();
  void wait_until_needed();
  void restore_own();
  void lose_state(const RestoreEnd& end, const UsableCheckpoint& checkpoint);
  void finish();
  bool wait_drained();
  Fd drained_or_none();
  bool let_go();
  bool end_container(State at, bool by_wish);
  std::string read_end(State at, bool by_wish);
  void move(Event event, const std::string& message, nlohmann::json data = nlohmann::json::object(),
            bool anyway = false);
  void move_to_end(Event event, const std::string& message);
  void note(const std::string& type, const std::string& message,
            nlohmann::json data = nlohmann::json::object());
  void add_phases(const nlohmann::json& phases, const std::string& prefix);
  void save();
  bool stop_asked() const;
  std::string stop_reason() const;
  std::string log_dir() const;
  std::uint64_t charged_bytes() const;
  std::uint64_t memory_bytes() const;
  std::uint64_t dump_bytes() const;
  void fault(FaultName name) const;

  Services services_;
  PodPlan plan_;
  std::function<void()> changed_;
  Fd wake_;    // readable: stop, detach or a command
  Fd cancel_;  // readable: stop or detach, or the container has ended (for conditions)

  mutable std::mutex mutex_;
  std::condition_variable command_done_;
  state::ReplicaRow row_;
  State state_ = State::kPreparing;
  std::unique_ptr<Slot> slot_;
  bool stop_ = false, detach_ = false, adopted_ = false;
  bool given_up_ = false;  // its owner waits for the thread to end
  std::vector<state::EventRow> unwritten_;
  bool standby_ = false;  // not taken yet
  std::string stop_reason_;
  std::int64_t drain_until_us_ = 0;       // monotonic
  std::optional<std::int64_t> quiet_us_;  // of the connections that are not waited for
  bool paused_ = false;                   // asked to, or so; it goes on when this is taken back
  std::int64_t pause_again_us_ = 0;       // monotonic: not to be asked to before
  // Its own state is being restored, and may be tried to once more when that fails.
  enum class GoingOn { kNot, kOnce, kTwice } going_on_ = GoingOn::kNot;
  bool had_no_room_ = false;         // the last restore, for want of room. The thread's own.
  std::string reason_before_;        // it paused. The thread's own.
  std::string collecting_;           // the checkpoint that it was dumped into last
  std::int64_t learn_until_us_ = 0;  // monotonic; 0: nothing is to be learnt. The thread's own.
  bool learn_anything_ = false;
  std::int64_t probe_at_us_ = 0;  // monotonic: the next look at whether it hangs. The thread's own.
  int probes_failed_ = 0;         // in a row
  struct Command {
    bool wanted = false, finished = false, abandoned = false;
    std::string id, failure;
  } command_;
  std::thread thread_;
};

}  // namespace thaw::lifecycle
