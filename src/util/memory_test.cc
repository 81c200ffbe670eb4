#include "util/memory.h"

#include <gtest/gtest.h>
#include <unistd.h>

namespace thaw {
namespace {

TEST(Memory, IsWhatTheHostHas) {
  std::uint64_t pages = static_cast<std::uint64_t>(::sysconf(_SC_PHYS_PAGES));
  EXPECT_EQ(total_memory(), pages * static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE)));
  EXPECT_GT(available_memory(), 0u);
  EXPECT_LT(available_memory(), total_memory());
}

}  // namespace
}  // namespace thaw
