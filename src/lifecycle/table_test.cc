#include "lifecycle/table.h"

#include <gtest/gtest.h>

namespace thaw::lifecycle {
namespace {

constexpr State kAll[] = {
    State::kPreparing,  State::kStarting, State::kWarming, State::kCheckpointing, State::kRestoring,
    State::kValidating, State::kStandby,  State::kReady,   State::kPausing,       State::kPaused,
    State::kDraining,   State::kStopping, State::kStopped, State::kFailed};
constexpr Event kEvents[] = {Event::kStartCold, Event::kRestore, Event::kStarted,  Event::kDump,
                             Event::kOpen,      Event::kResumed, Event::kFallBack, Event::kDrain,
                             Event::kStop,      Event::kEnded,   Event::kDied,     Event::kRest,
                             Event::kPause};

TEST(TableTest, NamesReadBack) {
  for (State state : kAll) EXPECT_EQ(parse_state(name(state)), state);
  EXPECT_EQ(parse_state("nonsense"), std::nullopt);
}

TEST(TableTest, TheGateIsOnlyOpenedOnEnteringReady) {
  for (State state : kAll)
    for (Event event : kEvents) {
      auto to = next(state, event);
      if (to == State::kReady) {
        EXPECT_EQ(event, Event::kOpen) << name(state);
      }
      if (event == Event::kOpen && to) {
        EXPECT_EQ(to, State::kReady) << name(state);
      }
    }
}

TEST(TableTest, WhoIsPausedGoesOnOrEnds) {
  EXPECT_EQ(next(State::kReady, Event::kPause), State::kPausing);
  EXPECT_EQ(next(State::kReady, Event::kRest), std::nullopt) << "its connections finish first";
  EXPECT_EQ(next(State::kPausing, Event::kOpen), State::kReady) << "it is needed again";
  for (State state : {State::kPausing, State::kCheckpointing})
    EXPECT_EQ(next(state, Event::kRest), State::kPaused) << name(state);
  EXPECT_EQ(next(State::kPaused, Event::kOpen), State::kReady);
  EXPECT_EQ(next(State::kPaused, Event::kRestore), State::kRestoring);
  EXPECT_EQ(next(State::kPaused, Event::kPause), std::nullopt);
  for (State state : {State::kPreparing, State::kRestoring, State::kValidating})
    EXPECT_EQ(next(state, Event::kPause), State::kPaused) << "of its own state: " << name(state);
}

TEST(TableTest, NothingFollowsTheEnd) {
  for (Event event : kEvents) {
    EXPECT_EQ(next(State::kStopped, event), std::nullopt);
    EXPECT_EQ(next(State::kFailed, event), std::nullopt);
  }
}

TEST(TableTest, EveryLivingStateCanBeStoppedAndCanDie) {
  for (State state : kAll) {
    if (ended(state) || state == State::kStopping) continue;
    EXPECT_EQ(next(state, Event::kStop), State::kStopping) << name(state);
    EXPECT_EQ(next(state, Event::kDied), State::kFailed) << name(state);
  }
  EXPECT_EQ(next(State::kStopping, Event::kEnded), State::kStopped);
}

TEST(TableTest, OnlyARestoreFallsBackAndItGoesToPreparing) {
  for (State state : kAll) {
    auto to = next(state, Event::kFallBack);
    // A paused one, too, whose own state turns out to be of no use before it is restored.
    EXPECT_EQ(to.has_value(),
              state == State::kRestoring || state == State::kValidating || state == State::kPaused)
        << name(state);
    if (to) {
      EXPECT_EQ(*to, State::kPreparing);
    }
  }
}

}  // namespace
}  // namespace thaw::lifecycle
