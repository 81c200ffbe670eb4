#include "runtime/enter.h"

#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "runtime/container.h"
#include "runtime/seccomp.h"
#include "util/error.h"
#include "util/packet.h"

namespace thaw::runtime {
namespace {

// What the entered process and the one between report: one message each over a SEQPACKET socket.
struct Report {
  int pid = 0;           // of the entered process, host's number
  int error_number = 0;  // with `step`
  char step[48] = {};
};

bool send_report(int socket, const Report& report, int fd) {
  return send_packet(socket, {reinterpret_cast<const char*>(&report), sizeof report}, fd);
}

bool receive_report(const Fd& socket, Report& report, Fd& fd) {
  auto packet = receive_packet(socket);
  if (!packet || packet->text.size() != sizeof report) return false;
  std::memcpy(&report, packet->text.data(), sizeof report);
  if (packet->descriptor) fd = std::move(packet->descriptor);
  return true;
}

[[noreturn]] void give_up(int socket, const char* step) {
  Report report;
  report.error_number = errno;
  std::strncpy(report.step, step, sizeof report.step - 1);
  send_report(socket, report, -1);
  ::_exit(126);
}

void drop_capabilities(int socket, std::uint64_t keep) {
  for (int capability = 0; capability < 64; ++capability) {
    if (keep & (std::uint64_t{1} << capability)) continue;
    if (::prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0 && errno != EINVAL)
      give_up(socket, "drop capability");
  }
}

void set_capabilities(int socket, std::uint64_t keep) {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2] = {};
  for (int word = 0; word < 2; ++word) {
    data[word].permitted = data[word].effective = static_cast<std::uint32_t>(keep >> (32 * word));
    data[word].inheritable = 0;
  }
  if (::syscall(SYS_capset, &header, data) != 0) give_up(socket, "set capabilities");
}

// A restored container has a time namespace of its own, in which its clocks go on from the dump. A
// process with another one could be dumped with it, but never restored: CRIU has one for each tree.
int namespaces_of(int pid) {
  int wanted = CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC;
  struct stat own, its;
  if (::stat("/proc/self/ns/time", &own) == 0 &&
      ::stat(fmt::format("/proc/{}/ns/time", pid).c_str(), &its) == 0 && own.st_ino != its.st_ino)
    wanted |= CLONE_NEWTIME;
  return wanted;
}

// Before the container can see the process: nothing in it that is ours may be reached through
// /proc/PID, by ptrace or by pidfd_getfd, which its programs may use on each other. What is left
// are standard descriptors, the report's socket and the container's pidfd, at fixed numbers.
constexpr int kSocket = 3, kInit = 4, kBeyond = 5;
void shut_off(int socket, int init, const int (&given)[3], const ProcessLimits& limits,
              const char* oom_score_adj) {
  // A copy of our memory is not to be read, and our program not to be opened by its link.
  if (::prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0) give_up(socket, "close memory");
  int file = ::open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
  if (file < 0 || ::write(file, oom_score_adj, std::strlen(oom_score_adj)) < 0)
    give_up(socket, "set oom_score_adj");
  const rlimit descriptors{limits.descriptors, limits.descriptors},
      locked{limits.locked_bytes, limits.locked_bytes};
  // Parked above all target numbers first.
  int all[5] = {given[0], given[1], given[2], socket, init};
  for (int& fd : all)
    if ((fd = ::fcntl(fd, F_DUPFD, 100)) < 0) give_up(socket, "duplicate descriptor");
  for (int number = 0; number < kBeyond; ++number)
    if (::dup2(all[number], number) < 0) give_up(all[3], "set descriptors");
  if (::syscall(SYS_close_range, unsigned{kBeyond}, ~0u, 0u) != 0)
    give_up(kSocket, "close descriptors");
  if (::setrlimit(RLIMIT_NOFILE, &descriptors) != 0 || ::setrlimit(RLIMIT_MEMLOCK, &locked) != 0)
    give_up(kSocket, "set limits");
}

// The entered process. Only calls that are safe after a fork of a threaded process.
[[noreturn]] void run_entered(const EnterOptions& options, int socket, char* const* argv,
                              char* const* env, const char* path, std::uint64_t capabilities,
                              const sock_fprog& filter) {
  ::setsid();
  if (options.terminal) {
    int master = ::open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (master < 0) give_up(socket, "open /dev/ptmx in the container");
    int unlock = 0;
    if (::ioctl(master, TIOCSPTLCK, &unlock) != 0) give_up(socket, "unlock terminal");
    int slave = ::ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY);
    if (slave < 0) give_up(socket, "open terminal");
    winsize size{static_cast<unsigned short>(options.rows),
                 static_cast<unsigned short>(options.columns), 0, 0};
    ::ioctl(slave, TIOCSWINSZ, &size);
    ::fchown(slave, options.uid, static_cast<gid_t>(-1));
    if (::ioctl(slave, TIOCSCTTY, 0) != 0) give_up(socket, "take terminal");
    for (int number = 0; number < 3; ++number) ::dup2(slave, number);
    if (slave > 2) ::close(slave);
    Report report;
    if (!send_report(socket, report, master)) give_up(socket, "send terminal");
  }
  drop_capabilities(socket, capabilities);
  if (::setgroups(options.groups.size(), options.groups.data()) != 0) give_up(socket, "set groups");
  if (::setgid(options.gid) != 0) give_up(socket, "set group");
  if (::setuid(options.uid) != 0) give_up(socket, "set user");
  if (options.uid == 0) set_capabilities(socket, capabilities);
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) give_up(socket, "set no_new_privs");
  if (::chdir(options.cwd.c_str()) != 0) give_up(socket, "change directory");
  ::umask(022);
  // The report's socket is all there is left.
  if (::syscall(SYS_close_range, 3u, ~0u, 1u << 2 /* CLOSE_RANGE_CLOEXEC */) != 0)
    give_up(socket, "close descriptors");
  ::environ = const_cast<char**>(env);
  if (path) ::setenv("PATH", path, 1);
  if (::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter) != 0)
    give_up(socket, "set seccomp filter");
  ::execvp(argv[0], argv);
  give_up(socket, "start program");
}

}  // namespace

