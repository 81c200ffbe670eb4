// The checkpoints of one data directory: who may make one, when it is offered, what a restore's end
// means for it. Sealing and proving run on a thread of their own and never delay a replica.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "checkpoint/manifest.h"
#include "checkpoint/record.h"
#include "lifecycle/host.h"
#include "lifecycle/outcome.h"
#include "lifecycle/plan.h"
#include "lifecycle/slots.h"
#include "lifecycle/turns.h"
#include "state/database.h"

namespace thaw::lifecycle {

struct UsableCheckpoint {
  state::CheckpointRow row;
  checkpoint::Manifest manifest;
  std::string directory;
  std::vector<std::string> layers;  // absolute, topmost first
  bool served = false;              // its record knows the first moments of service
  std::int64_t inflate_begin_us = 0, inflate_end_us = 0;  // monotonic; 0: it was not at rest
  std::shared_ptr<void> pin;                              // its files stay as long as this lives
};

// The right to dump one fingerprint, and the place for it.
struct DumpTicket {
  std::string id, directory;
  std::int64_t token = 0;
  PodPlan plan;
  std::string replica;
  std::uint64_t others = 0;  // bytes of dumps under way, which may wait in memory
};

// Bytes of the checkpoints on disk, what they may take (0: no limit), and what their file system
// has left.
struct StoreSize {
  std::uint64_t used = 0, quota = 0, free = 0;
};

// What a paused replica is dumped into is its own: of a fingerprint that no plan has, so that it is
// offered to nobody else and stands for no version. `plan` as a dump of it has it.
PodPlan own_plan(PodPlan plan, const std::string& replica);
bool is_own(const std::string& fingerprint);

class Checkpoints {
 public:
  // `changed`: called after every change of a status, from any thread.
  Checkpoints(const Settings& settings, state::Database& database, Slots& slots, Turns& turns,
              nlohmann::json host, std::function<void()> changed);
  ~Checkpoints();
  // The job in hand is given up, the next daemon takes it up again. Before the slots are closed: a
  // proof takes one.
  void close();

  // The newest available one that fits and whose files are right. One found broken is marked and
  // the next is looked at; `note` gets the reason, and what a restore would have ended as; nullopt
  // when one is only not tried now.
  using Note = std::function<void(const std::string& why, std::optional<Outcome>)>;
  std::optional<UsableCheckpoint> find(const std::string& fingerprint, const Note& note = {});
  // Why the checkpoints that this very program has were made for another host, and what that is;
  // nullopt when there are none. Nothing of them is started.
  std::optional<std::string> of_another_host(const PodPlan& plan);
  // Available and not known to be of no use here, or on its way there.
  bool exists_for(const std::string& fingerprint);
  // The id of the one that the next start would try; "" when there is none.
  std::string offered(const std::string& fingerprint);

  // nullopt when another replica dumps, one exists, a failure backs off, or `size` bytes more do
  // not fit on the disk or into the quota even when everything unused has gone; `why` says which.
  // The size is asked for only when it matters: telling it takes time.
  std::optional<DumpTicket> begin(const PodPlan& plan, const std::string& replica, bool forced,
                                  std::string* why, const std::function<std::uint64_t()>& size);
  // The shim's answer to a good dump. Collects what the shim still holds in memory, seals, proves
  // and offers it in the background.
  void dumped(DumpTicket ticket, const nlohmann::json& result, std::shared_ptr<ShimClient> shim);
  // Its files stay as long as the result lives.
  std::shared_ptr<void> pin(const std::string& id);
  // Readable as soon as a checkpoint has left creating, sealed and verifying.
  Fd settled(const std::string& id);
  // The own state of a paused replica. Error when it is gone, broken or of another host.
  UsableCheckpoint own_state(const std::string& id);
  // Removes what a replica was paused with, but not `keep`.
  void forget_replica(const std::string& replica, const std::string& keep = "") noexcept;
  // Until the shim is no longer needed for this one. False at the deadline.
  bool wait_collected(const std::string& id, Deadline deadline);
  // `count`: it says something about the program, and the next dump waits longer. What cannot be
  // written now is written later.
  void dump_failed(const DumpTicket& ticket, const std::string& reason, bool count) noexcept;

  // What a start from it touched beyond what was known: later restores read it ahead. `serving`:
  // after it was ready. A hint, never needed.
  void learn(const std::string& id, const std::vector<checkpoint::TouchedRange>& touched,
             bool serving);

