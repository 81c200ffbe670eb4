#include "lifecycle/keeper.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "checkpoint/page_service.h"
#include "util/error.h"
#include "util/packet.h"

namespace thaw::lifecycle {
namespace {

// In the keeper: its socket, the cgroup's files, and from here on what it holds.
constexpr int kSocket = 3, kProcs = 4, kThawing = 5, kFirstHeld = 6;
constexpr int kFirstPrune = 16;

// Kills what the cgroup holds until it is empty. Only plain system calls: this is a forked child.
void kill_group(int procs) {
  for (int round = 0; round < 1000; ++round) {
    char text[32768];
    ::lseek(procs, 0, SEEK_SET);
    ssize_t n = ::read(procs, text, sizeof text - 1);
    if (n <= 0) return;
    text[n] = 0;
    for (char* at = text; *at;) {
      int pid = static_cast<int>(std::strtol(at, &at, 10));
      if (pid > 0) ::kill(pid, SIGKILL);
      while (*at == '\n') ++at;
    }
    ::usleep(1000);
  }
}

// The descriptor `wanted`, or -1.
int open_at(int wanted, const char* file, int flags) {
  int opened = ::open(file, flags | O_CLOEXEC);
  int moved = opened >= 0 ? ::dup2(opened, wanted) : -1;
  if (opened > wanted) ::close(opened);
  return moved;
}

// What is held of processes that have ended pins their memory. The number of the others.
int let_go_of_ended(int last) {
  int held = 0;
  for (int fd = kFirstHeld; fd <= last; ++fd) {
    if (::fcntl(fd, F_GETFD) < 0) continue;
    if (checkpoint::userfaultfd_ended(fd))
      ::close(fd);
    else
      ++held;
  }
  return held;
}

[[noreturn]] void keep(int socket, const char* procs_file, const char* thawing_file,
                       const char* thawed) {
  ::prctl(PR_SET_NAME, "thaw-keeper", 0, 0, 0);
  int procs = open_at(kProcs, procs_file, O_RDONLY);
  int thawing = open_at(kThawing, thawing_file, O_WRONLY);
  // Where nothing thaws the number is taken all the same: what is held comes after it.
  if (procs < 0 || (thawing < 0 && ::dup2(procs, kThawing) < 0)) ::_exit(1);
  int held = 0, last = kFirstHeld - 1, prune_at = kFirstPrune;
  for (;;) {
    char byte;
    iovec data{&byte, 1};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
    msghdr message{};
    message.msg_iov = &data;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    // A received descriptor stays open: holding it is the purpose.
    ssize_t n = ::recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
    if (n < 0 && errno == EINTR) continue;
    if (n == 1 && byte == 'q') ::_exit(0);
    if (n == 1 && byte == 'd') ::close_range(kFirstHeld, ~0u, 0);
    // One that could not be taken (no number for it is left) would read zeros: then the end is now.
    if (n <= 0 || (message.msg_flags & MSG_CTRUNC)) break;
    if (byte != 'h') continue;
    cmsghdr* part = CMSG_FIRSTHDR(&message);
    if (!part) break;
    int fd;
    std::memcpy(&fd, CMSG_DATA(part), sizeof fd);
    last = fd > last ? fd : last;
    if (++held < prune_at) continue;
    held = let_go_of_ended(last);
    prune_at = 2 * held > kFirstPrune ? 2 * held : kFirstPrune;
  }
  if (thawing >= 0 && ::write(thawing, thawed, std::strlen(thawed)) < 0) ::close(thawing);
  kill_group(procs);
  ::_exit(0);
}

}  // namespace

Keeper Keeper::start(const std::string& procs_file,
                     const std::pair<std::string, std::string>& thawing) {
  auto [ours, theirs] = Fd::socket_pair(SOCK_SEQPACKET);
  pid_t pid = check(::fork(), "fork keeper");
  if (pid == 0) {
    // Only its own end stays open: the shim's end of anything else would hide the shim's death from
    // others.
    int socket = ::dup2(theirs.get(), kSocket);
    ::close_range(kSocket + 1, ~0u, 0);
    for (int number = 1; number < 32; ++number)
      if (number != SIGKILL && number != SIGSTOP) ::signal(number, SIG_IGN);
    keep(socket, procs_file.c_str(), thawing.first.c_str(), thawing.second.c_str());
  }
  Keeper keeper;
  keeper.socket_ = std::move(ours);
  return keeper;
}

void Keeper::hold(int fd) const {
  if (!send_packet(socket_, "h", fd)) throw_errno("pass userfaultfd to", "keeper");
}

void Keeper::let_go() const { ::send(socket_.get(), "d", 1, MSG_NOSIGNAL); }

void Keeper::dismiss() {
  if (!socket_) return;
  ::send(socket_.get(), "q", 1, MSG_NOSIGNAL);
  socket_.reset();
}

}  // namespace thaw::lifecycle
