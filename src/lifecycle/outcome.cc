#include "lifecycle/outcome.h"

#include <signal.h>

namespace thaw::lifecycle {

bool killed_from_outside(const ExitStatus& exit) { return exit.signalled && exit.value == SIGKILL; }

Outcome classify(const RestoreEnd& end) {
  // The order is the meaning: a stop explains everything, then the kernel's own word, then ours,
  // then CRIU's, then the program's.
  if (end.stop_intended) return Outcome::kStoppedByUser;
  if (end.phase == RestorePhase::kValidated) return Outcome::kRestored;
  if (end.oom_kills > 0) return Outcome::kOutOfMemory;
  if (end.error) {
    switch (*end.error) {
      case Code::kCorrupt:
        return Outcome::kCorrupt;
      case Code::kUnsupported:
        return Outcome::kHostIncompatible;
      default:
        return Outcome::kUnavailable;
    }
  }
  // Nobody's program ends so by itself: an operator, or the host, has taken it.
  if (end.phase == RestorePhase::kResumed && end.exit && killed_from_outside(*end.exit))
    return Outcome::kUnavailable;
  if (end.phase == RestorePhase::kRequested)
    return end.timed_out ? Outcome::kUnavailable : Outcome::kRefused;
  return Outcome::kAppFailed;
}

std::string_view name(Outcome outcome) {
  switch (outcome) {
    case Outcome::kRestored:
      return "Restored";
    case Outcome::kStoppedByUser:
      return "StoppedByUser";
    case Outcome::kOutOfMemory:
      return "OutOfMemory";
    case Outcome::kHostIncompatible:
      return "HostIncompatible";
    case Outcome::kUnavailable:
      return "Unavailable";
    case Outcome::kCorrupt:
      return "Corrupt";
    case Outcome::kRefused:
      return "Refused";
    case Outcome::kAppFailed:
      return "AppFailed";
  }
  return "?";
}

Verdict verdict(Outcome outcome, int failures) {
  switch (outcome) {
    case Outcome::kRestored:
    case Outcome::kStoppedByUser:
    case Outcome::kOutOfMemory:
      return Verdict::kStays;
    case Outcome::kHostIncompatible:
      return Verdict::kNotHereAgain;
    case Outcome::kUnavailable:
      return Verdict::kRetryLater;
    case Outcome::kCorrupt:
      return Verdict::kRestoreFailed;
    case Outcome::kRefused:
    case Outcome::kAppFailed:
      return failures >= 2 ? Verdict::kRestoreFailed : Verdict::kStays;
  }
  return Verdict::kStays;
}

}  // namespace thaw::lifecycle
