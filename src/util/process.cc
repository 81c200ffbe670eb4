#include "util/process.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "util/error.h"

extern char** environ;

namespace thaw {
namespace {

constexpr std::size_t kCaptureLimit = 16u << 20;

// Runs in the child between fork and exec: only async-signal-safe calls.
[[noreturn]] void run_child(const char* file, char* const* argv, char* const* environment,
                            const ProcessOptions& options,
                            const std::vector<std::pair<int, int>>& moves, int highest,
                            int error_pipe) {
  auto fail = [&]() {
    int error_number = errno;
    [[maybe_unused]] ssize_t n = ::write(error_pipe, &error_number, sizeof error_number);
    ::_exit(127);
  };
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  if (options.new_session) ::setsid();
  if (options.new_ipc_namespace && ::unshare(CLONE_NEWIPC) != 0) fail();
  rlimit limit{options.file_limit, options.file_limit};
  if (options.file_limit && ::setrlimit(RLIMIT_FSIZE, &limit) != 0) fail();
  for (const std::string& file_name : options.join_cgroups) {
    int fd = ::open(file_name.c_str(), O_WRONLY | O_CLOEXEC);
    if (fd < 0 || ::write(fd, "0", 1) != 1) fail();
    ::close(fd);
  }
  // Two steps, so that no target number overwrites a source that is still needed.
  int parked = highest + 1;
  int sources[64];
  std::size_t count = std::min<std::size_t>(moves.size(), 64);
  for (std::size_t i = 0; i < count; ++i) {
    sources[i] = ::fcntl(moves[i].first, F_DUPFD_CLOEXEC, parked);
    if (sources[i] < 0) fail();
  }
  if (error_pipe <= highest) {
    error_pipe = ::fcntl(error_pipe, F_DUPFD_CLOEXEC, parked);
    if (error_pipe < 0) ::_exit(127);
  }
  for (std::size_t i = 0; i < count; ++i)
    if (::dup2(sources[i], moves[i].second) < 0) fail();
  if (!options.directory.empty() && ::chdir(options.directory.c_str()) != 0) fail();
  ::execvpe(file, argv, environment);
  fail();
  ::_exit(127);
}

std::vector<char*> pointers(const std::vector<std::string>& strings) {
  std::vector<char*> list;
  for (const std::string& text : strings) list.push_back(const_cast<char*>(text.c_str()));
  list.push_back(nullptr);
  return list;
}

}  // namespace

std::string ExitStatus::text() const {
  if (!signalled) return "exit code " + std::to_string(value);
  const char* name = ::sigabbrev_np(value);
  return "killed by signal " + std::to_string(value) +
         (name ? std::string(" (SIG") + name + ")" : std::string());
}

Process Process::spawn(const std::vector<std::string>& argv, const ProcessOptions& options) {
  if (argv.empty()) throw Error(Code::kInternal, "start process", "", "empty command");
  std::vector<char*> arguments = pointers(argv);
  std::vector<char*> variables = pointers(options.environment);
  char** environment = options.environment.empty() ? environ : variables.data();
  std::vector<std::pair<int, int>> moves = options.descriptors;
  Fd null_in;
  auto given = [&](int number) {
    return std::any_of(moves.begin(), moves.end(),
                       [&](auto& move) { return move.second == number; });
  };
  if (!given(0)) {
    null_in = Fd::open("/dev/null", O_RDONLY);
    moves.emplace_back(null_in.get(), 0);
  }
  int highest = 2;
  for (auto& move : moves) highest = std::max(highest, move.second);
  auto [error_read, error_write] = Fd::pipe();

  Process process = fork(argv[0], [&, error = error_write.get()] {
    run_child(argv[0].c_str(), arguments.data(), environment, options, moves, highest, error);
  });
  error_write.reset();
  int exec_errno = 0;
  ssize_t n;
  do n = ::read(error_read.get(), &exec_errno, sizeof exec_errno);
  while (n < 0 && errno == EINTR);
  if (n == sizeof exec_errno) {
    process.finish();
    throw_errno("start program", argv[0], exec_errno);
  }
  return process;
}

Process Process::fork(std::string_view object, const std::function<void()>& body) {
  // No handler of ours runs in the child.
  sigset_t all, before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  pid_t pid = ::fork();
  if (pid == 0) {
    for (int number = 1; number < 65; ++number) ::signal(number, SIG_DFL);
    body();
    ::_exit(0);
  }
  int fork_errno = errno;
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (pid < 0) throw_errno("fork for", object, fork_errno);
  try {
    return adopt(pid);
  } catch (const Error&) {  // no descriptor is left for it
    Process(pid, Fd()).finish();
    throw;
  }
}

Process::Process(Process&& other) noexcept
    : pid_(std::exchange(other.pid_, -1)), pidfd_(std::move(other.pidfd_)) {}

Process& Process::operator=(Process&& other) noexcept {
  if (this != &other) {
    finish();
    pid_ = std::exchange(other.pid_, -1);
    pidfd_ = std::move(other.pidfd_);
  }
  return *this;
}

Process::~Process() { finish(); }

void Process::finish() noexcept {
  if (pid_ < 0) return;
  ::kill(pid_, SIGKILL);
  siginfo_t info;
  while (::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED) < 0 && errno == EINTR) {
  }
  pid_ = -1;
}

