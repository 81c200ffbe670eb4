#include "util/fd.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>

#include "util/error.h"

namespace thaw {

void Fd::reset(int fd) {
  if (fd_ >= 0) ::close(fd_);
  fd_ = fd;
}

Fd Fd::duplicate() const {
  return Fd(check(::fcntl(fd_, F_DUPFD_CLOEXEC, 3), "duplicate descriptor"));
}

Fd Fd::open(const std::string& path, int flags, unsigned mode) {
  return Fd(check(::open(path.c_str(), flags | O_CLOEXEC, mode), "open", path));
}

Fd Fd::open_at(const Fd& dir, const std::string& path, int flags, unsigned mode) {
  return Fd(check(::openat(dir.get(), path.c_str(), flags | O_CLOEXEC, mode), "open", path));
}

std::pair<Fd, Fd> Fd::pipe(int flags) {
  int ends[2];
  check(::pipe2(ends, flags | O_CLOEXEC), "make pipe");
  return {Fd(ends[0]), Fd(ends[1])};
}

std::pair<Fd, Fd> Fd::socket_pair(int type) {
  int ends[2];
  check(::socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, ends), "make socket pair");
  return {Fd(ends[0]), Fd(ends[1])};
}

Fd Fd::event() { return Fd(check(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), "make eventfd")); }

Fd Fd::pidfd(int pid) {
  return Fd(check(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)), "open pidfd of process",
                  std::to_string(pid)));
}

Fd Fd::timer_after_us(long long microseconds) {
  Fd timer(check(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK), "make timerfd"));
  if (microseconds < 1) microseconds = 1;
  itimerspec when{};
  when.it_value.tv_sec = microseconds / 1'000'000;
  when.it_value.tv_nsec = (microseconds % 1'000'000) * 1000;
  check(::timerfd_settime(timer.get(), 0, &when, nullptr), "arm timerfd");
  return timer;
}

std::string read_all(const Fd& fd, std::size_t limit) {
  std::string data;
  char buffer[65536];
  for (;;) {
    ssize_t n = ::read(fd.get(), buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    check(n, "read");
    if (n == 0) return data;
    if (data.size() + static_cast<std::size_t>(n) > limit)
      throw Error(Code::kExhausted, "read", "descriptor",
                  "more than " + std::to_string(limit) + " bytes");
    data.append(buffer, static_cast<std::size_t>(n));
  }
}

void write_all(const Fd& fd, std::string_view data, std::string_view object) {
  while (!data.empty()) {
    ssize_t n = ::write(fd.get(), data.data(), data.size());
    if (n < 0 && errno == EINTR) continue;
    check(n, "write", object);
    data.remove_prefix(static_cast<std::size_t>(n));
  }
}

void set_nonblocking(const Fd& fd, bool on) {
  int flags = check(::fcntl(fd.get(), F_GETFL), "read descriptor flags");
  check(::fcntl(fd.get(), F_SETFL, on ? flags | O_NONBLOCK : flags & ~O_NONBLOCK),
        "set descriptor flags");
}

void signal_event(const Fd& event) {
  std::uint64_t one = 1;
  [[maybe_unused]] ssize_t n = ::write(event.get(), &one, sizeof one);
}

void clear_event(const Fd& event) {
  std::uint64_t count;
  [[maybe_unused]] ssize_t n = ::read(event.get(), &count, sizeof count);
}

}  // namespace thaw
