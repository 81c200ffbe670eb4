// exec and python: programs that run in the replica for as long as we ask.
#include "lifecycle/condition_kinds.h"
#include "lifecycle/loading_py.h"
#include "util/error.h"
#include "util/file.h"

namespace thaw::lifecycle {
namespace {

constexpr std::int64_t kFirstPauseUs = 100'000, kMostPauseUs = 1'000'000;
// A condition whose exceptions are different every time is asked on, but no longer reported.
constexpr int kMostExceptions = 10;
constexpr std::string_view kMarker = "thaw-exception: ";

// `python3 -c <this, after loading.py> module:function`. Ends with 0 as soon as the function
// returns something true. The caller sees output only at the end, so an exception that is not yet
// known (its lines come on stdin; "*": all are) is written to stderr and ends the program; known
// ones are tried again in here, where what was imported stays imported. What the function prints
// goes nowhere: it may be called a hundred times a second.
constexpr const char* kHelper = R"py(
import os, time

name = sys.argv[1]
known = set(sys.stdin.read().splitlines())
report = os.dup(2)
null = os.open(os.devnull, os.O_RDWR)
for stream in 0, 1, 2:
    os.dup2(null, stream)
sys.argv = [name.partition(":")[0]]

def describe(error):
    import traceback
    line = traceback.format_exception_only(type(error), error)[-1]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith("<"):
            line += " (%s:%s)" % (frame.filename, frame.lineno)
            break
    return " ".join(line.split()).encode("ascii", "backslashreplace").decode()[:500]

pause = 0.1
while True:
    started = time.monotonic()
    try:
        result = attribute_of(module_of(name, os.getcwd()), name)()
        if hasattr(result, "__await__"):
            import asyncio
            result = asyncio.run(result)
        if result:
            os._exit(0)
    except BaseException as error:
        line = describe(error)
        if line not in known and "*" not in known:
            os.write(report, ("thaw-exception: %s\n" % line).encode())
            os._exit(3)
        time.sleep(pause)
        pause = min(2 * pause, 1)
        continue
    pause = 0.1
    time.sleep(max(0.01, min(0.1, time.monotonic() - started)))
)py";

// nullopt when it could not even be started: that is an event, and may be better next time.
std::optional<RunResult> run_inside(Wait& wait, const std::vector<std::string>& argv,
                                    const std::string& input) {
  try {
    return wait.target.exec(argv, wait.deadline, input, wait.cancel_fd);
  } catch (const Error& error) {
    wait.pause(0);  // when this is why: cancelled, in our words
    if (error.code() == Code::kCancelled) throw;
    wait.see(error.what());
    wait.tell(error.what());
    return std::nullopt;
  }
}

// As shells and container runtimes report a program that cannot be executed.
bool could_not_run(const RunResult& result) {
  return !result.timed_out && !result.status.signalled &&
         (result.status.value == 126 || result.status.value == 127);
}

std::optional<std::string> exception_of(const RunResult& result) {
  auto at = result.err.rfind(kMarker);
  if (at == std::string::npos) return std::nullopt;
  at += kMarker.size();
  return result.err.substr(at, result.err.find('\n', at) - at);
}

}  // namespace

bool wait_exec(Wait& wait) {
  if (wait.condition.argv.empty())
    throw Error(Code::kInvalid, "probe", condition_text(wait.condition), "there is no command",
                "give a program and its arguments");
  Backoff backoff(kFirstPauseUs, kMostPauseUs);
  while (!wait.deadline.passed()) {
    if (auto result = run_inside(wait, wait.condition.argv, {})) {
      std::string why = result->why();
      if (last_line(result->err).empty() && !last_line(result->out).empty())
        why += ": " + last_line(result->out);
      wait.see(why);
      if (result->ok()) return true;
      if (could_not_run(*result)) wait.tell("it cannot be run: " + why);
    }
    if (!wait.pause(backoff.next())) break;
  }
  return false;
}

bool wait_python(Wait& wait) {
  const std::string& callable = wait.condition.callable;
  auto colon = callable.find(':');
  if (colon == std::string::npos || colon == 0 || colon + 1 == callable.size() ||
      callable.find(':', colon + 1) != std::string::npos)
    throw Error(Code::kInvalid, "probe", condition_text(wait.condition),
                "this is not module:function",
                "name a function without arguments, such as app.health:ready");
  std::vector<std::string> argv{wait.target.python(), "-c", std::string(kLoadingPy) + kHelper,
                                callable};
  wait.see("it has not returned true yet");
  std::string known;
  int exceptions = 0;
  Backoff backoff(kFirstPauseUs, kMostPauseUs);
  while (!wait.deadline.passed()) {
    if (auto result = run_inside(wait, argv, known)) {
      if (result->ok()) {
        wait.see("it returned true");
        return true;
      }
      if (auto line = exception_of(*result)) {
        wait.see(*line);
        wait.tell(*line);
        known += (++exceptions < kMostExceptions ? *line : std::string("*")) + "\n";
      } else if (!result->timed_out) {
        wait.see(result->why());
        wait.tell("it cannot be asked: " + result->why());
      }
    }
    if (!wait.pause(backoff.next())) break;
  }
  return false;
}

}  // namespace thaw::lifecycle
