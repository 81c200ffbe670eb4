#include "runtime/seccomp.h"

#include <fcntl.h>
#include <seccomp.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <iterator>
#include <memory>
#include <sstream>

#include "util/error.h"
#include "util/fd.h"

namespace thaw::runtime {
namespace {

// Everything that is not named below is answered with ENOSYS, as if the kernel were older: programs
// know how to do without. io_uring is such a case: CRIU cannot dump it, and libuv, Java and others
// then use epoll. The sets follow what podman allows a container with the capabilities that ours
// have (runtime/container.cc).

// Programs that find these forbidden (EPERM) give up in order; ENOSYS would make them try worse.
constexpr const char* kForbidden =
    // the kernel itself, its modules, its clock, its swap
    "kexec_load kexec_file_load init_module finit_module delete_module query_module acct reboot "
    "swapon swapoff quotactl settimeofday clock_settime clock_settime64 stime iopl ioperm "
    // sees or steers others
    "bpf perf_event_open kcmp process_madvise lookup_dcookie open_by_handle_at fanotify_init "
    "move_pages migrate_pages userfaultfd vmsplice vhangup "
    // the namespaces are the slot's
    "sethostname setdomainname "
    // long gone, or never harmless
    "bdflush nfsservctl sysfs uselib ustat vm86 vm86old sgetmask ssetmask nice oldfstat oldlstat "
    "oldstat olduname oldolduname io_pgetevents";

constexpr const char* kAllowed =
    // files by descriptor
    "read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek _llseek close "
    "close_range dup dup2 dup3 fcntl fcntl64 flock fsync fdatasync sync syncfs sync_file_range "
    "ftruncate ftruncate64 truncate truncate64 fallocate fadvise64 fadvise64_64 readahead sendfile "
    "sendfile64 splice tee copy_file_range ioctl pipe pipe2 memfd_create memfd_secret umask "
    // files by name
    "open openat openat2 creat access faccessat faccessat2 stat stat64 lstat lstat64 fstat fstat64 "
    "fstatat64 newfstatat statx statfs statfs64 fstatfs fstatfs64 readlink readlinkat rename "
    "renameat renameat2 link linkat symlink symlinkat unlink unlinkat mkdir mkdirat rmdir mknod "
    "mknodat getdents getdents64 readdir getcwd chdir fchdir chroot chmod fchmod fchmodat chown "
    "chown32 fchown fchown32 lchown lchown32 fchownat utime utimes futimesat utimensat "
    "utimensat_time64 getxattr lgetxattr fgetxattr setxattr lsetxattr fsetxattr listxattr "
    "llistxattr "
    "flistxattr removexattr lremovexattr fremovexattr name_to_handle_at inotify_init inotify_init1 "
    "inotify_add_watch inotify_rm_watch fanotify_mark landlock_create_ruleset landlock_add_rule "
    "landlock_restrict_self "
    // mounts: the capability is what is missing
    "mount umount umount2 mount_setattr move_mount open_tree fsopen fsconfig fsmount fspick "
    "pivot_root "
    // waiting
    "poll ppoll ppoll_time64 select _newselect pselect6 pselect6_time64 epoll_create epoll_create1 "
    "epoll_ctl epoll_ctl_old epoll_wait epoll_wait_old epoll_pwait epoll_pwait2 eventfd eventfd2 "
    "signalfd signalfd4 io_setup io_destroy io_submit io_cancel io_getevents "
    // sockets
    "socketpair bind listen accept accept4 connect getsockname getpeername getsockopt setsockopt "
    "shutdown send sendto sendmsg sendmmsg recv recvfrom recvmsg recvmmsg recvmmsg_time64 "
    "socketcall "
    // memory
    "brk mmap mmap2 munmap mremap mprotect madvise msync mincore mlock mlock2 munlock mlockall "
    "munlockall mbind get_mempolicy set_mempolicy remap_file_pages membarrier pkey_alloc pkey_free "
    "pkey_mprotect "
    // processes and threads
    "fork vfork clone clone3 execve execveat exit exit_group wait4 waitid waitpid kill tkill "
    "tgkill "
    "getpid getppid gettid getpgid getpgrp setpgid getsid setsid set_tid_address set_robust_list "
    "get_robust_list set_thread_area get_thread_area rseq arch_prctl modify_ldt prctl seccomp "
    "ptrace "
    "process_vm_readv process_vm_writev process_mrelease pidfd_open pidfd_send_signal pidfd_getfd "
    "unshare setns restart_syscall syscall getcpu sched_yield sched_getaffinity sched_setaffinity "
    "sched_getparam sched_setparam sched_getscheduler sched_setscheduler sched_getattr "
    "sched_setattr "
    "sched_get_priority_max sched_get_priority_min sched_rr_get_interval "
    "sched_rr_get_interval_time64 getpriority setpriority ioprio_get ioprio_set futex futex_time64 "
    // users, groups, capabilities, limits, keys
    "getuid getuid32 geteuid geteuid32 getgid getgid32 getegid getegid32 getresuid getresuid32 "
    "getresgid getresgid32 getgroups getgroups32 setuid setuid32 setgid setgid32 setreuid "
    "setreuid32 "
    "setregid setregid32 setresuid setresuid32 setresgid setresgid32 setfsuid setfsuid32 setfsgid "
    "setfsgid32 setgroups setgroups32 capget capset getrlimit ugetrlimit setrlimit prlimit64 "
    "getrusage keyctl "
    // signals
    "rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigsuspend rt_sigtimedwait "
    "rt_sigtimedwait_time64 rt_sigqueueinfo rt_tgsigqueueinfo sigaltstack sigaction sigprocmask "
    "sigreturn sigpending sigsuspend signal pause alarm "
    // time
    "nanosleep clock_nanosleep clock_nanosleep_time64 clock_gettime clock_gettime64 clock_getres "
    "clock_getres_time64 clock_adjtime clock_adjtime64 adjtimex gettimeofday time times getitimer "
    "setitimer timer_create timer_delete timer_settime timer_settime64 timer_gettime "
    "timer_gettime64 timer_getoverrun timerfd timerfd_create timerfd_settime timerfd_settime64 "
    "timerfd_gettime timerfd_gettime64 "
    // System V and POSIX queues, shared memory, semaphores
    "ipc shmget shmat shmdt shmctl semget semop semctl semtimedop semtimedop_time64 msgget msgsnd "
    "msgrcv msgctl mq_open mq_unlink mq_notify mq_getsetattr mq_timedsend mq_timedsend_time64 "
    "mq_timedreceive mq_timedreceive_time64 "
    // about the system
    "uname sysinfo syslog getrandom";

// The execution domains that change nothing about security: Linux, 32-bit, UNAME26, both, and the
// question which one it is.
constexpr std::uint64_t kPersonalities[] = {0, 8, 0x20000, 0x20008, 0xffffffff};
constexpr std::uint64_t kNetlink = 16, kNetlinkAudit = 9;  // AF_NETLINK, NETLINK_AUDIT

std::vector<std::string> words(const char* text) {
  std::istringstream stream(text);
  return {std::istream_iterator<std::string>(stream), {}};
}

struct Release {
  void operator()(void* context) const { ::seccomp_release(context); }
};

void add(void* context, std::uint32_t action, const std::string& name,
         std::vector<scmp_arg_cmp> arguments = {}) {
  int number = ::seccomp_syscall_resolve_name(name.c_str());
  if (number == __NR_SCMP_ERROR) return;  // of a newer kernel than libseccomp's
  int failed = ::seccomp_rule_add_array(context, action, number,
                                        static_cast<unsigned>(arguments.size()), arguments.data());
  // EDOM: not on this architecture.
  if (failed != 0 && failed != -EDOM)
    throw Error(Code::kUnsupported, "make seccomp rule for", name, std::strerror(-failed));
}

std::vector<sock_filter> make_program() {
  std::unique_ptr<void, Release> owner(::seccomp_init(SCMP_ACT_ERRNO(ENOSYS)));
  void* context = owner.get();
  if (!context) throw Error(Code::kUnsupported, "make", "seccomp filter", "libseccomp refuses");
  ::seccomp_arch_add(context, SCMP_ARCH_X86);
  ::seccomp_attr_set(context, SCMP_FLTATR_CTL_OPTIMIZE, 2);  // a binary tree
  for (const std::string& name : words(kForbidden)) add(context, SCMP_ACT_ERRNO(EPERM), name);
  for (const std::string& name : words(kAllowed)) add(context, SCMP_ACT_ALLOW, name);
  for (std::uint64_t value : kPersonalities)
    add(context, SCMP_ACT_ALLOW, "personality", {SCMP_A0_64(SCMP_CMP_EQ, value)});
  add(context, SCMP_ACT_ALLOW, "socket", {SCMP_A0_64(SCMP_CMP_NE, kNetlink)});
  add(context, SCMP_ACT_ALLOW, "socket", {SCMP_A2_64(SCMP_CMP_NE, kNetlinkAudit)});
  add(context, SCMP_ACT_ERRNO(EINVAL), "socket",
      {SCMP_A0_64(SCMP_CMP_EQ, kNetlink), SCMP_A2_64(SCMP_CMP_EQ, kNetlinkAudit)});
  Fd file(check(::memfd_create("seccomp", MFD_CLOEXEC), "make memory file", "seccomp"));
  int failed = ::seccomp_export_bpf(context, file.get());
  if (failed != 0)
    throw Error(Code::kUnsupported, "make", "seccomp filter", std::strerror(-failed));
  check(::lseek(file.get(), 0, SEEK_SET), "rewind", "seccomp filter");
  std::string bytes = read_all(file);
  std::vector<sock_filter> program(bytes.size() / sizeof(sock_filter));
  std::memcpy(program.data(), bytes.data(), program.size() * sizeof(sock_filter));
  return program;
}

}  // namespace

nlohmann::json seccomp_profile() {
  using nlohmann::json;
  auto rule = [](std::vector<std::string> names, const char* action, int error = 0,
                 json arguments = json::array()) {
    json entry{{"names", std::move(names)}, {"action", action}, {"args", std::move(arguments)}};
    if (error) entry["errnoRet"] = error;
    return entry;
  };
  auto argument = [](int index, std::uint64_t value, const char* comparison) {
    return json{{"index", index}, {"value", value}, {"op", comparison}};
  };
  json rules = json::array(
      {rule(words(kForbidden), "SCMP_ACT_ERRNO", EPERM), rule(words(kAllowed), "SCMP_ACT_ALLOW")});
  for (std::uint64_t value : kPersonalities)
    rules.push_back(rule({"personality"}, "SCMP_ACT_ALLOW", 0,
                         json::array({argument(0, value, "SCMP_CMP_EQ")})));
  rules.push_back(
      rule({"socket"}, "SCMP_ACT_ALLOW", 0, json::array({argument(0, kNetlink, "SCMP_CMP_NE")})));
  rules.push_back(rule({"socket"}, "SCMP_ACT_ALLOW", 0,
                       json::array({argument(2, kNetlinkAudit, "SCMP_CMP_NE")})));
  rules.push_back(rule({"socket"}, "SCMP_ACT_ERRNO", EINVAL,
                       json::array({argument(0, kNetlink, "SCMP_CMP_EQ"),
                                    argument(2, kNetlinkAudit, "SCMP_CMP_EQ")})));
  return {{"defaultAction", "SCMP_ACT_ERRNO"},
          {"defaultErrnoRet", ENOSYS},
          {"architectures", {"SCMP_ARCH_X86_64", "SCMP_ARCH_X86"}},
          {"syscalls", rules}};
}

const std::vector<sock_filter>& seccomp_program() {
  static const std::vector<sock_filter> program = make_program();
  return program;
}

}  // namespace thaw::runtime
