#include "lifecycle/outcome.h"

#include <gtest/gtest.h>

namespace thaw::lifecycle {
namespace {

TEST(OutcomeTest, AStopExplainsEverything) {
  RestoreEnd end;
  end.stop_intended = true;
  end.criu_refused = true;
  end.oom_kills = 1;
  end.error = Code::kCorrupt;
  end.exit = ExitStatus{true, 9};
  EXPECT_EQ(classify(end), Outcome::kStoppedByUser);
  EXPECT_EQ(verdict(Outcome::kStoppedByUser, 5), Verdict::kStays);
}

TEST(OutcomeTest, EachCauseHasItsOutcome) {
  RestoreEnd end;
  end.criu_refused = true;
  EXPECT_EQ(classify(end), Outcome::kRefused);
  end.timed_out = true;
  EXPECT_EQ(classify(end), Outcome::kUnavailable);
  end.oom_kills = 1;
  EXPECT_EQ(classify(end), Outcome::kOutOfMemory);

  RestoreEnd died;
  died.phase = RestorePhase::kResumed;
  died.exit = ExitStatus{true, 11};
  EXPECT_EQ(classify(died), Outcome::kAppFailed);
  died.exit = ExitStatus{true, 9};
  EXPECT_EQ(classify(died), Outcome::kUnavailable);
  died.oom_kills = 1;
  EXPECT_EQ(classify(died), Outcome::kOutOfMemory);
  died.phase = RestorePhase::kValidated;
  EXPECT_EQ(classify(died), Outcome::kRestored);

  for (auto [code, outcome] : {std::pair{Code::kCorrupt, Outcome::kCorrupt},
                               {Code::kUnsupported, Outcome::kHostIncompatible},
                               {Code::kNotFound, Outcome::kUnavailable},
                               {Code::kExhausted, Outcome::kUnavailable}}) {
    RestoreEnd ours;
    ours.error = code;
    EXPECT_EQ(classify(ours), outcome);
  }
}

TEST(OutcomeTest, OneFailureInARowIsForgivenTwoAreNot) {
  for (Outcome outcome : {Outcome::kRefused, Outcome::kAppFailed}) {
    EXPECT_EQ(verdict(outcome, 1), Verdict::kStays);
    EXPECT_EQ(verdict(outcome, 2), Verdict::kRestoreFailed);
  }
  EXPECT_EQ(verdict(Outcome::kCorrupt, 1), Verdict::kRestoreFailed);
  EXPECT_EQ(verdict(Outcome::kUnavailable, 9), Verdict::kRetryLater);
  EXPECT_EQ(verdict(Outcome::kHostIncompatible, 1), Verdict::kNotHereAgain);
}

}  // namespace
}  // namespace thaw::lifecycle
