// Reads a growing file from its beginning, line by line, through rotation and truncation. One
// thread at a time.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "lifecycle/path_watch.h"
#include "util/fd.h"

namespace thaw::lifecycle {

class LogTail {
 public:
  // `path` on the host; the file may not exist yet.
  explicit LogTail(const std::string& path);

  // Calls `line` for each complete line that was added, without its newline, until it returns true
  // ("that was it") or nothing is left. Returns whether it did. `between` is called now and then on
  // the way, to throw.
  bool read(const std::function<bool(std::string_view line)>& line,
            const std::function<void()>& between);
  // Readable when there may be more; then changed(), then read().
  const Fd& fd() const { return watch_.fd(); }
  bool changed() { return watch_.changed(); }

 private:
  bool read_file(const std::function<bool(std::string_view line)>& line,
                 const std::function<void()>& between);
  PathWatch watch_;
  Fd file_;
  std::string rest_;  // an incomplete line
  off_t at_ = 0;
};

}  // namespace thaw::lifecycle
