// One attempt to restore a checkpoint into a slot. Used by a replica that starts and by the proof
// of a new checkpoint.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/record.h"
#include "lifecycle/checkpoints.h"
#include "lifecycle/outcome.h"
#include "lifecycle/plan.h"
#include "lifecycle/slots.h"

namespace thaw::lifecycle {

struct RestoreAttempt {
  RestoreEnd end;
  int pid = 0;
  nlohmann::json phases = nlohmann::json::array();
  std::string log_tail;
};

// An event with the end of CRIU's log, after a dump, proof or restore that failed. Nothing when the
// log is empty.
void note_criu_log(state::Database& database, const state::EventRow& whose, const char* what,
                   const std::string& log_tail);

// What a restore is for.
enum class Purpose {
  kServe,
  kProof,    // may not reach the outside, and records what it touches
  kStandby,  // has no identity yet
  kStopped,  // the same, and is left stopped before its first instruction
  kOwn,      // a paused replica goes on with its own state
};

// Restores and resumes; `validate` is separate. Never throws: everything is in `end`. `diagnose`:
// it has failed before, so CRIU writes down all it does; the log of another failure stays in
// log_dir.
RestoreAttempt attempt_restore(Slot& slot, const PodPlan& plan, const UsableCheckpoint& checkpoint,
                               const std::string& replica, const std::string& hostname,
                               const std::string& log_dir, Purpose purpose, bool diagnose = false);
// Waits for the readiness probe of a resumed tree, or for its end. Completes `attempt.end`.
void validate(RestoreAttempt& attempt, Slot& slot, const PodPlan& plan, const std::string& log_dir,
              int cancel_fd);

// Runs a hook of the specification in the container of a slot. Why it failed; nullopt when it ended
// well, or when there is none. Throws kCancelled.
std::optional<std::string> run_hook(Slot& slot, const char* name,
                                    const std::vector<std::string>& argv, int cancel_fd);

// What the replica in this slot has faulted in so far; nothing when it was not restored lazily.
// `serving`: it serves, and nobody asks again. nullopt when it cannot be had.
std::optional<std::vector<checkpoint::TouchedRange>> touched_memory(Slot& slot, bool serving);

// What CRIU writes down: a log costs time. For whoever takes a dump or a restore apart
// THAW_CRIU_LOG=4 in the daemon's environment makes it all it knows.
int criu_log_level(int otherwise);

// Time an attempt may take: grows with the memory that must be read.
std::int64_t restore_timeout_us(const checkpoint::Manifest& manifest);

// An epoll descriptor is readable when one of those it watches is: several causes as one cancel_fd.
// They must outlive it.
Fd any_of(std::initializer_list<int> descriptors);

}  // namespace thaw::lifecycle
