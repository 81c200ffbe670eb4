// A file descriptor with one owner. Move-only; closes itself. Every descriptor of ours is
// close-on-exec.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>

namespace thaw {

class Fd {
 public:
  Fd() = default;
  explicit Fd(int fd) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&& other) noexcept {
    if (this != &other) reset(std::exchange(other.fd_, -1));
    return *this;
  }
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;
  ~Fd() { reset(); }

  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  int release() { return std::exchange(fd_, -1); }
  void reset(int fd = -1);
  Fd duplicate() const;  // F_DUPFD_CLOEXEC

  // Named factories; all close-on-exec; all throw Error with the path.
  static Fd open(const std::string& path, int flags, unsigned mode = 0644);
  static Fd open_at(const Fd& dir, const std::string& path, int flags, unsigned mode = 0644);
  static std::pair<Fd, Fd> pipe(int flags = 0);      // {read end, write end}
  static std::pair<Fd, Fd> socket_pair(int type);    // AF_UNIX
  static Fd event();                                 // eventfd, non-blocking, 0
  static Fd pidfd(int pid);                          // pidfd_open
  static Fd timer_after_us(long long microseconds);  // timerfd, one shot, monotonic

 private:
  int fd_ = -1;
};

// Reads until end of file. `limit` bytes at most: more is an Error (kExhausted).
std::string read_all(const Fd& fd, std::size_t limit = 64u << 20);
void write_all(const Fd& fd, std::string_view data, std::string_view object = "descriptor");
void set_nonblocking(const Fd& fd, bool on);
// Makes an eventfd readable / takes its count away.
void signal_event(const Fd& event);
void clear_event(const Fd& event);

}  // namespace thaw
