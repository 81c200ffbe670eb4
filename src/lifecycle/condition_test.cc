#include "lifecycle/condition.h"

#include <signal.h>
#include <sys/resource.h>

#include "lifecycle/condition_test_target.h"

namespace thaw::lifecycle {
namespace {

using state::Condition;
using Kind = Condition::Kind;
using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;

Condition exec(std::vector<std::string> argv) {
  return {.kind = Kind::kExec, .argv = std::move(argv)};
}
Condition file(std::string path) { return {.kind = Kind::kFile, .path = std::move(path)}; }
Condition python(std::string callable) {
  return {.kind = Kind::kPython, .callable = std::move(callable)};
}
Condition after_ms(int ms) { return {.kind = Kind::kAfter, .after_us = ms * 1000}; }
Condition all(std::vector<Condition> children) {
  return {.kind = Kind::kAll, .children = std::move(children)};
}
Condition any(std::vector<Condition> children) {
  return {.kind = Kind::kAny, .children = std::move(children)};
}

class Conditions : public ConditionTest {
 protected:
  void module(const std::string& text) { write_file(target_.root() + "/app.py", text); }
  // Blocks until a process has opened the FIFO for writing, and gives its pid, which it wrote.
  int pid_from(const std::string& fifo) { return std::stoi(read_file(fifo)); }
  std::string make_fifo() {
    std::string path = target_.root() + "/fifo";
    EXPECT_EQ(::mkfifo(path.c_str(), 0600), 0);
    return path;
  }
  bool gone(int pid) { return ::kill(pid, 0) != 0 && errno == ESRCH; }
};

TEST_F(Conditions, AfterHoldsWhenTheTimeHasPassed) {
  std::int64_t start = monotonic_us();
  EXPECT_TRUE(holds(after_ms(30)));
  EXPECT_GE(monotonic_us() - start, 30'000);
  EXPECT_TRUE(holds(after_ms(0)));
  gives_up(after_ms(60'000), HasSubstr("after 1m"), 10);
  EXPECT_EQ(cancelled_after(after_ms(60'000), [] {}), Code::kCancelled);
}

TEST_F(Conditions, ExecHoldsWhenTheProgramSucceeds) {
  EXPECT_TRUE(holds_after(exec({"test", "-e", "ready"}),
                          [&] { write_file(target_.root() + "/ready", ""); }));
  EXPECT_TRUE(notes_.empty());
}

TEST_F(Conditions, ExecThatFailsIsTriedAgain) {
  EXPECT_TRUE(holds(exec({"sh", "-c", "echo x >> tries; test $(wc -l < tries) = 3"})));
  EXPECT_EQ(target_.execs_, 3);
  gives_up(exec({"sh", "-c", "echo not yet >&2; exit 3"}),
           "exec sh -c echo not yet >&2; exit 3: exit code 3: not yet");
  gives_up(exec({"sh", "-c", "echo on stdout; exit 1"}), HasSubstr("exit code 1: on stdout"));
}

TEST_F(Conditions, ExecThatHangsIsKilledAtTheDeadline) {
  std::string pid_file = target_.root() + "/pid";
  for (int milliseconds = 100; !exists(pid_file) && milliseconds < 20'000; milliseconds *= 4)
    gives_up(exec({"sh", "-c", "echo $$ > new; mv new pid; exec sleep 1000"}),
             HasSubstr("did not finish in time"), milliseconds);
  EXPECT_TRUE(gone(std::stoi(read_file(pid_file))));
}

TEST_F(Conditions, ExecIsKilledWhenCancelled) {
  std::string fifo = make_fifo();
  int pid = 0;
  EXPECT_EQ(cancelled_after(exec({"sh", "-c", "echo $$ > fifo; exec sleep 1000"}),
                            [&] { pid = pid_from(fifo); }),
            Code::kCancelled);
  EXPECT_TRUE(gone(pid));
}

TEST_F(Conditions, ExecThatCannotBeRunIsSaidOnce) {
  target_.on_exec_ = [&](int count) {
    if (count == 3) signal_event(cancel_);
  };
  EXPECT_EQ(code_of(exec({"/no/such/program"})), Code::kCancelled);
  EXPECT_THAT(notes_, ElementsAre(HasSubstr("No such file")));
  clear_event(cancel_);
  notes_.clear();
  gives_up(exec({"/no/such/program"}), HasSubstr("/no/such/program"));
  notes_.clear();
  gives_up(exec({"sh", "-c", "exit 127"}), HasSubstr("127"));
  EXPECT_THAT(notes_, Contains(HasSubstr("cannot be run")));
  EXPECT_EQ(code_of(exec({})), Code::kInvalid);
}

TEST_F(Conditions, PythonHoldsWhenTheFunctionReturnsTrue) {
  module(
      "import os\ncalls = 0\ndef ready():\n  global calls\n  calls += 1\n  print('noise')\n  "
      "return calls > 3 and os.path.exists('go')\n");
  EXPECT_TRUE(holds_after(python("app:ready"), [&] { write_file(target_.root() + "/go", ""); }));
  EXPECT_EQ(target_.execs_, 1);  // one process all along
  EXPECT_TRUE(notes_.empty());
}

TEST_F(Conditions, PythonTakesMethodsAndCoroutines) {
  module(
      "class Server:\n  def ok(self): return 1\nserver = Server()\nasync def later(): return "
      "True\nasync def never(): return False\n");
  EXPECT_TRUE(holds(python("app:server.ok")));
  EXPECT_TRUE(holds(python("app:later")));
  gives_up(python("app:never"), "python app:never: it has not returned true yet", 300);
}

TEST_F(Conditions, PythonExceptionsAreEachReportedOnceAndTriedAgain) {
  module(
      "import os\ndef ready():\n  if os.path.exists('go'): return True\n  if "
      "os.path.exists('two'): raise KeyError('second\\nline')\n"
      "  raise ValueError('f\xc3\xb6rst')\n");
  // The events drive the program on, so that it gets no further than what was reported.
  on_note_ = [&] { write_file(target_.root() + (notes_.size() == 1 ? "/two" : "/go"), ""); };
  EXPECT_TRUE(holds(python("app:ready")));
  EXPECT_THAT(notes_, ElementsAre(HasSubstr("python app:ready: ValueError: f\\xf6rst (" +
                                            target_.root() + "/app.py:5)"),
                                  HasSubstr("KeyError: 'second\\nline'")));
}

TEST_F(Conditions, PythonThatRaisesOnIsOneEventAndOneProcess) {
  module(
      "import os\ndef ready():\n  open('calls', 'a').write('x')\n  if os.path.getsize('calls') == "
      "4: return True\n"
      "  raise RuntimeError('no')\n");
  EXPECT_TRUE(holds(python("app:ready")));
  EXPECT_THAT(notes_, ElementsAre(HasSubstr("RuntimeError: no")));
  EXPECT_EQ(target_.execs_, 2);
}

TEST_F(Conditions, PythonSaysWhatIsWrongWithTheModule) {
  gives_up(python("absent:ready"), HasSubstr("ModuleNotFoundError: No module named 'absent'"), 300);
  module("def ready(:\n");
  gives_up(python("app:ready"), HasSubstr("SyntaxError"), 300);
  module("import sys\nsys.exit(4)\n");
  gives_up(python("app:ready"), HasSubstr("SystemExit"), 300);
  target_.python_ = "/no/python";
  gives_up(python("app:ready"), HasSubstr("/no/python"));
  for (const char* wrong : {"app", "app:", ":ready", "a:b:c"})
    EXPECT_EQ(code_of(python(wrong)), Code::kInvalid) << wrong;
}

TEST_F(Conditions, PythonModuleThatComesLaterIsFound) {
  on_note_ = [&] { module("def ready(): return True\n"); };
  EXPECT_TRUE(holds(python("app:ready")));
  EXPECT_THAT(notes_, ElementsAre(HasSubstr("No module named 'app'")));
}

TEST_F(Conditions, PythonLeavesNoProcess) {
  std::string fifo = make_fifo();
  module("import os\nopen('fifo', 'w').write(str(os.getpid()))\ndef ready(): return False\n");
  int pid = 0;
  EXPECT_EQ(cancelled_after(python("app:ready"), [&] { pid = pid_from(fifo); }), Code::kCancelled);
  EXPECT_TRUE(gone(pid));
}

TEST_F(Conditions, AllHoldsWhenEachDoes) {
  auto create = [&](const char* name) { write_file(target_.root() + name, ""); };
  EXPECT_TRUE(holds_after(all({file("/a"), any({file("/never"), file("/b")}), after_ms(5)}), [&] {
    create("/a");
    create("/b");
  }));
  gives_up(all({file("/a"), file("/c"), any({file("/d"), file("/e")})}),
           "file /c: it does not exist; file /d: it does not exist; file /e: it does not exist");
}

TEST_F(Conditions, AnyHoldsWithTheFirstAndStopsTheOthers) {
  std::string fifo = make_fifo();
  int pid = 0;
  EXPECT_TRUE(holds_after(any({exec({"sh", "-c", "echo $$ > fifo; exec sleep 1000"}),
                               all({file("/a"), after_ms(1)}), file("/never")}),
                          [&] {
                            pid = pid_from(fifo);
                            write_file(target_.root() + "/a", "");
                          }));
  EXPECT_TRUE(gone(pid));
}

TEST_F(Conditions, GroupsAreCancelledWhole) {
  std::string fifo = make_fifo();
  int pid = 0;
  EXPECT_EQ(cancelled_after(all({any({exec({"sh", "-c", "echo $$ > fifo; exec sleep 1000"})}),
                                 file("/never"), after_ms(60'000)}),
                            [&] { pid = pid_from(fifo); }),
            Code::kCancelled);
  EXPECT_TRUE(gone(pid));
}

TEST_F(Conditions, WhatIsWrongInsideAGroupEndsIt) {
  Condition broken{.kind = Kind::kLog, .pattern = "("};
  EXPECT_EQ(code_of(all({file("/never"), broken})), Code::kInvalid);
  EXPECT_EQ(code_of(any({file("/never"), all({broken})})), Code::kInvalid);
  EXPECT_EQ(code_of(all({})), Code::kInvalid);
}

// Where the sanitizers' own memory does not count in.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
TEST_F(Conditions, AGroupThatFindsNoThreadsEndsThoseThatItHas) {
  std::uint64_t pages = std::stoull(read_file("/proc/self/statm"));
  rlimit before{};
  check(::getrlimit(RLIMIT_AS, &before), "read limit");
  // Room for the stacks of a few.
  rlimit tight{pages * 4096 + (100 << 20), before.rlim_max};
  check(::setrlimit(RLIMIT_AS, &tight), "set limit");
  Code all_code = code_of(all(std::vector<Condition>(100, after_ms(60'000))));
  Code any_code = code_of(any(std::vector<Condition>(100, after_ms(60'000))));
  check(::setrlimit(RLIMIT_AS, &before), "set limit");
  EXPECT_EQ(all_code, Code::kExhausted);
  EXPECT_EQ(any_code, Code::kExhausted);
}
#endif

TEST_F(Conditions, CancelledBeforeItBegins) {
  signal_event(cancel_);
  write_file(target_.root() + "/a", "");
  EXPECT_EQ(code_of(file("/a")), Code::kCancelled);
  EXPECT_EQ(code_of(all({file("/a")})), Code::kCancelled);
}

TEST(ReadinessProbe, KeepsWhatCanBeAskedAgain) {
  Condition http{.kind = Kind::kHttp, .port = 80, .path = "/"},
      log{.kind = Kind::kLog, .pattern = "x"};
  Condition notify{.kind = Kind::kNotify}, workers{.kind = Kind::kWorkers, .workers = 2};
  for (const Condition& kept :
       {http, exec({"true"}), file("/a"), python("a:b"), Condition{.kind = Kind::kTcp, .port = 1}})
    EXPECT_EQ(readiness_probe(kept), kept);
  for (const Condition& past :
       {log, notify, workers, after_ms(1), all({}), all({log, any({notify, workers})})})
    EXPECT_EQ(readiness_probe(past), std::nullopt);
  EXPECT_EQ(readiness_probe(all({log, http, any({after_ms(1), file("/a")}), any({log})})),
            all({http, any({file("/a")})}));
}

}  // namespace
}  // namespace thaw::lifecycle
