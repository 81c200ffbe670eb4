#include "checkpoint/page_index.h"

#include <gtest/gtest.h>

#include <random>

namespace thaw::checkpoint {
namespace {

constexpr std::uint64_t kPage = kPageSize;

TEST(PageIndexTest, AroundClipsToThePiece) {
  PageIndex index;
  index.add({10 * kPage, 10 * kPage, 0});
  EXPECT_FALSE(index.around(9 * kPage, kPage, kPage));
  EXPECT_FALSE(index.around(20 * kPage, kPage, kPage));
  auto piece = index.around(10 * kPage, 4 * kPage, 3 * kPage);
  ASSERT_TRUE(piece);
  EXPECT_EQ(piece->address, 10 * kPage);
  EXPECT_EQ(piece->length, 3 * kPage);
  piece = index.around(18 * kPage, 2 * kPage, 16 * kPage);
  ASSERT_TRUE(piece);
  EXPECT_EQ(piece->address, 16 * kPage);
  EXPECT_EQ(piece->length, 4 * kPage);
  EXPECT_EQ(piece->offset, 6 * kPage);
}

// Against a plain map of pages: whatever is added, removed and moved, the index says the same.
TEST(PageIndexTest, AgreesWithAMapOfPages) {
  std::mt19937 random(20261123);
  for (int round = 0; round < 50; ++round) {
    PageIndex index;
    std::map<std::uint64_t, std::uint64_t> pages;
    std::uint64_t offset = 0;
    for (std::uint64_t at = 0; at < 400;) {
      std::uint64_t gap = random() % 5, length = 1 + random() % 20;
      at += gap;
      index.add({at * kPage, length * kPage, offset});
      for (std::uint64_t i = 0; i < length; ++i) pages[at + i] = offset / kPage + i;
      offset += length * kPage;
      at += length;
    }
    for (int step = 0; step < 60; ++step) {
      std::uint64_t from = random() % 420, length = 1 + random() % 30;
      if (random() % 3) {
        index.remove(from * kPage, length * kPage);
        pages.erase(pages.lower_bound(from), pages.lower_bound(from + length));
      } else {
        std::uint64_t to = 1000 + random() % 400;
        index.move(from * kPage, to * kPage, length * kPage);
        std::map<std::uint64_t, std::uint64_t> moved;
        for (auto at = pages.lower_bound(from); at != pages.end() && at->first < from + length;
             at = pages.erase(at))
          moved[at->first - from + to] = at->second;
        pages.erase(pages.lower_bound(to), pages.lower_bound(to + length));
        pages.insert(moved.begin(), moved.end());
      }
      EXPECT_EQ(index.bytes(), pages.size() * kPage);
      std::uint64_t probe = random() % 1500;
      auto found = index.around(probe * kPage, 0, kPage);
      auto known = pages.find(probe);
      ASSERT_EQ(found.has_value(), known != pages.end());
      if (found) {
        ASSERT_EQ(found->offset, known->second * kPage);
      }
    }
  }
}

}  // namespace
}  // namespace thaw::checkpoint
