#include "runtime/heartbeat.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <ctime>
#include <string>

#include "util/fd.h"

namespace thaw::runtime {
namespace {

Fd old_file(std::string pattern, bool unlinked) {
  int fd = ::mkstemp(pattern.data());
  EXPECT_GE(fd, 0);
  const timespec old[2] = {{1000, 0}, {1000, 0}};
  EXPECT_EQ(::futimens(fd, old), 0);
  if (unlinked) {
    EXPECT_EQ(::unlink(pattern.c_str()), 0);
  }
  return Fd(fd);
}

std::int64_t modified_s(const Fd& fd) {
  struct stat info;
  EXPECT_EQ(::fstat(fd.get(), &info), 0);
  return info.st_mtim.tv_sec;
}

TEST(Heartbeat, FreshensUnlinkedHeartbeatsOnly) {
  Fd heartbeat = old_file("/tmp/wgunicorn-XXXXXX", true);
  Fd other = old_file("/tmp/worker-XXXXXX", true);
  std::string kept_name = "/tmp/wgunicorn-kept" + std::to_string(::getpid()) + "-XXXXXX";
  Fd kept(::mkstemp(kept_name.data()));
  const timespec old[2] = {{1000, 0}, {1000, 0}};
  ASSERT_EQ(::futimens(kept.get(), old), 0);
  timespec before{};
  ::clock_gettime(CLOCK_MONOTONIC, &before);

  freshen_heartbeats({::getpid(), 0x7ffffff0});

  EXPECT_GE(modified_s(heartbeat), before.tv_sec);
  EXPECT_LE(modified_s(heartbeat), before.tv_sec + 60);
  EXPECT_EQ(modified_s(other), 1000);
  EXPECT_EQ(modified_s(kept), 1000) << "a file with a name may be somebody's data";
  ::unlink(kept_name.c_str());
}

}  // namespace
}  // namespace thaw::runtime
