// How a restore ended, and what that means for the checkpoint. The table stands in DESIGN.md ("How
// a restore ended").
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "util/error.h"
#include "util/process.h"

namespace thaw::lifecycle {

enum class Outcome {
  kRestored,
  kStoppedByUser,
  kOutOfMemory,
  kHostIncompatible,
  kUnavailable,
  kCorrupt,
  kRefused,
  kAppFailed
};

enum class RestorePhase { kRequested, kResumed, kValidated };

// Everything that is known about the end of one restore.
struct RestoreEnd {
  bool stop_intended = false;  // the user's intent, written down before any signal
  RestorePhase phase = RestorePhase::kRequested;
  bool criu_refused = false;       // CRIU answered, or ended, without success
  bool timed_out = false;          // a deadline of ours
  std::optional<Code> error;       // a failure of ours before or beside CRIU
  std::optional<ExitStatus> exit;  // of the container, from its pidfd
  std::int64_t oom_kills = 0;      // risen during the restore
  std::string reason;              // for people
};

Outcome classify(const RestoreEnd& end);
// A SIGKILL that is not the kernel's for want of memory: it says nothing about the program.
bool killed_from_outside(const ExitStatus& exit);
std::string_view name(Outcome outcome);

// What becomes of a checkpoint after `failures` ends of this kind in a row (this one counted).
enum class Verdict { kStays, kRetryLater, kNotHereAgain, kRestoreFailed };
Verdict verdict(Outcome outcome, int failures);

}  // namespace thaw::lifecycle