  // Neither this nor what follows throws: what cannot be written is logged, and the replica goes
  // on.
  void restore_ended(const std::string& id, Outcome outcome, const std::string& reason) noexcept;
  // A replica that was restored from it has lived on: failures before it were chance.
  void lived(const std::string& id) noexcept;
  // Of a pod that goes: within the caller's transaction. Files go with replica_ended().
  void forget_pod(const std::string& pod);
  // Never offered again; its files go when no replica uses them.
  void remove(const std::string& id);
  // Reads all of an available one, now. Error kCorrupt, kNotFound when it is broken; it is marked
  // then, and never offered again. The daemon does so by itself, too (Settings::verify_every_us).
  void verify(const std::string& id);
  // Compresses the memory of an available one that nothing uses, now. Error kConflict when it is
  // used, or needed meanwhile: all is as it was then. The daemon does so by itself, too
  // (Settings::compress_after_us); the next start from it inflates it.
  void compress(const std::string& id);
  void look(state::CheckpointRow& row);  // completes what the database does not know
  StoreSize store_size();
  void replica_ended() noexcept;  // files of deleted checkpoints may go now
  // Waits until a checkpoint has left creating, sealed and verifying. False at the deadline.
  bool wait_settled(const std::string& id, Deadline deadline);
  // Takes up what a killed daemon left: half-made ones are removed, sealed ones are proven.
  // `plan_of` finds a pod's present plan. Can be tried again when it throws.
  void recover(const std::function<std::optional<PodPlan>(const std::string& pod)>& plan_of);

 private:
  struct Job {
    DumpTicket ticket;
    nlohmann::json result = nullptr;  // null: sealed already
    std::shared_ptr<ShimClient> shim;
    std::string failure;  // what is left to do is to write this down
    bool count = false;
  };
  // Looks again and again, at the lowest priority; each look says in how many µs the next is due.
  void background_loop(std::int64_t (Checkpoints::*look)());
  // Reads those whose time has come; how long until the next one's has.
  std::int64_t scrub();
  // Compresses those not used for long enough; how long until the next one is due.
  std::int64_t rest();
  // Of a pinned one, before its files are used.
  void inflate(UsableCheckpoint& usable);
  bool used_besides(const std::string& id);  // by anybody but one who has pinned it
  void work_loop(std::deque<Job>& jobs, bool (Checkpoints::*work)(Job&));
  bool finish(Job& job);
  void fail(const DumpTicket& ticket, const std::string& reason, bool count);
  bool prove(Job& job);
  UsableCheckpoint load(const state::CheckpointRow& row);
  // What was removed stays removed, whoever works on it still.
  void set_status(const std::string& id, const std::string& status, const std::string& reason,
                  nlohmann::json data = nlohmann::json::object());
  void retire(const std::string& id, const std::string& reason, nlohmann::json data);
  void tell_settled(const std::string& id);
  void done_with(const std::string& id);  // nobody writes to its folder any more
  void discard_files(const std::string& id);
  // In the order of a lock on mutex_.
  bool not_here(const std::string& id);  // it was found not to fit this host
  std::set<std::string> used();          // by replicas, or about to be
  void back_off(const std::string& fingerprint, const std::string& reason);
  // Work that others do not wait for: an error is logged.
  void try_to(const char* what, const std::string& id, const std::function<void()>& work) noexcept;
  // Removes what was used longest ago until `bytes` more fit, and on the disk `passing` more for a
  // while. False: they do not.
  bool make_room(std::uint64_t bytes, const std::string& keep, std::string* why,
                 std::uint64_t passing = 0);
  const Settings& settings_;
  state::Database& database_;
  Slots& slots_;
  Turns& turns_;
  nlohmann::json host_;
  std::function<void()> on_change_;
  std::string key_;
  checkpoint::Verifier verifier_;
  Fd closing_event_;
  std::mutex mutex_, discard_mutex_, record_mutex_, begin_mutex_;
  // One is compressed, and one inflated at a time. rest_mutex_: plain files go; whoever has pinned
  // a checkpoint and then held it knows that those it has stay. In this order, before begin_mutex_
  // and mutex_.
  std::mutex compress_mutex_, inflate_mutex_, rest_mutex_;
  std::uint64_t rest_moves_ = 0;          // how often any files went, with rest_mutex_
  std::uint64_t inflating_ = 0;           // bytes that are on their way, with mutex_
  std::set<std::string> hardly_smaller_;  // were not worth it, with compress_mutex_
  std::condition_variable changed_;
  // Apart: what a dump left in memory is not to wait for another's proof.
  std::deque<Job> jobs_, proofs_;
  std::set<std::string>
      in_work_;  // being dumped, sealed or proven: their files are not to be touched
  std::map<std::string, std::uint64_t> reserved_;  // bytes that dumps on their way may take
  std::multiset<std::string> pinned_;              // a replica is about to start from them
  std::multimap<std::string, Fd> settlers_;        // events of who waits for one
  std::set<std::string> to_collect_;
  bool closing_ = false;
  std::thread sealer_, prover_, scrubber_, rester_;
};

}  // namespace thaw::lifecycle
