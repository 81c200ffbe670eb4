#include "lifecycle/table.h"

namespace thaw::lifecycle {
namespace {

constexpr std::pair<State, std::string_view> kStates[] = {
    {State::kPreparing, "preparing"}, {State::kStarting, "starting"},
    {State::kWarming, "warming"},     {State::kCheckpointing, "checkpointing"},
    {State::kRestoring, "restoring"}, {State::kValidating, "validating"},
    {State::kStandby, "standby"},     {State::kReady, "ready"},
    {State::kPausing, "pausing"},     {State::kPaused, "paused"},
    {State::kDraining, "draining"},   {State::kStopping, "stopping"},
    {State::kStopped, "stopped"},     {State::kFailed, "failed"},
};

constexpr std::pair<Event, std::string_view> kEvents[] = {
    {Event::kStartCold, "start-cold"},
    {Event::kRestore, "restore"},
    {Event::kStarted, "started"},
    {Event::kDump, "dump"},
    {Event::kOpen, "open"},
    {Event::kResumed, "resumed"},
    {Event::kFallBack, "fall-back"},
    {Event::kRest, "rest"},
    {Event::kPause, "pause"},
    {Event::kDrain, "drain"},
    {Event::kStop, "stop"},
    {Event::kEnded, "ended"},
    {Event::kDied, "died"},
};

struct Row {
  State from;
  Event event;
  State to;
};

constexpr Row kTable[] = {
    {State::kPreparing, Event::kStartCold, State::kStarting},
    {State::kPreparing, Event::kRestore, State::kRestoring},
    {State::kPreparing, Event::kPause, State::kPaused},
    {State::kPreparing, Event::kStop, State::kStopping},
    {State::kPreparing, Event::kDied, State::kFailed},
    {State::kStarting, Event::kStarted, State::kWarming},
    {State::kStarting, Event::kStop, State::kStopping},
    {State::kStarting, Event::kDied, State::kFailed},
    {State::kWarming, Event::kDump, State::kCheckpointing},
    {State::kWarming, Event::kOpen, State::kReady},
    {State::kWarming, Event::kStop, State::kStopping},
    {State::kWarming, Event::kDied, State::kFailed},
    {State::kCheckpointing, Event::kOpen, State::kReady},
    {State::kCheckpointing, Event::kRest, State::kPaused},
    {State::kCheckpointing, Event::kStop, State::kStopping},
    {State::kCheckpointing, Event::kDied, State::kFailed},
    {State::kRestoring, Event::kResumed, State::kValidating},
    {State::kRestoring, Event::kFallBack, State::kPreparing},
    {State::kRestoring, Event::kStop, State::kStopping},
    {State::kRestoring, Event::kDied, State::kFailed},
    {State::kRestoring, Event::kRest, State::kStandby},
    {State::kRestoring, Event::kPause, State::kPaused},
    {State::kValidating, Event::kOpen, State::kReady},
    {State::kValidating, Event::kRest, State::kStandby},
    {State::kValidating, Event::kPause, State::kPaused},
    {State::kValidating, Event::kFallBack, State::kPreparing},
    {State::kValidating, Event::kStop, State::kStopping},
    {State::kValidating, Event::kDied, State::kFailed},
    {State::kStandby, Event::kOpen, State::kReady},
    {State::kStandby, Event::kResumed, State::kValidating},
    {State::kStandby, Event::kStop, State::kStopping},
    {State::kStandby, Event::kDied, State::kFailed},
    {State::kReady, Event::kDump, State::kCheckpointing},
    {State::kReady, Event::kPause, State::kPausing},
    {State::kReady, Event::kDrain, State::kDraining},
    {State::kReady, Event::kStop, State::kStopping},
    {State::kReady, Event::kDied, State::kFailed},
    {State::kPausing, Event::kOpen, State::kReady},
    {State::kPausing, Event::kDump, State::kCheckpointing},
    {State::kPausing, Event::kRest, State::kPaused},
    {State::kPausing, Event::kDrain, State::kDraining},
    {State::kPausing, Event::kStop, State::kStopping},
    {State::kPausing, Event::kDied, State::kFailed},
    {State::kPaused, Event::kOpen, State::kReady},
    {State::kPaused, Event::kRestore, State::kRestoring},
    {State::kPaused, Event::kFallBack, State::kPreparing},
    {State::kPaused, Event::kStop, State::kStopping},
    {State::kPaused, Event::kDied, State::kFailed},
    {State::kDraining, Event::kStop, State::kStopping},
    {State::kDraining, Event::kDied, State::kFailed},
    {State::kStopping, Event::kEnded, State::kStopped},
};

}  // namespace

std::string_view name(State state) {
  for (auto& [value, text] : kStates)
    if (value == state) return text;
  return "?";
}

std::string_view name(Event event) {
  for (auto& [value, text] : kEvents)
    if (value == event) return text;
  return "?";
}

std::optional<State> parse_state(std::string_view text) {
  for (auto& [value, known] : kStates)
    if (known == text) return value;
  return std::nullopt;
}

std::optional<State> next(State state, Event event) {
  for (const Row& row : kTable)
    if (row.from == state && row.event == event) return row.to;
  return std::nullopt;
}

bool ended(State state) { return state == State::kStopped || state == State::kFailed; }

}  // namespace thaw::lifecycle
