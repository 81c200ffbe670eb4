#include "checkpoint/obstacles.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <gmock/gmock.h>

#include "util/fd.h"

namespace thaw::checkpoint {
namespace {

TEST(Obstacles, NoneInAnOrdinaryProcess) {
  Fd event(::eventfd(0, 0)), poll(::epoll_create1(0)), null = Fd::open("/dev/null", O_RDWR);
  EXPECT_EQ(find_obstacle({::getpid()}), "");
}

TEST(Obstacles, NamesAnIoUring) {
  char parameters[120] = {};
  Fd ring(static_cast<int>(::syscall(SYS_io_uring_setup, 4, parameters)));
  ASSERT_TRUE(ring) << "this kernel has no io_uring, or forbids it (kernel.io_uring_disabled)";
  EXPECT_THAT(find_obstacle({::getpid()}), testing::HasSubstr("has io_uring open"));
}

TEST(Obstacles, ProcessesThatAreGoneArePassedOver) { EXPECT_EQ(find_obstacle({1 << 22}), ""); }

}  // namespace
}  // namespace thaw::checkpoint
