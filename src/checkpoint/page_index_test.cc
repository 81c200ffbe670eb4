#include "checkpoint/page_index.h"

#include <gtest/gtest.h>

#include <random>

namespace thaw::checkpoint {
namespace {

constexpr std::uint64_t P = kPageSize;

TEST(PageIndexTest, AroundClipsToThePiece) {
  PageIndex index;
  index.add({10 * P, 10 * P, 0});
  EXPECT_FALSE(index.around(9 * P, P, P));
  EXPECT_FALSE(index.around(20 * P, P, P));
  auto piece = index.around(10 * P, 4 * P, 3 * P);
  ASSERT_TRUE(piece);
  EXPECT_EQ(piece->address, 10 * P);
  EXPECT_EQ(piece->length, 3 * P);
  piece = index.around(18 * P, 2 * P, 16 * P);
  ASSERT_TRUE(piece);
  EXPECT_EQ(piece->address, 16 * P);
  EXPECT_EQ(piece->length, 4 * P);
  EXPECT_EQ(piece->offset, 6 * P);
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
      index.add({at * P, length * P, offset});
      for (std::uint64_t i = 0; i < length; ++i) pages[at + i] = offset / P + i;
      offset += length * P;
      at += length;
    }
    for (int step = 0; step < 60; ++step) {
      std::uint64_t from = random() % 420, length = 1 + random() % 30;
      if (random() % 3) {
        index.remove(from * P, length * P);
        pages.erase(pages.lower_bound(from), pages.lower_bound(from + length));
      } else {
        std::uint64_t to = 1000 + random() % 400;
        index.move(from * P, to * P, length * P);
        std::map<std::uint64_t, std::uint64_t> moved;
        for (auto at = pages.lower_bound(from); at != pages.end() && at->first < from + length;
             at = pages.erase(at))
          moved[at->first - from + to] = at->second;
        pages.erase(pages.lower_bound(to), pages.lower_bound(to + length));
        pages.insert(moved.begin(), moved.end());
      }
      EXPECT_EQ(index.bytes(), pages.size() * P);
      std::uint64_t probe = random() % 1500;
      auto found = index.around(probe * P, 0, P);
      auto known = pages.find(probe);
      ASSERT_EQ(found.has_value(), known != pages.end());
      if (found) {
        ASSERT_EQ(found->offset, known->second * P);
      }
    }
  }
}

}  // namespace
}  // namespace thaw::checkpoint
