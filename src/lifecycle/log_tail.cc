#include "lifecycle/log_tail.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "util/error.h"
#include "util/in_root.h"

namespace thaw::lifecycle {
namespace {

constexpr std::size_t kLineLimit = 1 << 20;

Fd host_root() { return Fd::open("/", O_PATH | O_DIRECTORY); }

}  // namespace

LogTail::LogTail(const std::string& path) : watch_(host_root(), path, PathWatch::What::kContents) {
  watch_.arm();
}

bool LogTail::read(const std::function<bool(std::string_view)>& line,
                   const std::function<void()>& between) {
  for (;;) {
    // What stands under the name is looked up first: once it is another file, ours gets no more
    // lines, and reading it to its end loses none.
    Fd named = try_open_in_root(watch_.root(), watch_.path(), O_RDONLY | O_NONBLOCK);
    if (file_ && read_file(line, between)) return true;
    if (!named) return false;
    if (file_) {
      struct stat ours {
      }, theirs{};
      check(::fstat(file_.get(), &ours), "stat", watch_.path());
      check(::fstat(named.get(), &theirs), "stat", watch_.path());
      if (ours.st_ino == theirs.st_ino && ours.st_dev == theirs.st_dev) return false;
    }
    file_ = std::move(named);
    rest_.clear();
    at_ = 0;
  }
}

bool LogTail::read_file(const std::function<bool(std::string_view)>& line,
                        const std::function<void()>& between) {
  struct stat info {};
  check(::fstat(file_.get(), &info), "stat", watch_.path());
  if (info.st_size < at_) {  // truncated in place
    at_ = 0;
    rest_.clear();
  }
  char buffer[65536];
  // To the size seen now, not to the end: a program that writes faster than we read would keep us
  // here past any deadline.
  while (at_ < info.st_size) {
    between();
    ssize_t n = ::pread(file_.get(), buffer, sizeof buffer, at_);
    if (n < 0 && errno == EINTR) continue;
    check(n, "read", watch_.path());
    if (n == 0) break;
    std::string_view fresh(buffer, static_cast<std::size_t>(n));
    // The position moves with each line, so that a line which ends the reading is the last one
    // consumed.
    for (std::size_t newline; (newline = fresh.find('\n')) != std::string_view::npos;) {
      rest_ += fresh.substr(0, newline);
      fresh.remove_prefix(newline + 1);
      at_ += static_cast<off_t>(newline + 1);
      std::string whole = std::exchange(rest_, {});
      if (line(whole)) return true;
    }
    at_ += static_cast<off_t>(fresh.size());
    rest_ += fresh;
    if (rest_.size() > kLineLimit)
      rest_.resize(kLineLimit);  // no line of ours: keep what a pattern may still find
  }
  return false;
}

}  // namespace thaw::lifecycle
