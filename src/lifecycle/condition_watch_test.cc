#include <sys/stat.h>
#include <unistd.h>

#include "lifecycle/condition_test_target.h"

namespace thaw::lifecycle {
namespace {

using state::Condition;
using Kind = Condition::Kind;
using testing::HasSubstr;

Condition file(std::string path) { return {.kind = Kind::kFile, .path = std::move(path)}; }
Condition log(std::string pattern) { return {.kind = Kind::kLog, .pattern = std::move(pattern)}; }
Condition workers(int count) { return {.kind = Kind::kWorkers, .workers = count}; }
constexpr Kind kNotify = Kind::kNotify;

class WatchedConditions : public ConditionTest {
 protected:
  std::string at(const std::string& path) { return target_.root() + path; }
  void cri(const std::string& rest) {
    target_.append(target_.log_path(), "2026-01-02T03:04:05.678Z " + rest + "\n");
  }
  void notify(int pid, const std::string& text) {
    target_.append(target_.notify_path(), fmt::format("{} {}\n", pid, nlohmann::json(text).dump()));
  }
};

TEST_F(WatchedConditions, FileThatIsThereOrComes) {
  write_file(at("/a"), "");
  EXPECT_TRUE(holds(file("/a")));
  EXPECT_TRUE(holds_after(file("/b/../c"), [&] {
    make_directories(at("/b"));
    write_file(at("/c"), "");
  }));
  EXPECT_TRUE(holds_after(file("/d/e/f"), [&] {
    make_directories(at("/x/e"));
    write_file(at("/x/e/f"), "");
    ASSERT_EQ(::rename(at("/x").c_str(), at("/d").c_str()), 0);
  }));
  EXPECT_TRUE(holds(file("/d")));  // a directory will do
}

TEST_F(WatchedConditions, FileThatNeverComes) {
  gives_up(file("/no/such"), "file /no/such: it does not exist");
  write_file(at("/plain"), "");
  gives_up(file("/plain/below"), "file /plain/below: Not a directory");
  ASSERT_EQ(::symlink("loop", at("/loop").c_str()), 0);
  gives_up(file("/loop"), HasSubstr("symbolic links"));
  EXPECT_EQ(cancelled_after(file("/no/such"), [] {}), Code::kCancelled);
  clear_event(cancel_);
  EXPECT_EQ(code_of(file("relative")), Code::kInvalid);
}

TEST_F(WatchedConditions, FileLinksStayInsideTheRoot) {
  ASSERT_EQ(::symlink("/etc", at("/link").c_str()), 0);
  ASSERT_EQ(::symlink("../../../../../../../../etc/passwd", at("/up").c_str()), 0);
  ASSERT_TRUE(exists("/etc/passwd"));
  gives_up(file("/link/passwd"), HasSubstr("does not exist"));
  gives_up(file("/up"), HasSubstr("does not exist"));
  EXPECT_TRUE(holds_after(file("/link/passwd"), [&] {
    make_directories(at("/etc"));
    write_file(at("/etc/passwd"), "");
  }));
  EXPECT_TRUE(holds(file("/up")));
}

TEST_F(WatchedConditions, FileIsFoundHoweverItsDirectoriesMove) {
  for (int round = 0; round < 8; ++round) {
    std::string top = "/r" + std::to_string(round);
    EXPECT_TRUE(holds_after(file(top + "/link/b/c"), [&] {
      for (int i = 0; i < 5; ++i) {
        make_directories(at(top + "/a/b"));
        ::symlink("a", at(top + "/link").c_str());
        ::rmdir(at(top + "/a/b").c_str());
        ::rename(at(top + "/a").c_str(), at(top + "/old").c_str());
        ::unlink(at(top + "/link").c_str());
        ::rmdir(at(top + "/old").c_str());
        ::rmdir(at(top).c_str());
      }
      make_directories(at(top + "/a/b"));
      write_file(at(top + "/a/b/c"), "");
      ::symlink((top + "/a").c_str(), at(top + "/link").c_str());
    }));
  }
}

TEST_F(WatchedConditions, LogWithTheLineAlreadyOrLater) {
  cri("stdout F starting");
  cri("stderr F listening on port 80");
  EXPECT_TRUE(holds(log("listening on port [0-9]+$")));
  EXPECT_TRUE(holds_after(log("^ready$"), [&] { cri("stdout F ready"); }));
  gives_up(log("^nothing$"), "log /^nothing$/: not in 3 lines, the last: ready");
}

TEST_F(WatchedConditions, LogThatDoesNotExistYet) {
  gives_up(log("x"), HasSubstr("the log is empty"));
  EXPECT_TRUE(holds_after(log("ready"), [&] { cri("stdout F ready"); }));
}

TEST_F(WatchedConditions, LogJoinsThePartsOfALineByStream) {
  cri("stdout P rea");
  cri("stderr P dy-");
  cri("stderr F err");
  gives_up(log("ready|stdout"), HasSubstr("not in 1 line, the last: dy-err"));
  EXPECT_TRUE(holds(log("^dy-err$")));
  EXPECT_TRUE(holds_after(log("^ready$"), [&] { cri("stdout F dy"); }));
}

TEST_F(WatchedConditions, LogWrittenByHalfLines) {
  EXPECT_TRUE(holds_after(log("^ready$"), [&] {
    for (char c : std::string("2026-01-02T03:04:05.678Z stdout F ready\n"))
      target_.append(target_.log_path(), std::string(1, c));
  }));
}

TEST_F(WatchedConditions, LogIsFollowedThroughRotation) {
  cri("stdout F before");
  EXPECT_TRUE(holds_after(log("^ready$"), [&] {
    ::rename(target_.log_path().c_str(), (target_.log_path() + ".1").c_str());
    cri("stdout F ready");
  }));
}

TEST_F(WatchedConditions, LogOfAProgramThatNeverStopsWriting) {
  std::atomic<bool> stop = false;
  std::thread writer([&] {
    while (!stop) cri("stdout F noise");
  });
  gives_up(log("^ready$"), HasSubstr("the last: noise"));
  EXPECT_TRUE(holds_after(log("^ready$"), [&] { cri("stderr F ready"); }));
  stop = true;
  writer.join();
}

TEST_F(WatchedConditions, LogErrors) {
  EXPECT_EQ(code_of(log("(unclosed")), Code::kInvalid);
  EXPECT_EQ(cancelled_after(log("x"), [] {}), Code::kCancelled);
}

TEST_F(WatchedConditions, NotifyHoldsWithReady) {
  notify(7, "STATUS=loading \"weights\"\nMAINPID=7");
  notify(7, "READY=0");
  notify(7, "NOTREADY=1");
  target_.append(target_.notify_path(), "no datagram\n9 unquoted READY=1\n");
  gives_up({.kind = kNotify}, "notify: no READY=1 yet, status: loading \"weights\"");
  EXPECT_TRUE(holds_after({.kind = kNotify}, [&] { notify(8, "STATUS=up\nREADY=1"); }));
  EXPECT_TRUE(holds({.kind = kNotify}));
}

TEST_F(WatchedConditions, WorkersByEntries) {
  std::string dir = target_.thaw_dir() + "/workers";
  EXPECT_TRUE(holds_after(workers(3), [&] {
    make_directories(dir);
    for (const char* name : {"/1", "/.2.tmp", "/2", "/3"}) write_file(dir + name, "");
  }));
  ASSERT_EQ(::unlink((dir + "/2").c_str()), 0);
  gives_up(workers(3), "workers 3: 2 of 3 ready");
  EXPECT_TRUE(holds_after(workers(3), [&] {
    ASSERT_EQ(::rename((dir + "/.2.tmp").c_str(), (dir + "/2").c_str()), 0);
  }));
}

TEST_F(WatchedConditions, WorkersByDatagramsOfDistinctProcesses) {
  notify(7, "READY=1");
  notify(7, "READY=1");
  notify(8, "STATUS=x");
  gives_up(workers(2), "workers 2: 1 of 2 ready");
  EXPECT_TRUE(holds_after(workers(2), [&] { notify(8, "READY=1"); }));
  EXPECT_EQ(code_of(workers(0)), Code::kInvalid);
}

TEST_F(WatchedConditions, WorkersDirectoryCannotLeadOutside) {
  ASSERT_EQ(::symlink("/etc", (target_.thaw_dir() + "/workers").c_str()), 0);
  gives_up(workers(1), "workers 1: 0 of 1 ready");
}

}  // namespace
}  // namespace thaw::lifecycle
