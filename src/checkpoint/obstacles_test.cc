#include "checkpoint/obstacles.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>

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

TEST(Obstacles, NamesAWorkingDirectoryThatWasUnmounted) {
  auto [ours, theirs] = Fd::pipe();
  pid_t child = ::fork();
  if (child == 0) {
    bool ok = ::unshare(CLONE_NEWNS) == 0 &&
              ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
              ::mount("tmpfs", "/mnt", "tmpfs", 0, nullptr) == 0 && ::chdir("/mnt") == 0 &&
              ::umount2("/mnt", MNT_DETACH) == 0;
    if (::write(theirs.get(), ok ? "y" : "n", 1) == 1) ::pause();
    ::_exit(1);
  }
  char answer = 0;
  EXPECT_EQ(::read(ours.get(), &answer, 1), 1);
  EXPECT_EQ(answer, 'y') << "no mount could be made; the test needs root";
  EXPECT_THAT(find_obstacle({child}), testing::HasSubstr("has its working directory on mount "));
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
}

TEST(Obstacles, ProcessesThatAreGoneArePassedOver) { EXPECT_EQ(find_obstacle({1 << 22}), ""); }

}  // namespace
}  // namespace thaw::checkpoint