std::optional<ExitStatus> Process::wait(Deadline deadline) {
  if (pid_ < 0) throw Error(Code::kInternal, "wait for process", "", "it was waited for already");
  if (!wait_readable(pidfd_.get(), deadline)) return std::nullopt;
  siginfo_t info{};
  int result;
  do result = ::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED);
  while (result < 0 && errno == EINTR);
  check(result, "wait for process", std::to_string(pid_));
  pid_ = -1;
  return ExitStatus{info.si_code != CLD_EXITED, info.si_status};
}

void Process::kill(int signal) const {
  if (pid_ > 0) ::kill(pid_, signal);
}

void Process::detach() {
  pid_ = -1;
  pidfd_.reset();
}

std::string RunResult::why() const {
  std::string text = timed_out ? "it did not finish in time and was killed" : status.text();
  std::string_view tail = err;
  while (!tail.empty() && (tail.back() == '\n' || tail.back() == ' ')) tail.remove_suffix(1);
  if (auto line = tail.rfind('\n'); line != std::string_view::npos) tail.remove_prefix(line + 1);
  if (!tail.empty()) text += ": " + std::string(tail.substr(0, 500));
  return text;
}

RunResult run(const std::vector<std::string>& argv, Deadline deadline,
              const ProcessOptions& options, std::string_view input, int cancel_fd) {
  auto [out_read, out_write] = Fd::pipe();
  auto [err_read, err_write] = Fd::pipe();
  Fd in_read, in_write;
  ProcessOptions with_pipes = options;
  with_pipes.new_session = true;
  if (!input.empty()) {
    std::tie(in_read, in_write) = Fd::pipe();
    set_nonblocking(in_write, true);
    with_pipes.descriptors.emplace_back(in_read.get(), 0);
  }
  with_pipes.descriptors.emplace_back(out_write.get(), 1);
  with_pipes.descriptors.emplace_back(err_write.get(), 2);
  Process process = Process::spawn(argv, with_pipes);
  in_read.reset();
  out_write.reset();
  err_write.reset();

  RunResult result;
  auto kill_group = [&] { ::kill(-process.pid(), SIGKILL); };
  auto drain = [](Fd& fd, std::string& into) {
    char buffer[65536];
    ssize_t n = ::read(fd.get(), buffer, sizeof buffer);
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) return;
    if (n <= 0) {
      fd.reset();
      return;
    }
    into.append(buffer, std::min(static_cast<std::size_t>(n),
                                 kCaptureLimit - std::min(kCaptureLimit, into.size())));
  };
  bool ended = false;
  // After the child's end only what already stands in the pipes is read: a grandchild may keep them
  // open for ever.
  while (out_read || err_read || !ended) {
    pollfd fds[5] = {{ended ? -1 : process.pidfd().get(), POLLIN, 0},
                     {out_read ? out_read.get() : -1, POLLIN, 0},
                     {err_read ? err_read.get() : -1, POLLIN, 0},
                     {in_write ? in_write.get() : -1, POLLOUT, 0},
                     {cancel_fd, POLLIN, 0}};
    int ready = ::poll(fds, 5, ended ? 0 : deadline.poll_ms());
    if (ready < 0 && errno == EINTR) continue;
    check(ready, "poll");
    if (fds[4].revents) {
      kill_group();
      throw Error(Code::kCancelled, "run program", argv[0], "it was cancelled");
    }
    if (ready == 0) {
      if (ended) break;
      result.timed_out = true;
      kill_group();
      deadline = Deadline::never();
      continue;
    }
    if (fds[1].revents) drain(out_read, result.out);
    if (fds[2].revents) drain(err_read, result.err);
    if (fds[3].revents) {
      ssize_t n = ::write(in_write.get(), input.data(), input.size());
      if (n > 0) input.remove_prefix(static_cast<std::size_t>(n));
      if (input.empty() || (n < 0 && errno != EAGAIN && errno != EINTR)) in_write.reset();
    }
    if (fds[0].revents) ended = true;
  }
  result.status = *process.wait(Deadline::never());
  return result;
}

std::uint64_t raise_limit(int resource) {
  rlimit limit{};
  check(::getrlimit(static_cast<__rlimit_resource>(resource), &limit), "read limit");
  limit.rlim_cur = limit.rlim_max;
  check(::setrlimit(static_cast<__rlimit_resource>(resource), &limit), "raise limit");
  return limit.rlim_max;
}

bool wait_readable(int fd, Deadline deadline, int cancel_fd) {
  for (;;) {
    pollfd fds[2] = {{fd, POLLIN, 0}, {cancel_fd, POLLIN, 0}};
    int ready = ::poll(fds, 2, deadline.poll_ms());
    if (ready < 0 && errno == EINTR) continue;
    check(ready, "poll");
    if (fds[1].revents) throw Error(Code::kCancelled, "wait", "", "it was cancelled");
    if (ready > 0) return true;
    if (deadline.passed()) return false;
  }
}

}  // namespace thaw
