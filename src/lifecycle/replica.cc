#include "lifecycle/replica.h"

#include <poll.h>
#include <signal.h>

#include <cerrno>

#include "lifecycle/condition.h"
#include "lifecycle/restore.h"
#include "lifecycle/slot_target.h"
#include "store/tree.h"
#include "util/error.h"
#include "util/fault.h"
#include "util/file.h"
#include "util/log.h"

namespace thaw::lifecycle {
namespace {

// Of a dump that failed: a host that had no room or time, or a user who is at work in it, says
// nothing about the program.
bool counts(Code code) {
  return code != Code::kExhausted && code != Code::kUnavailable && code != Code::kConflict;
}

constexpr std::int64_t kDumpBaseUs = 60'000'000;
// A start that still faulted this often adds to the record of its checkpoint.
constexpr std::size_t kWorthLearning = 8;
// The first moments of service, which the record is about.
constexpr std::int64_t kServingUs = 1'000'000;
// A restored program that dies this soon after it was ready died of the restore.
constexpr std::int64_t kSettledUs = 10'000'000;
// Between two tries to write down an end, or to do what there was no room for.
constexpr std::int64_t kRewriteUs = 1'000'000, kRoomUs = 500'000;
// What started.json in the container says of a start in which nobody tried to make a checkpoint.
constexpr const char* kUncheckpointed = "uncheckpointed";

// 20 MB/s is slower than any disk that checkpoints should lie on.
std::int64_t dump_timeout_us(std::uint64_t memory_bytes) {
  return kDumpBaseUs + static_cast<std::int64_t>(memory_bytes / 20);
}
// For the shim's answer when the time is up.
constexpr std::int64_t kAnswerUs = 10'000'000;

bool readable(int fd) { return wait_readable(fd, Deadline::after_us(0)); }

std::string hostname_of(const std::string& pod, const std::string& replica) {
  return pod.substr(0, 50) + "-" + replica.substr(0, 6);
}

}  // namespace

Replica::Replica(Services services, PodPlan plan, std::string id, std::int64_t requested_us,
                 std::function<void()> changed, bool standby)
    : services_(services),
      plan_(std::move(plan)),
      changed_(std::move(changed)),
      wake_(Fd::event()),
      cancel_(Fd::event()),
      standby_(standby) {
  row_.id = std::move(id);
  row_.pod = plan_.spec.name;
  row_.version = plan_.version;
  row_.state = name(State::kPreparing);
  row_.hostname = hostname_of(row_.pod, row_.id);
  row_.created_us = wall_us();
  row_.requested_mono_us = requested_us;
  row_.phases.push_back({"preparing", 0, 0});
  save();
  try {
    thread_ = std::thread([this] { live(); });
  } catch (const std::system_error&) {
    // The host has no more threads: then there never was such a replica.
    services_.database.remove_replica(row_.id);
    throw;
  }
}

Replica::Replica(Services services, PodPlan plan, state::ReplicaRow row, std::unique_ptr<Slot> slot,
                 std::function<void()> changed)
    : services_(services),
      plan_(std::move(plan)),
      changed_(std::move(changed)),
      wake_(Fd::event()),
      cancel_(Fd::event()),
      row_(std::move(row)),
      state_(parse_state(row_.state).value_or(State::kFailed)),
      slot_(std::move(slot)),
      adopted_(true) {
  standby_ = state_ == State::kStandby;
  paused_ = state_ == State::kPaused || !slot_;
  stop_ = row_.intent == "stop";
  if (stop_) {
    // What it has to finish goes through an earlier daemon's process.
    drain_until_us_ = monotonic_us() + plan_.spec.drain_us;
    signal_event(wake_);
    signal_event(cancel_);
  }
  thread_ = std::thread([this] { live(); });
}

Replica::~Replica() {
  {
    std::scoped_lock lock(mutex_);
    if (!ended(state_) && !detach_) stop_ = true;
    given_up_ = true;
    signal_event(wake_);
    signal_event(cancel_);
  }
  thread_.join();
}

state::ReplicaRow Replica::row() const {
  std::scoped_lock lock(mutex_);
  return row_;
}

State Replica::state() const {
  std::scoped_lock lock(mutex_);
  return state_;
}

bool Replica::stop_asked() const {
  std::scoped_lock lock(mutex_);
  return stop_;
}

// A step that knows its shim and its container.
void Replica::fault(FaultName name) const {
  int shim, container;
  {
    std::scoped_lock lock(mutex_);
    shim = slot_ ? slot_->shim_pid : 0;
    container = static_cast<int>(row_.pid);
  }
  fault_point(name, {{"shim", shim}, {"container", container}});
}

// What a dump would write, about: memory, and what it wrote to its filesystem.
std::uint64_t Replica::dump_bytes() const {
  std::string upper;
  {
    std::scoped_lock lock(mutex_);
    if (slot_) upper = slot_->paths.upper();
  }
  return memory_bytes() + (upper.empty() ? 0 : store::tree_bytes(upper));
}

std::uint64_t Replica::charged_bytes() const {
  std::scoped_lock lock(mutex_);
  if (!slot_) return 0;
  return runtime::Cgroup(runtime::CgroupLayout::detect(), slot_->cgroup).memory_bytes();
}

// What a dump takes: also what was never read since a restore, which is read then.
std::uint64_t Replica::memory_bytes() const {
  std::shared_ptr<ShimClient> shim;
  {
    std::scoped_lock lock(mutex_);
    if (!slot_) return 0;
    shim = slot_->shim;
  }
  nlohmann::json status = shim->call({{"op", "status"}}, Deadline::after_ms(5000));
  return charged_bytes() +
         (status.contains("memory") ? status["memory"].at("unread_bytes").get<std::uint64_t>() : 0);
}

std::string Replica::stop_reason() const {
  std::scoped_lock lock(mutex_);
  return stop_reason_.empty() ? "stopping" : stop_reason_;
}

std::string Replica::log_dir() const { return services_.settings.log_dir(row_.id); }

void Replica::stop(const std::string& why, std::optional<std::int64_t> drain_us,
                   std::optional<std::int64_t> quiet_us) {
  {
    std::scoped_lock lock(mutex_);
    if (ended(state_)) return;
    std::int64_t until = monotonic_us() + drain_us.value_or(plan_.spec.stop_grace_us);
    if (stop_) {
      if (until < drain_until_us_) {
        drain_until_us_ = until;
        signal_event(wake_);
      }
      return;
    }
    // The intent is written before anything happens: whatever is seen afterwards is read in its
    // light.
    services_.database.set_intent(row_.id, "stop");
    row_.intent = "stop";
    stop_ = true;
    stop_reason_ = why;
    drain_until_us_ = until;
    quiet_us_ = quiet_us;
  }
  fault_point("stop.intended");
  signal_event(cancel_);
  signal_event(wake_);
}

void Replica::detach() {
  bool half;
  {
    std::scoped_lock lock(mutex_);
    half = state_ == State::kPreparing || state_ == State::kStarting ||
           state_ == State::kRestoring || state_ == State::kValidating;
    // It has its own state still, and is paused again.
    half = half && going_on_ == GoingOn::kNot;
    if (!half) detach_ = true;
  }
  // The next daemon cannot go on with one that is half started: it would look like a crash.
  if (half) return stop("the daemon ends");
  signal_event(cancel_);
  signal_event(wake_);
}

bool Replica::resting() const {
  std::scoped_lock lock(mutex_);
  return standby_;
}

bool Replica::take(std::int64_t requested_us) {
  {
    std::scoped_lock lock(mutex_);
    if (!standby_ || stop_ || detach_ || ended(state_)) return false;
    standby_ = false;
    // Its phases count from the request that it is taken for.
    row_.requested_mono_us = requested_us;
    row_.phases = {{row_.state, 0, 0}};
  }
  signal_event(wake_);
  return true;
}

// kCancelled when it is to end instead.
void Replica::wait_until_taken() {
  for (;;) {
    {
      std::scoped_lock lock(mutex_);
      if (stop_ || detach_)
        throw Error(Code::kCancelled, "wait as a standby", row_.id, "it is to end");
      if (!standby_) return;
    }
    pollfd fds[2] = {{wake_.get(), POLLIN, 0}, {slot_->shim->ended_fd(), POLLIN, 0}};
    if (::poll(fds, 2, -1) < 0 && errno != EINTR) throw_errno("poll", "standby");
    if (fds[1].revents)
      throw Error(Code::kUnavailable, "wait as a standby", row_.id, "its container has ended");
    if (fds[0].revents) clear_event(wake_);
  }
}

// It learns who it is, and runs.
void Replica::wake_standby() {
  fault("standby.taken");
  std::int64_t at = monotonic_us();
  runtime::ContainerSpec container =
      container_of(plan_, row_.id, row_.hostname, row_.started_from, {});
  slot_->shim->call(
      {{"op", "take"}, {"hostname", container.hostname}, {"identity", container.identity}},
      Deadline::after_ms(10'000));
  add_phases({{{"name", "thaw"}, {"start_us", at}, {"end_us", monotonic_us()}}}, "standby");
}

std::shared_ptr<ShimClient> Replica::running_shim() const {
  std::scoped_lock lock(mutex_);
  if (!slot_ || row_.pid == 0 || standby_ || ended(state_))
    throw Error(Code::kConflict, "use replica", row_.id, "it is " + row_.state,
                "wait until it runs");
  return slot_->shim;
}

std::string Replica::checkpoint_now(Deadline deadline) {
  std::unique_lock lock(mutex_);
  if (state_ != State::kReady || command_.wanted)
    throw Error(Code::kConflict, "checkpoint replica", row_.id, "it is " + row_.state,
                "wait until it is ready");
  command_.wanted = true;
  signal_event(wake_);
  bool in_time = command_done_.wait_for(lock, std::chrono::microseconds(deadline.left_us()),
                                        [&] { return command_.finished; });
  if (!in_time) {
    command_.abandoned = true;
    throw Error(Code::kTimeout, "checkpoint replica", row_.id, "the dump goes on",
                "see `thaw checkpoint ls`");
  }
  Command result = std::exchange(command_, {});
  if (!result.failure.empty())
    throw Error(Code::kUnavailable, "checkpoint replica", row_.id, result.failure);
  return result.id;
}

void Replica::save() { services_.database.put_replica(row_); }

// What only tells does not stop a replica when it cannot be written.
void Replica::note(const std::string& type, const std::string& message, nlohmann::json data) {
  try {
    services_.database.append_event({.type = type,
                                     .pod = row_.pod,
                                     .replica = row_.id,
                                     .message = message,
                                     .data = std::move(data)});
  } catch (const Error& error) {
    log::warn("an event could not be written down",
              {{"replica", row_.id}, {"event", message}, {"error", error.what()}});
  }
}

void Replica::add_phases(const nlohmann::json& phases, const std::string& prefix) {
  std::scoped_lock lock(mutex_);
  for (const auto& phase : phases)
    row_.phases.push_back({prefix + "/" + phase.at("name").get<std::string>(),
                           phase.at("start_us").get<std::int64_t>() - row_.requested_mono_us,
                           phase.at("end_us").get<std::int64_t>() - row_.requested_mono_us});
}

void Replica::note_inflating(const UsableCheckpoint& checkpoint) {
  if (checkpoint.inflate_end_us)
    add_phases({{{"name", "inflate"},
                 {"start_us", checkpoint.inflate_begin_us},
                 {"end_us", checkpoint.inflate_end_us}}},
               "preparing");
}

// The only place where a replica's state changes. Written first: what could not be written has not
// happened. But an end happens, whatever the disk says, and is written when that is possible again.
void Replica::move(Event event, const std::string& message, nlohmann::json data, bool anyway) {
  {
    std::scoped_lock lock(mutex_);
    auto to = next(state_, event);
    if (!to)
      throw Error(Code::kInternal, "move replica", row_.id,
                  fmt::format("'{}' must not happen while {}", name(event), name(state_)));
    state::ReplicaRow row = row_;
    std::int64_t now = monotonic_us() - row.requested_mono_us;
    for (auto phase = row.phases.rbegin(); phase != row.phases.rend(); ++phase)
      if (phase->end_us == 0 && phase->name == name(state_)) {
        phase->end_us = now;
        break;
      }
    data["from"] = name(state_);
    data["to"] = name(*to);
    row.state = name(*to);
    if (ended(*to))
      row.ended_us = wall_us();
    else
      row.phases.push_back({row.state, now, 0});
    if (*to == State::kReady || ended(*to)) data["phases"] = state::to_json(row.phases);
    row.gate_open = *to == State::kReady;
    if (row.gate_open && row.ready_us == 0) row.ready_us = wall_us();
    state::EventRow told{.type = "replica." + row.state,
                         .pod = row.pod,
                         .replica = row.id,
                         .message = message,
                         .data = std::move(data)};
    try {
      services_.database.transaction([&] {
        services_.database.put_replica(row);
        for (const state::EventRow& earlier : unwritten_) services_.database.append_event(earlier);
        services_.database.append_event(told);
      });
      unwritten_.clear();
    } catch (const Error&) {
      if (!anyway) throw;
      unwritten_.push_back(std::move(told));
    }
    row_ = std::move(row);
    state_ = *to;
    log::info("replica moved",
              {{"pod", row_.pod}, {"replica", row_.id}, {"to", row_.state}, {"why", message}});
  }
  changed_();
}

// Its end, when nothing of it is left. Nobody else can write it down: tried until it works or the
// daemon ends, whose successor finds a replica without a slot.
void Replica::move_to_end(Event event, const std::string& message) {
  for (;;) {
    try {
      return move(event, message);
    } catch (const Error& error) {
      if (error.code() == Code::kInternal) throw;
      log::warn("a replica's end could not be written down; it is tried again",
                {{"replica", row_.id}, {"error", error.what()}});
    }
    clear_event(wake_);
    {
      std::scoped_lock lock(mutex_);
      if (given_up_ || detach_) return;
    }
    wait_readable(wake_.get(), Deadline::after_us(kRewriteUs));
  }
}

void Replica::live() {
  log::Context about_pod("pod", row_.pod), about("replica", row_.id);
  try {
    if (!adopted_)
      start();
    else
      note("replica.adopted", "taken back by the restarted daemon while " + row_.state);
    if (adopted_ && !slot_ && state() != State::kPaused)
      move(Event::kPause, "the daemon ended while it was " + row_.state + ", it is paused again");
    if (adopted_ && state() == State::kStandby) {
      wait_until_taken();
      wake_standby();
      if (!plan_.spec.standby_warm) {
        move(Event::kResumed, "the processes run");
        RestoreAttempt attempt;
        attempt.pid = static_cast<int>(row_.pid);
        attempt.end.phase = RestorePhase::kResumed;
        Fd cancel = any_of({cancel_.get(), slot_->shim->ended_fd()});
        validate(attempt, *slot_, plan_, log_dir(), cancel.get());
        if (attempt.end.phase != RestorePhase::kValidated)
          throw Error(Code::kUnavailable, "validate replica", row_.id, attempt.end.reason);
      }
      open_gate("restored", "taken from the standbys");
    } else if (adopted_ && (state() == State::kWarming || state() == State::kCheckpointing)) {
      // What the old daemon waited for is waited for again; a dump it began is void, but the gate
      // stays closed until it is over.
      slot_->shim->call({{"op", "settle"}},
                        Deadline::after_us(dump_timeout_us(charged_bytes()) + kAnswerUs));
      wake_processes();
      when_there_is_room("wait for its condition", [this] { warm_up(); });
    } else if (adopted_ && state() == State::kPausing) {
      wake_processes();
      open_gate_again("its pause was cut short by the daemon's end");
    } else if (adopted_ && state() == State::kPaused) {
      wait_until_needed();
    } else if (adopted_ && state() == State::kReady && !stop_asked() &&
               !readable(slot_->shim->ended_fd())) {
      reach();
    }
    while (state() == State::kReady) {
      when_there_is_room("watch it", [this] { serve(); });
      if (!paused()) break;
      rest_and_go_on();
    }
  } catch (const Error& error) {
    if (error.code() != Code::kCancelled) {
      std::scoped_lock lock(mutex_);
      row_.reason = error.what();
      if (error.code() == Code::kInternal)
        log::error("a replica's life went wrong", {{"replica", row_.id}, {"error", error.what()}});
    }
  } catch (const std::exception& error) {
    std::scoped_lock lock(mutex_);
    row_.reason = error.what();
  }
  try {
    finish();
  } catch (const std::exception& error) {
    log::error("a replica could not be ended cleanly",
               {{"replica", row_.id}, {"error", error.what()}});
  }
}

void Replica::start() {
  fault_point("replica.asked");
  std::optional<UsableCheckpoint> checkpoint;
  if (plan_.checkpoint.enabled)
    checkpoint = services_.checkpoints.find(
        plan_.fingerprint,
        [&](const std::string& why, std::optional<Outcome> outcome) { pass_over(why, outcome); });
  if (checkpoint) note_inflating(*checkpoint);
  if (checkpoint) fault_point("restore.found");
  if (plan_.checkpoint.enabled && !checkpoint &&
      !services_.checkpoints.exists_for(plan_.fingerprint))
    if (auto why = services_.checkpoints.of_another_host(plan_))
      pass_over(*why, Outcome::kHostIncompatible);
  if (checkpoint && try_restore(*checkpoint)) return;
  checkpoint.reset();  // its files may go
  if (stop_asked()) return;
  {
    std::scoped_lock lock(mutex_);
    if (standby_)
      throw Error(Code::kUnavailable, "restore a standby", row_.id,
                  row_.reason.empty() ? "there is no checkpoint to restore it from" : row_.reason);
  }
  start_cold();
  warm_up();
}

// A checkpoint that would do for this pod is not used.
void Replica::pass_over(const std::string& why, std::optional<Outcome> outcome) {
  note("replica.fallback", "a checkpoint is not used: " + why,
       outcome ? nlohmann::json{{"outcome", name(*outcome)}} : nlohmann::json::object());
  std::scoped_lock lock(mutex_);
  row_.reason = "started cold: a checkpoint is not used: " + why;
  if (outcome) row_.outcome = name(*outcome);
}

void Replica::take_slot() {
  std::unique_ptr<Slot> slot = services_.slots.take();
  std::scoped_lock lock(mutex_);
  slot_ = std::move(slot);
  row_.slot = slot_->name;
  row_.address = slot_->endpoint.address;
  row_.address6 = slot_->endpoint.address6;
}

bool Replica::try_restore(const UsableCheckpoint& checkpoint, bool own) {
  {
    std::scoped_lock lock(mutex_);
    row_.started_from = checkpoint.row.id;
    if (!own) row_.reason.clear();  // of another checkpoint, passed over
  }
  RestoreAttempt attempt;
  bool ahead = resting(), warm = plan_.spec.standby_warm;
  try {
    {
      Turns::Turn turn = services_.turns.wait(!ahead);
      if (stop_asked()) return false;
      take_slot();
      fault("restore.slot");
      move(Event::kRestore, "restoring from checkpoint " + checkpoint.row.id);
      fault("restore.asked");
      attempt = attempt_restore(*slot_, plan_, checkpoint, row_.id,
                                ahead ? row_.pod + "-standby" : row_.hostname, log_dir(),
                                own      ? Purpose::kOwn
                                : !ahead ? Purpose::kServe
                                : warm   ? Purpose::kStandby
                                         : Purpose::kStopped,
                                checkpoint.row.failures_in_a_row > 0);
    }
    add_phases(attempt.phases, "restoring");
    if (attempt.end.phase == RestorePhase::kResumed) {
      {
        std::scoped_lock lock(mutex_);
        row_.pid = attempt.pid;
      }
      if (ahead && !warm) {
        move(Event::kRest, "waits as a standby, stopped before its first instruction");
        fault("standby.rested");
        wait_until_taken();
        wake_standby();
      }
      move(Event::kResumed, "the processes run again");
      fault("restore.resumed");
      Fd cancel = any_of({cancel_.get(), slot_->shim->ended_fd()});
      validate(attempt, *slot_, plan_, log_dir(), cancel.get());
      fault("restore.validated");
    }
  } catch (const Error& error) {
    attempt.end.error = error.code();
    attempt.end.reason = error.what();
  }
  had_no_room_ = attempt.end.error == Code::kExhausted;
  attempt.end.stop_intended = stop_asked();
  Outcome outcome = classify(attempt.end);
  {
    std::scoped_lock lock(mutex_);
    if (detach_) throw Error(Code::kCancelled, "restore", row_.id, "the daemon ends");
    row_.outcome = name(outcome);
  }
  services_.checkpoints.restore_ended(checkpoint.row.id, outcome, attempt.end.reason);
  if (outcome == Outcome::kRestored) {
    std::string how = fmt::format("restored from checkpoint {}", checkpoint.row.id);
    if (ahead && warm) {
      // Frozen only when nobody has taken it meanwhile.
      if (resting()) {
        slot_->shim->call({{"op", "rest"}}, Deadline::after_ms(10'000));
        move(Event::kRest, "waits as a standby, frozen");
        fault("standby.rested");
        wait_until_taken();
      }
      wake_standby();
      how = fmt::format("taken from the standbys of checkpoint {}", checkpoint.row.id);
    }
    if (own) how = fmt::format("goes on from its own checkpoint {}", checkpoint.row.id);
    open_gate("restored", how);
    if (own) return true;
    learn_until_us_ = monotonic_us() + kServingUs;
    learn_anything_ = !checkpoint.served;
    return true;
  }
  if (outcome == Outcome::kStoppedByUser) return false;
  note_criu_log(services_.database,
                {.pod = row_.pod, .replica = row_.id, .checkpoint = checkpoint.row.id}, "restore",
                attempt.log_tail);
  if (outcome == Outcome::kOutOfMemory)
    throw Error(Code::kExhausted, "restore replica", row_.id,
                "it ran out of memory (" + attempt.end.reason + ")", "raise resources.memory");
  if (resting())
    throw Error(Code::kUnavailable, "restore a standby", row_.id,
                fmt::format("it ended as {}: {}", name(outcome), attempt.end.reason));
  fall_back(attempt.end, outcome, checkpoint);
  return false;
}

// The one place where a restore becomes a cold start.
void Replica::fall_back(const RestoreEnd& end, Outcome outcome,
                        const UsableCheckpoint& checkpoint) {
  fault_point("fallback.begun");
  std::unique_ptr<Slot> slot;
  {
    std::scoped_lock lock(mutex_);
    slot = std::move(slot_);
    row_.slot.clear();
    row_.pid = 0;
    const char* then = going_on_ == GoingOn::kTwice ? "restored once more"
                       : going_on_ == GoingOn::kOnce
                           ? "started cold: the state that it was paused with is lost"
                           : "started cold";
    if (going_on_ != GoingOn::kTwice) row_.started_from.clear();
    row_.reason = fmt::format("{}: the restore ended as {}: {}", then, name(outcome), end.reason);
  }
  // Nothing of the attempt may be left for the cold start to find.
  services_.slots.destroy(std::move(slot));
  fault_point("fallback.cleaned");
  if (state() == State::kPreparing)
    note("replica.fallback", row_.reason);
  else
    move(Event::kFallBack, row_.reason,
         {{"outcome", name(outcome)}, {"checkpoint", checkpoint.row.id}});
}

void Replica::start_cold() {
  take_slot();
  fault("cold.slot");
  {
    std::scoped_lock lock(mutex_);
    row_.started_from = "cold";
  }
  move(Event::kStartCold, "starting cold");
  fault("cold.asked");
  nlohmann::json result = slot_->shim->call(
      {{"op", "start-cold"},
       {"spec", runtime::to_json(container_of(plan_, row_.id, row_.hostname, "cold", {}))},
       {"log_dir", log_dir()}},
      Deadline::after_ms(130'000));
  add_phases(result.at("phases"), "starting");
  {
    std::scoped_lock lock(mutex_);
    row_.pid = result.at("pid");
  }
  move(Event::kStarted, fmt::format("the container runs as process {}", row_.pid));
  fault("cold.runs");
}

void Replica::warm_up() {
  const auto& wish = plan_.spec.checkpoint;
  if (!wish.when) {
    wait_ready();
    return open_gate(kUncheckpointed, "started");
  }
  SlotTarget target(*slot_, static_cast<int>(row_.pid), log_dir(), command_of(plan_));
  Fd cancel = any_of({cancel_.get(), slot_->shim->ended_fd()});
  bool dump_follows = state() == State::kWarming;
  WaitOutcome outcome =
      wait_condition(*wish.when, target, Deadline::after_us(wish.timeout_us), cancel.get(),
                     [this](const std::string& text) { note("replica.condition", text); });
  if (outcome.result == WaitResult::kTimedOut) {
    if (wish.on_timeout == state::CheckpointSpec::OnTimeout::kFail)
      throw Error(Code::kTimeout, "warm up replica", row_.id,
                  "its condition did not hold in time: " + outcome.last,
                  "look at `thaw logs`, or raise checkpoint.timeout");
    wait_ready();
    return open_gate(
        "timed-out",
        "its condition did not hold in time, it serves without a checkpoint: " + outcome.last);
  }
  fault("warm.holds");
  std::string id, failure;
  if (plan_.checkpoint.enabled && dump_follows) dump(plan_, false, &id, &failure);
  wait_ready();
  if (!plan_.checkpoint.enabled || !dump_follows)
    return open_gate(kUncheckpointed, "its condition holds");
  open_gate_after_dump(id, failure);
}

void Replica::wait_ready() {
  auto condition = ready_condition(plan_.spec);
  if (!condition) return;
  SlotTarget target(*slot_, static_cast<int>(row_.pid), log_dir(), command_of(plan_));
  Fd cancel = any_of({cancel_.get(), slot_->shim->ended_fd()});
  WaitOutcome outcome = wait_condition(
      *condition, target, Deadline::after_us(plan_.spec.checkpoint.timeout_us), cancel.get(),
      [this](const std::string& text) { note("replica.condition", text); });
  if (outcome.result == WaitResult::kHolds) return;
  if (plan_.spec.ready)
    throw Error(Code::kTimeout, "start replica", row_.id,
                "it did not become ready in time: " + outcome.last,
                "look at `thaw logs`, or raise checkpoint.timeout");
  // Nobody has promised that its ports listen.
  note("replica.condition", "no port of it listens, its gate opens all the same");
}

// By its own plan, or into a state of its own, after which its processes do not run on. Leaves the
// replica in `checkpointing` (or as it was when there is nothing to do); the caller
// opens the gate.
void Replica::dump(const PodPlan& plan, bool forced, std::string* checkpoint_id,
                   std::string* failure) {
  std::optional<DumpTicket> ticket;
  bool count = true;
  try {
    ticket = services_.checkpoints.begin(plan, row_.id, forced, failure,
                                         [this] { return dump_bytes(); });
    if (!ticket) return;
    *checkpoint_id = ticket->id;
    move(Event::kDump, "dumping into checkpoint " + ticket->id);
    fault("dump.asked");
    Fd cancel = any_of({cancel_.get(), slot_->shim->ended_fd()});
    if (auto why = run_hook(*slot_, "before_checkpoint", plan_.spec.checkpoint.before_checkpoint,
                            cancel.get()))
      throw Error(Code::kInvalid, "checkpoint replica", row_.id, *why,
                  "look at what the program says, or leave it out");
    std::int64_t timeout_us = dump_timeout_us(memory_bytes());
    nlohmann::json result =
        slot_->shim->call({{"op", "dump"},
                           {"directory", ticket->directory},
                           {"timeout_us", timeout_us},
                           {"spare", ticket->others},
                           {"leave_stopped", plan.fingerprint != plan_.fingerprint},
                           {"log_level", criu_log_level(2)}},
                          Deadline::after_us(timeout_us + kAnswerUs));
    fault("dump.answered");
    if (result.value("success", false)) {
      collecting_ = ticket->id;
      services_.checkpoints.dumped(std::move(*ticket), result, slot_->shim);
      return;
    }
    *failure = "it could not be checkpointed: " + result.at("reason").get<std::string>();
    if (result.contains("beside")) count = counts(result["beside"].get<Code>());
    note_criu_log(services_.database,
                  {.pod = row_.pod, .replica = row_.id, .checkpoint = ticket->id}, "dump",
                  result.value("log_tail", ""));
  } catch (const std::exception& error) {
    *failure = std::string("it could not be checkpointed: ") + error.what();
    auto ours = dynamic_cast<const Error*>(&error);
    count = ours ? counts(ours->code()) : !no_room(error);
  }
  if (!ticket) return;
  services_.checkpoints.dump_failed(*ticket, *failure, count && !stop_asked());
  if (readable(slot_->shim->ended_fd()))
    throw Error(Code::kUnavailable, "serve replica", row_.id,
                "it did not survive the dump: " + *failure);
}

void Replica::open_gate_after_dump(const std::string& checkpoint_id, const std::string& failure) {
  if (failure.empty())
    open_gate("checkpointed", "checkpointed as " + checkpoint_id);
  else
    open_gate(checkpoint_id.empty() ? kUncheckpointed : "failed", failure);
}

void Replica::open_gate(const char* outcome, const std::string& message) {
  if (readable(slot_->shim->ended_fd()))
    throw Error(Code::kUnavailable, "serve replica", row_.id, "its container has ended");
  if (readable(cancel_.get()))
    throw Error(Code::kCancelled, "serve replica", row_.id, "it is to stop");
  try {
    slot_->shim->call({{"op", "announce"}, {"outcome", outcome}, {"reason", message}},
                      Deadline::after_ms(5000));
  } catch (const Error& error) {
    log::warn("the container was not told that its start is over",
              {{"replica", row_.id}, {"error", error.what()}});
  }
  open_gate_again(message);
}

void Replica::open_gate_again(const std::string& message) {
  when_there_is_room("write down that it is ready", [&] { move(Event::kOpen, message); });
  fault("gate.ready");
  reach();
}

void Replica::reach() {
  // What was paused is no cold start, whatever it was before.
  bool restored = false;
  {
    std::scoped_lock lock(mutex_);
    restored = row_.started_from != "cold" ||
               (!row_.phases.empty() && row_.phases.front().name == name(State::kPaused));
  }
  when_there_is_room("let clients in", [&] {
    services_.gate.open(plan_.spec, row_.id, slot_->endpoint.netns, restored);
  });
}

// A host without room ends nothing that runs: `work` is tried until it is done. kCancelled when it
// is to end meanwhile.
void Replica::when_there_is_room(const char* what, const std::function<void()>& work) {
  for (std::string told;;) {
    try {
      work();
      // What came meanwhile is still to be done.
      if (!told.empty()) signal_event(wake_);
      return;
    } catch (const std::exception& error) {
      if (!no_room(error)) throw;
      if (std::exchange(told, error.what()).empty())
        note("replica.delayed", fmt::format("it runs on, but the daemon cannot {} yet: {}; it goes "
                                            "on trying: {}, or make room on its disk",
                                            what, error.what(), kMoreRoom));
    }
    wait_for(-1, Deadline::after_us(kRoomUs));
  }
}

// Whether it hangs, when it is time to ask.
void Replica::probe_alive() {
  if (!plan_.spec.alive) return;
  const state::Alive& wish = *plan_.spec.alive;
  if (!probe_at_us_) probe_at_us_ = monotonic_us() + wish.every_us;
  if (monotonic_us() < probe_at_us_) return;
  WaitOutcome outcome;
  try {
    SlotTarget target(*slot_, static_cast<int>(row_.pid), log_dir(), command_of(plan_));
    Fd cancel = any_of({wake_.get(), slot_->shim->ended_fd()});
    outcome = wait_condition(wish.probe, target, Deadline::after_us(wish.timeout_us), cancel.get());
  } catch (const std::exception& error) {
    auto ours = dynamic_cast<const Error*>(&error);
    if (ours && ours->code() == Code::kCancelled) return;  // something else is to be done first
    if (no_room(error)) throw;
    outcome.last = error.what();
  }
  probe_at_us_ = monotonic_us() + wish.every_us;
  if (outcome.result == WaitResult::kHolds) {
    probes_failed_ = 0;
    return;
  }
  note("replica.probe", fmt::format("it does not answer ({} of {}): {}", ++probes_failed_,
                                    wish.failures, outcome.last));
  if (probes_failed_ >= wish.failures)
    throw Error(
        Code::kUnavailable, "serve replica", row_.id,
        fmt::format("it hangs: {} probes in a row failed: {}", probes_failed_, outcome.last),
        "it was killed, and another takes its place");
}

void Replica::serve() {
  // Of a restored one it is to be seen whether it lives on.
  bool on_trial = !adopted_ && row_.started_from != "cold";
  // One that is taken over is not recorded any more.
  if (adopted_ && row_.started_from != "cold") touched_memory(*slot_, true);
  Deadline trial = on_trial ? Deadline::after_us(kSettledUs) : Deadline::never();
  for (;;) {
    pollfd fds[2] = {{wake_.get(), POLLIN, 0}, {slot_->shim->ended_fd(), POLLIN, 0}};
    probe_alive();
    Deadline deadline = trial;
    for (std::int64_t at : {learn_until_us_, probe_at_us_})
      if (at) deadline = Deadline::after_us(std::min(at - monotonic_us(), deadline.left_us()));
    int count = ::poll(fds, 2, deadline.poll_ms());
    if (count < 0 && errno != EINTR) throw_errno("poll", "replica");
    if (on_trial && trial.passed()) {
      services_.checkpoints.lived(row_.started_from);
      on_trial = false;
      trial = Deadline::never();
    }
    if (fds[1].revents) return;
    // Also of one that is stopped before that: a pod of short-lived replicas learns, too.
    if (learn_until_us_ && (monotonic_us() >= learn_until_us_ || stop_asked())) {
      learn_until_us_ = 0;
      auto touched = touched_memory(*slot_, true);
      if (touched && (learn_anything_ || touched->size() > kWorthLearning))
        services_.checkpoints.learn(row_.started_from, *touched, true);
    }
    if (!fds[0].revents) continue;
    clear_event(wake_);
    bool wanted;
    {
      std::scoped_lock lock(mutex_);
      if (stop_ || detach_) return;
      wanted = command_.wanted && !command_.finished;
      if (paused_ && !wanted) return;
    }
    if (!wanted) continue;
    Command result;
    result.wanted = result.finished = true;
    // New connections wait at the gateway, those in flight finish: none is open at the dump.
    services_.gate.close(row_.pod, row_.id);
    fault("create.closed");
    try {
      Fd drained = services_.gate.drained(row_.id);
      if (wait_readable(drained.get(), Deadline::after_us(10'000'000)))
        dump(plan_, true, &result.id, &result.failure);
      else
        result.failure = "connections to it did not end within 10 s";
    } catch (const std::exception& error) {
      result.failure = error.what();
    }
    bool alive = !readable(slot_->shim->ended_fd());
    probe_at_us_ = 0;
    if (alive && state() == State::kCheckpointing)
      open_gate_after_dump(result.id, result.failure);
    else if (alive)
      reach();
    std::scoped_lock lock(mutex_);
    // Nobody fetches the answer when its caller has given up.
    command_ = command_.abandoned ? Command{} : result;
    command_done_.notify_all();
    if (paused_) return;
  }
}

// From any state to the end.
void Replica::finish() {
  if (let_go()) return;
  State at = state();
  if (ended(at)) return;
  bool by_wish = stop_asked();
  try {
    if (!end_container(at, by_wish) && let_go()) return;
  } catch (const std::exception& error) {
    // The slot's destruction kills what is left.
    log::error("a container could not be ended in order",
               {{"replica", row_.id}, {"error", error.what()}});
  }
  fault("stop.ended");
  std::string died_of = read_end(at, by_wish);
  std::unique_ptr<Slot> slot;
  {
    std::scoped_lock lock(mutex_);
    slot = std::move(slot_);
    row_.slot.clear();
    row_.pid = 0;
    if (command_.wanted) {
      command_.finished = true;
      command_.failure = "the replica has ended";
      command_done_.notify_all();
    }
  }
  if (!died_of.empty())
    services_.checkpoints.restore_ended(died_of, Outcome::kAppFailed, row_.reason);
  services_.gate.drop(row_.id);
  // Its shim may hold a dump in memory that is being written.
  if (!collecting_.empty())
    services_.checkpoints.wait_collected(collecting_, Deadline::after_ms(10 * 60'000));
  services_.slots.destroy(std::move(slot));
  fault_point("stop.removed");
  if (plan_.spec.idle == state::PodSpec::Idle::kCheckpoint)
    services_.checkpoints.forget_replica(row_.id);
  move_to_end(by_wish ? Event::kEnded : Event::kDied, row_.reason.empty() ? "ended" : row_.reason);
  services_.checkpoints.replica_ended();
}

// The daemon ends: the replica runs on, and its slot is let go of without ending it. One that has
// none, or is half started, is the next daemon's to clean up.
bool Replica::let_go() {
  std::scoped_lock lock(mutex_);
  if (!detach_) return false;
  slot_.reset();
  if (command_.wanted) command_.finished = true;
  command_done_.notify_all();
  return true;
}

// Empty when there is no room for it.
Fd Replica::drained_or_none() {
  try {
    return services_.gate.drained(row_.id);
  } catch (const std::exception& error) {
    if (!no_room(error)) throw;
    return Fd();
  }
}

// Until the connections have ended, or the container, or it is time. False when the daemon ends.
bool Replica::wait_drained() {
  Fd drained;
  for (;;) {
    if (!drained) drained = drained_or_none();
    std::int64_t left_us;
    {
      std::scoped_lock lock(mutex_);
      if (detach_) return false;
      left_us = drain_until_us_ - monotonic_us();
    }
    pollfd fds[3] = {
        {drained.get(), POLLIN, 0}, {slot_->shim->ended_fd(), POLLIN, 0}, {wake_.get(), POLLIN, 0}};
    left_us = std::max<std::int64_t>(left_us, 0);
    std::int64_t wait_us = std::min(left_us, end_quiet());
    if (!drained) wait_us = std::min(wait_us, kRoomUs);
    if (::poll(fds, 3, Deadline::after_us(wait_us).poll_ms()) < 0 && errno != EINTR)
      throw_errno("poll", "replica");
    if (fds[0].revents || fds[1].revents || left_us <= 0) return true;
    if (fds[2].revents) clear_event(wake_);
  }
}

// Drain, SIGTERM, SIGKILL. False when the daemon ends first.
bool Replica::end_container(State at, bool by_wish) {
  bool alive = slot_ && !readable(slot_->shim->ended_fd());
  services_.gate.close(row_.pod, row_.id);
  std::int64_t grace = plan_.spec.stop_grace_us;
  std::string why = stop_reason();
  if (by_wish && alive &&
      (at == State::kReady || at == State::kPausing || at == State::kDraining)) {
    if (at != State::kDraining) move(Event::kDrain, why + ": connections finish first", {}, true);
    fault("stop.draining");
    if (!wait_drained()) return false;
  }
  if (by_wish && state() != State::kStopping) move(Event::kStop, why, {}, true);
  if (by_wish) fault("stop.stopping");
  if (!alive || !row_.pid) return true;
  // One that served is told that it ends, also when it rests.
  if (at == State::kPausing || at == State::kPaused || at == State::kCheckpointing)
    wake_processes();
  // A standby is frozen: it has nothing to finish, and could not hear it.
  if (at != State::kStandby)
    slot_->shim->call({{"op", "signal"}, {"signal", SIGTERM}}, Deadline::after_ms(5000));
  fault("stop.signalled");
  if (!by_wish || at == State::kStandby ||
      !wait_readable(slot_->shim->ended_fd(), Deadline::after_us(grace)))
    slot_->shim->call({{"op", "signal"}, {"signal", SIGKILL}}, Deadline::after_ms(5000));
  wait_readable(slot_->shim->ended_fd(), Deadline::after_ms(5000));
  return true;
}

// Writes into the row how it ended. The checkpoint to blame for it, or "".
std::string Replica::read_end(State at, bool by_wish) {
  std::int64_t oom_kills = 0;
  std::string memory_failure, died_of, why = stop_reason();
  if (slot_) {
    try {
      nlohmann::json status = slot_->shim->call({{"op", "status"}}, Deadline::after_ms(2000));
      oom_kills = status.value("oom_kills", std::int64_t{0});
      if (status.contains("memory")) memory_failure = status["memory"].value("failure", "");
    } catch (const std::exception&) {
      // Unknown, then.
    }
  }
  std::scoped_lock lock(mutex_);
  std::optional<ExitStatus> exit;
  if (slot_) {
    exit = slot_->shim->exit_status();
    if (exit) {
      row_.exit_code = exit->shell_code();
      if (!by_wish && row_.reason.empty())
        row_.reason = "the container ended by itself: " + exit->text();
    } else if (!by_wish && slot_->shim->lost()) {
      row_.reason = "its shim ended, so it was killed";
    }
    if (!by_wish && !memory_failure.empty())
      row_.reason = "its memory could not be read any more, so it was killed: " + memory_failure;
    if (!by_wish && oom_kills > 0)
      row_.reason = "it ran out of memory and was killed; raise resources.memory";
  }
  if (by_wish) row_.reason = why;
  if (by_wish || at != State::kReady || row_.started_from == "cold") return died_of;
  if (oom_kills > 0) row_.outcome = name(Outcome::kOutOfMemory);
  // The phases' clock, which nobody sets.
  auto ready = std::find_if(row_.phases.begin(), row_.phases.end(),
                            [](const auto& phase) { return phase.name == name(State::kReady); });
  std::int64_t lived = ready == row_.phases.end()
                           ? kSettledUs
                           : monotonic_us() - row_.requested_mono_us - ready->start_us;
  if (exit && !killed_from_outside(*exit) && oom_kills == 0 && lived < kSettledUs) {
    died_of = row_.started_from;
    row_.outcome = name(Outcome::kAppFailed);
    row_.reason = fmt::format("it died {} ms after it was restored: {}", lived / 1000, row_.reason);
  }
  return died_of;
}

}  // namespace thaw::lifecycle
