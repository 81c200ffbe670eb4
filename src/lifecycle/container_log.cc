#include "lifecycle/container_log.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

#include "util/clock.h"
#include "util/error.h"
#include "util/file.h"

namespace thaw::lifecycle {
namespace {
constexpr std::size_t kRotateAt = 16u << 20;
constexpr std::size_t kLongestLine = 16u << 10;
}  // namespace

void ContainerLog::open(const std::string& directory) {
  make_directories(directory, 0750);
  path_ = directory + "/container.log";
  file_ = Fd::open(path_, O_WRONLY | O_CREAT | O_APPEND, 0640);
  struct stat info;
  check(::fstat(file_.get(), &info), "stat", path_);
  size_ = static_cast<std::size_t>(info.st_size);
}

bool ContainerLog::pump(const Fd& pipe, bool is_error) {
  char buffer[65536];
  for (;;) {
    ssize_t n = ::read(pipe.get(), buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) return true;
    if (n <= 0) return false;
    std::string& pending = pending_[is_error];
    pending.append(buffer, static_cast<std::size_t>(n));
    write_lines(pending, is_error, false);
  }
}

void ContainerLog::flush() {
  write_lines(pending_[0], false, true);
  write_lines(pending_[1], true, true);
}

void ContainerLog::write_lines(std::string& pending, bool is_error, bool all) {
  if (!file_) {
    if (pending.size() > kRotateAt) pending.clear();
    return;
  }
  std::string stamp = format_wall(wall_us()) + (is_error ? " stderr " : " stdout ");
  std::string out;
  std::size_t at = 0;
  while (at < pending.size()) {
    std::size_t newline = pending.find('\n', at);
    std::size_t length = (newline == std::string::npos ? pending.size() : newline) - at;
    bool partial = newline == std::string::npos || length > kLongestLine;
    if (newline == std::string::npos && length < kLongestLine && !all) break;
    if (partial) length = std::min(length, kLongestLine);
    out += stamp + (partial && !(all && newline == std::string::npos) ? "P " : "F ") +
           pending.substr(at, length) + "\n";
    at += length + (partial ? 0 : 1);
  }
  pending.erase(0, at);
  if (out.empty()) return;
  try {
    if (size_ + out.size() > kRotateAt) {
      // The first fails when an earlier try came only so far.
      ::rename(path_.c_str(), (path_ + ".1").c_str());
      file_ = Fd::open(path_, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0640);
      size_ = 0;
    }
    write_all(file_, out, path_);
    size_ += out.size();
  } catch (const Error&) {
    // A full disk must not stop the container: its output is dropped until there is room.
  }
}

}  // namespace thaw::lifecycle
