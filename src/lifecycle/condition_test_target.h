// A replica for the tests of conditions: a network namespace of its own, a temporary directory as
// root, real processes for exec.
#pragma once

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <fstream>

#include "lifecycle/condition.h"
#include "network/network.h"
#include "util/error.h"
#include "util/file.h"

namespace thaw::lifecycle {

class TestTarget : public ProbeTarget {
 public:
  TestTarget()
      : dir_((std::filesystem::temp_directory_path() / ("thaw-condition-" + random_hex()))
                 .string()) {
    make_directories(root());
    make_directories(thaw_dir());
    // In a thread of its own: whoever unshares does not come back.
    std::thread([this] {
      if (::unshare(CLONE_NEWNET) != 0) return;
      Fd socket(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
      ifreq lo{};
      std::strcpy(lo.ifr_name, "lo");
      lo.ifr_flags = IFF_UP;
      if (::ioctl(socket.get(), SIOCSIFFLAGS, &lo) == 0)
        netns_ = Fd::open("/proc/thread-self/ns/net", O_RDONLY);
    }).join();
    if (!netns_) throw std::runtime_error("cannot make a network namespace: this test needs root");
  }
  ~TestTarget() override { remove_tree(dir_); }

  int netns_fd() const override { return netns_.get(); }
  Fd open_root() const override { return Fd::open(root(), O_PATH | O_DIRECTORY); }
  std::string thaw_dir() const override { return dir_ + "/thaw"; }
  std::string log_path() const override { return dir_ + "/log"; }
  std::string notify_path() const override { return dir_ + "/notify"; }
  std::string python() const override { return python_; }
  RunResult exec(const std::vector<std::string>& argv, Deadline deadline, const std::string& input,
                 int cancel_fd) override {
    int count = ++execs_;
    if (on_exec_) on_exec_(count);
    ProcessOptions options;
    options.directory = root();
    network::NetnsScope inside(netns_.get());
    return run(argv, deadline, options, input, cancel_fd);
  }

  std::string root() const { return dir_ + "/root"; }
  void append(const std::string& path, const std::string& text) const {
    std::ofstream(path, std::ios::app) << text;
  }
  // Starts a process inside the namespace, in the root directory.
  Process start(const std::vector<std::string>& argv, ProcessOptions options = {}) const {
    network::NetnsScope inside(netns_.get());
    options.directory = root();
    return Process::spawn(argv, options);
  }

  std::string python_ = "/usr/bin/python3";
  std::atomic<int> execs_ = 0;
  std::function<void(int count)> on_exec_;

 private:
  std::string dir_;
  Fd netns_;
};

class ConditionTest : public testing::Test {
 protected:
  using Condition = state::Condition;
  using Kind = Condition::Kind;

  WaitOutcome wait(const Condition& condition, Deadline deadline = Deadline::after_ms(30'000)) {
    return wait_condition(condition, target_, deadline, cancel_.get(),
                          [this](const std::string& line) {
                            std::lock_guard lock(mutex_);
                            notes_.push_back(line);
                            if (on_note_) on_note_();
                          });
  }
  bool holds(const Condition& condition) { return wait(condition).result == WaitResult::kHolds; }
  // Gives up at a deadline, having seen this last. A busy machine may need a later deadline to see
  // it.
  void gives_up(const Condition& condition, const testing::Matcher<const std::string&>& last,
                int milliseconds = 60) {
    for (;; milliseconds *= 4) {
      WaitOutcome outcome = wait(condition, Deadline::after_ms(milliseconds));
      ASSERT_EQ(outcome.result, WaitResult::kTimedOut);
      if (!testing::Matches(last)(outcome.last) && milliseconds < 20'000) continue;
      EXPECT_THAT(outcome.last, last);
      return;
    }
  }
  // Runs `act` in a thread while the condition is waited for. It may be early: then the condition
  // holds at once, which is right too.
  bool holds_after(const Condition& condition, const std::function<void()>& act) {
    std::thread thread(act);
    bool held = holds(condition);
    thread.join();
    return held;
  }
  Code code_of(const Condition& condition) {
    try {
      wait(condition);
    } catch (const Error& error) {
      return error.code();
    }
    ADD_FAILURE() << "no error";
    return Code::kInternal;
  }
  Code cancelled_after(const Condition& condition, const std::function<void()>& act) {
    std::thread thread([&] {
      act();
      signal_event(cancel_);
    });
    Code code = code_of(condition);
    thread.join();
    return code;
  }

  TestTarget target_;
  Fd cancel_ = Fd::event();
  std::mutex mutex_;
  std::vector<std::string> notes_;
  std::function<void()> on_note_;
};

}  // namespace thaw::lifecycle