Entered enter_container(int init_pid, const EnterOptions& options) {
  if (options.argv.empty())
    throw Error(Code::kInvalid, "execute in container", "", "the command is empty");
  std::vector<char*> argv, env;
  const char* path = nullptr;
  for (const std::string& text : options.argv) argv.push_back(const_cast<char*>(text.c_str()));
  argv.push_back(nullptr);
  for (const std::string& text : options.env) {
    env.push_back(const_cast<char*>(text.c_str()));
    if (text.rfind("PATH=", 0) == 0) path = text.c_str() + 5;
  }
  env.push_back(nullptr);
  Fd init;
  try {
    init = Fd::pidfd(init_pid);
  } catch (const Error&) {
    throw Error(Code::kConflict, "execute in container", options.argv[0],
                "the container has ended");
  }
  std::vector<Fd> groups;
  for (const std::string& file : options.procs_files) groups.push_back(Fd::open(file, O_WRONLY));
  auto [ours, theirs] = Fd::socket_pair(SOCK_SEQPACKET);
  std::uint64_t capabilities = default_capabilities();
  ProcessLimits limits = process_limits();
  std::string oom_score_adj = std::to_string(limits.oom_score_adj);
  Fd null = Fd::open("/dev/null", O_RDWR);
  int given[3] = {options.input, options.output, options.error};
  for (int& fd : given)
    if (fd < 0 || options.terminal) fd = null.get();
  const std::vector<sock_filter>& program = seccomp_program();
  sock_fprog filter{static_cast<unsigned short>(program.size()),
                    const_cast<sock_filter*>(program.data())};

  int namespaces = namespaces_of(init_pid);

  Process between = Process::fork(options.argv[0], [&, socket = theirs.get()]() mutable {
    for (Fd& group : groups)
      if (::write(group.get(), "0", 1) != 1) give_up(socket, "join cgroup");
    // A pid namespace holds for children only, so one more process is needed; CLONE_PARENT makes it
    // the shim's child.
    shut_off(socket, init.get(), given, limits, oom_score_adj.c_str());
    socket = kSocket;
    if (::setns(kInit, namespaces) != 0) give_up(socket, "enter namespaces");
    ::close(kInit);
    Report report;
    report.pid = static_cast<int>(::syscall(SYS_clone, CLONE_PARENT | SIGCHLD, 0, 0, 0, 0));
    if (report.pid < 0) give_up(socket, "fork");
    if (report.pid == 0) {
      sigset_t none;
      ::sigemptyset(&none);
      ::sigprocmask(SIG_SETMASK, &none, nullptr);
      run_entered(options, socket, argv.data(), env.data(), path, capabilities, filter);
    }
    send_report(socket, report, -1);
  });
  theirs.reset();

  std::optional<Process> process;
  Fd terminal;
  Report failure;
  for (Report report; receive_report(ours, report, terminal);) {
    if (report.pid) process.emplace(Process::adopt(report.pid));
    if (report.error_number) failure = report;
  }
  between.wait(Deadline::never());
  if (failure.error_number || !process) {
    std::string step = failure.step[0] ? failure.step : "execute in container";
    int number = failure.error_number ? failure.error_number : ESRCH;
    if (number == ENOENT && step == "start program")
      throw Error(Code::kNotFound, "execute in container", options.argv[0],
                  "there is no such program in it");
    throw_errno(step, options.argv[0], number);
  }
  return {std::move(*process), std::move(terminal)};
}

}  // namespace thaw::runtime
