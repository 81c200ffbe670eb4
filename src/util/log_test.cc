#include "util/log.h"

#include <gmock/gmock.h>

#include <thread>

#include <nlohmann/json.hpp>

namespace thaw::log {
namespace {

using ::testing::EndsWith;

std::string written(const std::function<void()>& work) {
  ::testing::internal::CaptureStderr();
  work();
  return ::testing::internal::GetCapturedStderr();
}

TEST(Log, LinesSayWhatTheirThreadIsAbout) {
  Context replica("replica", "r1");
  EXPECT_THAT(written([] {
                info("moved", {{"to", "ready"}});
              }),
              EndsWith(" info moved to=ready replica=r1\n"));
  {
    Context request("request", "q 1"), other("replica", "r2");
    EXPECT_THAT(written([] { info("x"); }), EndsWith(" info x replica=r2 request=\"q 1\"\n"));
    EXPECT_THAT(written([] {
                  info("x", {{"replica", "own"}});
                }),
                EndsWith(" info x replica=own request=\"q 1\"\n"));
    EXPECT_EQ(Context::value("request"), "q 1");
    EXPECT_THAT(written([] { std::thread([] { info("x"); }).join(); }), EndsWith(" info x\n"));
  }
  EXPECT_EQ(Context::value("request"), "");
  EXPECT_THAT(written([] { info("x"); }), EndsWith(" info x replica=r1\n"));
  set_json(true);
  std::string line = written([] { info("x", {{"a", "b"}}); });
  set_json(false);
  nlohmann::json object = nlohmann::json::parse(line);
  EXPECT_EQ(object["replica"], "r1");
  EXPECT_EQ(object["a"], "b");
}

}  // namespace
}  // namespace thaw::log
