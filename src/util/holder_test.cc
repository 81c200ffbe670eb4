#include "util/holder.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <thread>

#include "util/clock.h"
#include "util/file.h"
#include "util/packet.h"
#include "util/process.h"

namespace thaw {
namespace {

// The holder's process is a thread here; a daemon is whoever has the other end.
class HolderTest : public ::testing::Test {
 protected:
  HolderTest() : folder("/tmp/thaw-holder-" + random_hex()) {
    std::signal(SIGPIPE, SIG_IGN);
    auto [ours, theirs] = Fd::socket_pair(SOCK_SEQPACKET);
    first = std::move(ours);
    process = std::thread([this, fd = std::move(theirs)]() mutable {
      hold_descriptors(folder, std::move(fd), 300'000);
      signal_event(ended);
    });
  }
  ~HolderTest() override {
    first.reset();
    process.join();
    remove_tree(folder);
  }
  std::string ask(const Fd& daemon, const std::string& text, int descriptor = -1) {
    EXPECT_TRUE(send_packet(daemon, text, descriptor));
    auto answer = receive_packet(daemon);
    return answer ? answer->text : "";
  }
  bool has_ended() { return wait_readable(ended.get(), Deadline::after_ms(10'000)); }

  std::string folder;
  Fd first, ended = Fd::event();
  std::thread process;
};

TEST_F(HolderTest, TheNextDaemonGetsWhatTheFirstLeft) {
  auto [read, write] = Fd::pipe();
  auto [other_read, other_write] = Fd::pipe();
  EXPECT_EQ(ask(first, "kone", read.get()), ".");
  EXPECT_EQ(ask(first, "kgiven up", other_read.get()), ".");
  EXPECT_EQ(ask(first, "dgiven up"), ".");
  struct stat info {};
  ASSERT_EQ(::stat(folder.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0700u);
  ASSERT_EQ(::stat((folder + "/holder").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0600u);
  first.reset();
  read.reset();
  {
    Holder next(folder);
    Fd found = next.take("one");
    ASSERT_TRUE(found);
    write_all(write, "x");
    char byte = 0;
    EXPECT_EQ(::read(found.get(), &byte, 1), 1);
    EXPECT_FALSE(next.take("given up"));
    next.dismiss();
  }
  EXPECT_TRUE(has_ended());
  EXPECT_FALSE(exists(folder + "/holder"));
}

TEST_F(HolderTest, WhatNobodyTakesIsDropped) {
  auto [read, write] = Fd::pipe();
  EXPECT_EQ(ask(first, "kone", read.get()), ".");
  first.reset();
  read.reset();
  Holder next(folder);
  next.drop_untaken();
  EXPECT_EQ(::write(write.get(), "x", 1), -1);  // no reader is left
  EXPECT_EQ(errno, EPIPE);
  next.dismiss();
}

TEST_F(HolderTest, ItEndsWhenNobodyComes) {
  first.reset();
  EXPECT_TRUE(has_ended());
}

}  // namespace
}  // namespace thaw
