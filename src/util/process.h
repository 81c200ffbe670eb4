// Child processes: started without a shell, waited for by pidfd, killed after their deadline.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "util/clock.h"
#include "util/fd.h"

namespace thaw {

// How a process ended.
struct ExitStatus {
  bool signalled = false;
  int value = 0;  // exit code, or the signal's number
  bool ok() const { return !signalled && value == 0; }
  int shell_code() const { return signalled ? 128 + value : value; }  // as a shell reports it
  std::string text() const;  // "exit code 3", "killed by signal 9 (SIGKILL)"
};

struct ProcessOptions {
  std::vector<std::string> environment;  // KEY=VALUE; empty: inherit ours
  std::string directory;                 // empty: ours
  std::vector<std::pair<int, int>>
      descriptors;  // {ours, number in the child}; everything else is closed on exec
  std::vector<std::string>
      join_cgroups;          // cgroup.procs files the child writes itself to before exec
  bool new_session = false;  // setsid
  bool new_ipc_namespace = false;
  std::uint64_t file_limit = 0;  // bytes that a file it writes may have; 0: no limit
};

// A started child. The destructor kills (SIGKILL) and reaps a child that was not waited for.
class Process {
 public:
  // argv[0] is looked up in PATH. Throws Error when the program cannot be executed (the exec's own
  // errno). The child starts with every signal unblocked and at its default. Callable from any
  // thread.
  static Process spawn(const std::vector<std::string>& argv, const ProcessOptions& options = {});

  // A child that runs `body`, with every signal blocked and at its default, and ends with it. Where
  // there are threads, body makes only calls that are safe after a fork of them. `object` is what
  // an Error says it was for.
  static Process fork(std::string_view object, const std::function<void()>& body);

  // Takes over a child of ours that something else started (runc, CRIU).
  static Process adopt(int pid) { return Process(pid, Fd::pidfd(pid)); }

  Process(Process&&) noexcept;
  Process& operator=(Process&&) noexcept;
  ~Process();

  int pid() const { return pid_; }
  const Fd& pidfd() const { return pidfd_; }  // readable when the process has ended
  // Waits until it ends; nullopt when the deadline passed first (it runs on). Reaps it.
  std::optional<ExitStatus> wait(Deadline deadline);
  void kill(int signal) const;  // no error when it is gone
  void detach();                // forget it: neither killed nor reaped by us

 private:
  Process(int pid, Fd pidfd) : pid_(pid), pidfd_(std::move(pidfd)) {}
  void finish() noexcept;
  int pid_ = -1;
  Fd pidfd_;
};

struct RunResult {
  ExitStatus status;
  bool timed_out = false;  // killed by us at the deadline
  std::string out, err;    // at most 16 MiB each, the rest is read and dropped
  bool ok() const { return !timed_out && status.ok(); }
  std::string why() const;  // for messages: time-out or status, and the last line of stderr
};

// Runs a program to its end with `input` on its stdin (empty: /dev/null); kills it and its process
// group at the deadline. `cancel_fd` (may be -1): when readable the program is killed and Error
// kCancelled thrown.
RunResult run(const std::vector<std::string>& argv, Deadline deadline,
              const ProcessOptions& options = {}, std::string_view input = {}, int cancel_fd = -1);

// Raises a limit of this process (RLIMIT_NOFILE, RLIMIT_AS, ...) to what it may be raised to, and
// returns that. Its children have it, too.
std::uint64_t raise_limit(int resource);

// Waits until fd is readable. False at the deadline. Throws kCancelled when cancel_fd (may be -1)
// is readable first.
bool wait_readable(int fd, Deadline deadline, int cancel_fd = -1);

}  // namespace thaw
