#include "checkpoint/record.h"

#include <gtest/gtest.h>

#include <random>

#include "checkpoint/page_index.h"
#include "util/error.h"
#include "util/file.h"

namespace thaw::checkpoint {
namespace {

constexpr std::uint64_t kPage = kPageSize;

bool contains(const std::vector<TouchedRange>& ranges, int pid, std::uint64_t address) {
  for (const TouchedRange& range : ranges)
    if (range.pid == pid && range.address <= address && address < range.address + range.length)
      return true;
  return false;
}

TEST(RecordTest, RangesThatLieNearBecomeOne) {
  auto merged = merge_ranges({{1, 10 * kPage, kPage},
                              {2, 0, kPage},
                              {1, 0, kPage},
                              {1, 5 * kPage, kPage},
                              {1, 11 * kPage, kPage}});
  ASSERT_EQ(merged.size(), 2u);
  EXPECT_EQ(merged[0].length, 12 * kPage);
  EXPECT_EQ(merged[1].pid, 2);
}

TEST(RecordTest, TooManyAreJoinedUntilTheyFitAndNoneIsLost) {
  std::vector<TouchedRange> scattered;
  std::mt19937_64 random(1);
  for (std::uint64_t i = 0; i < 16'384; ++i)
    scattered.push_back({static_cast<int>(1 + i % 3), random() % (1 << 26) * kPage, kPage});
  auto merged = merge_ranges(scattered, 1000);
  EXPECT_LE(merged.size(), 1000u);
  EXPECT_GT(merged.size(), 3u);
  for (const TouchedRange& range : scattered)
    ASSERT_TRUE(contains(merged, range.pid, range.address));
}

TEST(RecordTest, OnlyWhatWeWroteIsRead) {
  std::string base = "/tmp/thaw-record-" + random_hex(), path = base + "/record", key(32, 'k');
  make_directories(base);
  EXPECT_FALSE(read_record(base, "c0ffee", key));
  EXPECT_TRUE(read_working_set(base).empty());
  write_record(base, "c0ffee",
               {{{7, kPage, 2 * kPage}}, {{8, 9 * kPage, kPage}, {9, 3 * kPage, kPage}}, true},
               key);
  auto record = read_record(base, "c0ffee", key);
  ASSERT_TRUE(record);
  EXPECT_TRUE(record->served);
  ASSERT_EQ(record->start.size(), 1u);
  EXPECT_EQ(record->start[0].length, 2 * kPage);
  ASSERT_EQ(record->serving.size(), 2u);
  EXPECT_EQ(record->serving[1].pid, 9);
  EXPECT_EQ(read_working_set(base).size(), 3u);
  EXPECT_FALSE(read_record(base, "decade", key));
  EXPECT_FALSE(read_record(base, "c0ffee", std::string(32, 'x')));
  std::string bytes = read_file(path);
  write_file(path, bytes.substr(0, bytes.size() - 1));
  EXPECT_FALSE(read_record(base, "c0ffee", key));
  EXPECT_THROW(read_working_set(base), Error);
  write_file(path, "short");
  EXPECT_FALSE(read_record(base, "c0ffee", key));
  EXPECT_THROW(read_working_set(base), Error);
  remove_tree(base);
}

}  // namespace
}  // namespace thaw::checkpoint
