#include "lifecycle/log_tail.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

#include "util/file.h"
#include "util/process.h"

namespace thaw::lifecycle {
namespace {

using testing::ElementsAre;

class LogTails : public testing::Test {
 protected:
  LogTails()
      : dir_((std::filesystem::temp_directory_path() / ("thaw-tail-" + random_hex())).string()),
        path_(dir_ + "/log") {
    make_directories(dir_);
  }
  ~LogTails() override { remove_tree(dir_); }
  void append(const std::string& text) { std::ofstream(path_, std::ios::app) << text; }
  void rotate() { ASSERT_EQ(::rename(path_.c_str(), (path_ + ".1").c_str()), 0); }
  std::vector<std::string> read(LogTail& tail, const std::string& end = "") {
    std::vector<std::string> lines;
    tail.read([&](std::string_view line) { return lines.emplace_back(line) == end; }, [] {});
    return lines;
  }
  bool told(LogTail& tail) {
    return wait_readable(tail.fd().get(), Deadline::after_ms(0)) && tail.changed();
  }

  std::string dir_, path_;
};

TEST_F(LogTails, GivesEachCompleteLineOnce) {
  LogTail tail(path_);
  EXPECT_THAT(read(tail), ElementsAre());
  append("a\nb\nc");
  EXPECT_TRUE(told(tail));
  EXPECT_THAT(read(tail), ElementsAre("a", "b"));
  EXPECT_FALSE(told(tail));
  append("c\n\n");
  EXPECT_TRUE(told(tail));
  EXPECT_THAT(read(tail), ElementsAre("cc", ""));
}

TEST_F(LogTails, GoesOnBehindTheLineThatEndedTheReading) {
  append("a\nb\nc\n");
  LogTail tail(path_);
  EXPECT_THAT(read(tail, "b"), ElementsAre("a", "b"));
  EXPECT_THAT(read(tail), ElementsAre("c"));
}

TEST_F(LogTails, LosesNoLineInARotation) {
  append("a\n");
  LogTail tail(path_);
  EXPECT_THAT(read(tail), ElementsAre("a"));
  append("last of the old\n");
  rotate();
  append("first of the new\n");
  EXPECT_TRUE(told(tail));
  EXPECT_THAT(read(tail), ElementsAre("last of the old", "first of the new"));
  append("b\n");
  EXPECT_TRUE(told(tail));
  EXPECT_THAT(read(tail), ElementsAre("b"));
  rotate();
  EXPECT_TRUE(told(tail));
  EXPECT_THAT(read(tail), ElementsAre());
  append("c\n");
  EXPECT_TRUE(told(tail));
  EXPECT_THAT(read(tail), ElementsAre("c"));
}

TEST_F(LogTails, BeginsAgainWhenTruncated) {
  append("long enough\n");
  LogTail tail(path_);
  read(tail);
  ASSERT_EQ(::truncate(path_.c_str(), 0), 0);
  append("a\n");
  EXPECT_TRUE(told(tail));
  EXPECT_THAT(read(tail), ElementsAre("a"));
}

TEST_F(LogTails, ALineWithoutEndDoesNotFillTheMemory) {
  append(std::string(3 << 20, 'x') + "\n");
  LogTail tail(path_);
  auto lines = read(tail);
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_LT(lines[0].size(), 2u << 20);
}

}  // namespace
}  // namespace thaw::lifecycle
