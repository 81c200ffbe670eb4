#include "checkpoint/image_fixes.h"

#include <gtest/gtest.h>

#include <cstring>

#include "checkpoint/rpc.pb.h"
#include "util/error.h"
#include "util/file.h"

namespace thaw::checkpoint {
namespace {

std::string entry(std::uint64_t value_ns, std::uint64_t interval_ns) {
  rpc::FileEntry file;
  file.mutable_tfd()->set_vsec(0);
  file.mutable_tfd()->set_vnsec(value_ns);
  file.mutable_tfd()->set_isec(0);
  file.mutable_tfd()->set_insec(interval_ns);
  std::string bytes = file.SerializeAsString();
  bytes += std::string("\x08\x11", 2);  // field 1, type: not declared here, must pass through
  std::uint32_t length = static_cast<std::uint32_t>(bytes.size());
  return std::string(reinterpret_cast<const char*>(&length), sizeof length) + bytes;
}

class ImageFixesTest : public ::testing::Test {
 protected:
  ImageFixesTest() : base("/tmp/thaw-fixes-" + random_hex()) { make_directories(base); }
  ~ImageFixesTest() override { remove_tree(base); }
  std::string base;
};

TEST_F(ImageFixesTest, OnlyExpiredPeriodicTimersAreRearmed) {
  std::string image = std::string(8, 'm') + entry(0, 0) + entry(5, 100) + entry(0, 100);
  write_file(base + "/files.img", image);
  EXPECT_EQ(rearm_expired_timers(base), 1);
  std::string fixed = read_file(base + "/files.img");
  std::size_t kept = 8 + entry(0, 0).size() + entry(5, 100).size();
  EXPECT_EQ(fixed.substr(0, kept), image.substr(0, kept));
  rpc::FileEntry last;
  ASSERT_TRUE(last.ParseFromString(fixed.substr(kept + 4)));
  EXPECT_EQ(last.tfd().vnsec(), 1u);
  EXPECT_EQ(last.tfd().insec(), 100u);
  EXPECT_NE(fixed.find(std::string("\x08\x11", 2), kept), std::string::npos);
  EXPECT_EQ(rearm_expired_timers(base), 0);
}

TEST_F(ImageFixesTest, ACutImageIsAnError) {
  std::string image = std::string(8, 'm') + entry(0, 100);
  write_file(base + "/files.img", image.substr(0, image.size() - 3));
  EXPECT_THROW(rearm_expired_timers(base), Error);
}

}  // namespace
}  // namespace thaw::checkpoint
