// A replica that nobody uses waits in place: frozen, or dumped into a checkpoint of its own and
// ended. It goes on where it was.
#include <poll.h>

#include <cerrno>

#include "lifecycle/replica.h"
#include "util/error.h"
#include "util/fault.h"

namespace thaw::lifecycle {
namespace {

// After a pause that did not work out, before the next is tried.
constexpr std::int64_t kPauseAgainUs = 10'000'000;
constexpr std::int64_t kNeverUs = 24 * 3'600'000'000;
constexpr std::int64_t kShimUs = 10'000'000;
// How long a state in a checkpoint waits for a host without descriptors, memory, threads or disk,
// and how often that is looked at.
constexpr std::int64_t kRoomUs = 120'000'000, kRoomAgainUs = 2'000'000;

}  // namespace

std::int64_t Replica::pause(std::optional<std::int64_t> quiet_us) {
  std::scoped_lock lock(mutex_);
  std::int64_t now = monotonic_us();
  if (pause_again_us_ > now) return pause_again_us_;
  if (state_ != State::kReady || stop_ || detach_ || paused_) return now + kPauseAgainUs;
  paused_ = true;
  quiet_us_ = quiet_us;
  drain_until_us_ = now + plan_.spec.drain_us;
  signal_event(wake_);
  return 0;
}

bool Replica::paused() const {
  std::scoped_lock lock(mutex_);
  return paused_;
}

bool Replica::resume(std::int64_t requested_us) {
  std::scoped_lock lock(mutex_);
  if (!paused_ || stop_ || detach_ || ended(state_)) return false;
  paused_ = false;
  quiet_us_.reset();
  if (state_ == State::kPaused) {
    // Its phases count from the request that it goes on for.
    row_.requested_mono_us = requested_us;
    row_.phases = {{row_.state, 0, 0}};
  }
  signal_event(wake_);
  return true;
}

// From ready to ready, or kCancelled.
void Replica::rest_and_go_on() {
  learn_until_us_ = probe_at_us_ = 0;
  probes_failed_ = 0;
  {
    std::scoped_lock lock(mutex_);
    reason_before_ = row_.reason;
  }
  rest();
  if (state() == State::kPaused) wait_until_needed();
}

void Replica::rest() {
  try {
    move(Event::kPause, "nobody uses it: connections finish first");
  } catch (const Error& error) {
    return run_on(error.what());
  }
  fault("pause.begun");
  services_.gate.close(row_.pod, row_.id);
  std::string failure;
  bool finished = false;
  when_there_is_room("pause it", [&] { finished = finish_connections(); });
  if (!finished) return open_gate_again("it is needed again");
  if (plan_.spec.idle == state::PodSpec::Idle::kCheckpoint) {
    std::shared_ptr<void> pin;
    std::string checkpoint;
    try {
      checkpoint = dump_own(&failure, &pin);
    } catch (const std::exception& error) {
      if (!no_room(error)) throw;
      failure = error.what();
    }
    if (!checkpoint.empty()) return put_away(checkpoint);
    if (failure.empty()) {
      wake_processes();
      return open_gate_again("it is needed again");
    }
    note("replica.unpaused", failure + "; it is frozen instead");
  }
  rest_frozen(failure);
}

// Until its connections have ended; at the end of the time for that they are cut off. False when it
// is needed again.
bool Replica::finish_connections() {
  Fd drained = services_.gate.drained(row_.id);
  Deadline deadline = Deadline::never();
  {
    std::scoped_lock lock(mutex_);
    deadline = Deadline::after_us(drain_until_us_ - monotonic_us());
  }
  while (paused()) {
    std::int64_t look_again_us = end_quiet();
    if (wait_for(drained.get(), Deadline::after_us(std::min(deadline.left_us(), look_again_us))))
      return true;
    if (!deadline.passed()) continue;
    services_.gate.drop(row_.id);
    return true;
  }
  return false;
}

// Of the connections that are not waited for. Others may have come to rest after so many µs.
std::int64_t Replica::end_quiet() {
  std::optional<std::int64_t> quiet_us;
  {
    std::scoped_lock lock(mutex_);
    quiet_us = quiet_us_;
  }
  if (quiet_us) services_.gate.end_quiet(row_.id, *quiet_us);
  return quiet_us.value_or(kNeverUs);
}

// It is not paused, and not asked to for a while.
void Replica::run_on(const std::string& why) {
  note("replica.unpaused", why + "; it runs on");
  std::scoped_lock lock(mutex_);
  paused_ = false;
  pause_again_us_ = monotonic_us() + kPauseAgainUs;
}

// Until `fd` is readable, or for what else there is to see: false. Throws when it is to end, or has
// ended.
bool Replica::wait_for(int fd, Deadline deadline) {
  pollfd fds[3] = {
      {wake_.get(), POLLIN, 0}, {slot_ ? slot_->shim->ended_fd() : -1, POLLIN, 0}, {fd, POLLIN, 0}};
  if (::poll(fds, 3, deadline.poll_ms()) < 0 && errno != EINTR) throw_errno("poll", "replica");
  if (fds[0].revents) clear_event(wake_);
  {
    std::scoped_lock lock(mutex_);
    if (stop_ || detach_) throw Error(Code::kCancelled, "pause replica", row_.id, "it is to end");
  }
  if (fds[1].revents)
    throw Error(Code::kUnavailable, "pause replica", row_.id, "its container has ended");
  return fds[2].revents != 0;
}

void Replica::wake_processes() { slot_->shim->call({{"op", "wake"}}, Deadline::after_us(kShimUs)); }

// `failure`: of the dump that was tried first.
void Replica::rest_frozen(const std::string& failure) {
  try {
    slot_->shim->call({{"op", "rest"}}, Deadline::after_us(kShimUs));
  } catch (const Error& error) {
    // Some of its processes may be frozen.
    wake_processes();
    run_on(error.what());
    return open_gate_again("it could not be frozen");
  }
  std::string reason = "frozen until it is needed" + (failure.empty() ? "" : ", " + failure);
  {
    std::scoped_lock lock(mutex_);
    row_.reason = reason;
  }
  try {
    move(Event::kRest, reason);
  } catch (const Error& error) {
    // What could not be written has not happened.
    {
      std::scoped_lock lock(mutex_);
      row_.reason = reason_before_;
    }
    wake_processes();
    run_on(error.what());
    return open_gate_again("it could not be paused");
  }
  fault("pause.rested");
}

// The checkpoint's id; "" with the reason, or without one when it is needed again. Its processes
// are stopped then.
std::string Replica::dump_own(std::string* failure, std::shared_ptr<void>* pin) {
  if (!plan_.pause.enabled) {
    *failure = "it cannot be checkpointed: " + plan_.pause.reason;
    return {};
  }
  std::string id;
  dump(own_plan(plan_, row_.id), true, &id, failure);
  if (!failure->empty()) return {};
  *pin = services_.checkpoints.pin(id);
  Fd settled = services_.checkpoints.settled(id);
  while (!wait_for(settled.get()))
    if (!paused()) {
      services_.checkpoints.remove(id);
      return {};
    }
  auto row = services_.database.checkpoint(id);
  if (row && row->status == "available") return id;
  *failure = "its checkpoint could not be made: " + (row ? row->reason : "it was removed");
  return {};
}

// From here on the replica is its checkpoint. What is left of the processes, which have not run
// since the dump, goes.
void Replica::put_away(const std::string& checkpoint) {
  std::unique_ptr<Slot> slot;
  state::ReplicaRow before = row();
  {
    std::scoped_lock lock(mutex_);
    slot = std::move(slot_);
    row_.started_from = checkpoint;
    row_.slot.clear();
    row_.address.clear();
    row_.address6.clear();
    row_.pid = 0;
    row_.reason = "waits in checkpoint " + checkpoint + " until it is needed";
    collecting_.clear();
  }
  try {
    move(Event::kRest, row_.reason);
  } catch (const Error& error) {
    // What could not be written has not happened.
    {
      std::scoped_lock lock(mutex_);
      slot_ = std::move(slot);
      row_ = std::move(before);
    }
    wake_processes();
    run_on(error.what());
    return open_gate_again("it could not be paused");
  }
  fault_point("pause.rested");
  services_.slots.destroy(std::move(slot));
  services_.checkpoints.forget_replica(row_.id, checkpoint);
  services_.checkpoints.replica_ended();
}

void Replica::wait_until_needed() {
  while (paused()) wait_for(-1);
  fault("pause.needed");
  bool frozen = slot_ != nullptr;
  std::int64_t at = monotonic_us();
  if (frozen)
    wake_processes();
  else
    restore_own();
  if (!frozen) return;
  add_phases({{{"name", "thaw"}, {"start_us", at}, {"end_us", monotonic_us()}}}, "paused");
  {
    std::scoped_lock lock(mutex_);
    row_.reason = reason_before_;
  }
  open_gate_again("thawed, it is needed again");
}

// Before it could be tried to restore it.
void Replica::lose_state(const RestoreEnd& end, const UsableCheckpoint& checkpoint) {
  Outcome outcome = classify(end);
  services_.checkpoints.restore_ended(checkpoint.row.id, outcome, end.reason);
  {
    std::scoped_lock lock(mutex_);
    row_.outcome = name(outcome);
  }
  fall_back(end, outcome, checkpoint);
}

void Replica::restore_own() {
  auto set = [this](GoingOn how) {
    std::scoped_lock lock(mutex_);
    going_on_ = how;
  };
  std::string id = row_.started_from;
  {
    std::scoped_lock lock(mutex_);
    row_.reason = reason_before_;
  }
  // A state is lost for good: what may have been the host's fault is tried twice, and what there is
  // no room for longer.
  Deadline room = Deadline::after_us(kRoomUs);
  for (GoingOn how = GoingOn::kTwice;;) {
    set(how);
    RestoreEnd end;
    UsableCheckpoint own;
    own.row.id = id;
    try {
      own = services_.checkpoints.own_state(id);
    } catch (const Error& error) {
      end.error = error.code();
      end.reason = error.what();
    }
    had_no_room_ = end.error == Code::kExhausted;
    if (end.error && (!had_no_room_ || room.passed())) {
      set(GoingOn::kOnce);
      lose_state(end, own);
      break;
    }
    bool restored = !end.error && try_restore(own, true);
    if (restored || stop_asked()) return set(GoingOn::kNot);
    if (had_no_room_ && !room.passed()) {
      wait_for(-1, Deadline::after_us(kRoomAgainUs));
      continue;
    }
    if (std::exchange(how, GoingOn::kOnce) == GoingOn::kOnce) break;
  }
  set(GoingOn::kNot);
  start_cold();
  warm_up();
}

}  // namespace thaw::lifecycle
