// A replica's life as one table. Nothing else decides what may follow what.
//   cold:     preparing → starting → warming → [checkpointing] → ready → draining → stopping →
//   stopped
//   restored: preparing → restoring → validating → ready → …
//   standby:  … → validating → standby → ready → …, or restoring → standby → validating → ready
//   paused:   ready → pausing → [checkpointing] → paused → ready (frozen), or paused → restoring →
//   … falling back: restoring|validating → preparing (cold)
#pragma once

#include <optional>
#include <string_view>

namespace thaw::lifecycle {

enum class State {
  kPreparing,
  kStarting,
  kWarming,
  kCheckpointing,
  kRestoring,
  kValidating,
  kStandby,
  kReady,
  kPausing,
  kPaused,
  kDraining,
  kStopping,
  kStopped,
  kFailed
};

enum class Event {
  kStartCold,  // no checkpoint fits
  kRestore,    // one does
  kStarted,    // the container runs
  kDump,       // warm, and a checkpoint is to be made (or the user asks for one of a ready replica)
  kOpen,       // warm, dumped, validated or timed out with `serve`: the gate opens
  kResumed,    // CRIU has restored the tree
  kFallBack,   // the restore did not work
  kRest,       // it waits until it is needed: restored ahead of time, or paused
  kPause,      // nobody uses it: connections finish, then it is frozen or dumped; or the daemon has
               // ended while its own state was being restored, and that is as it was
  kDrain,      // it is to leave, connections finish
  kStop,       // it is to end now
  kEnded,      // the container has exited, by our wish
  kDied,       // the container has exited by itself, or cannot be started
};

std::string_view name(State state);
std::string_view name(Event event);
std::optional<State> parse_state(std::string_view name);
// nullopt: this must not happen in this state.
std::optional<State> next(State state, Event event);
bool ended(State state);

}  // namespace thaw::lifecycle
