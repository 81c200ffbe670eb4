// Files that programs may write to without a system call.
#pragma once

#include <sys/types.h>

#include <set>
#include <utility>
#include <vector>

namespace thaw::runtime {

struct MappedFiles {
  std::set<std::pair<dev_t, ino_t>> writable;  // shared, and opened for writing
  bool asynchronous = false;                   // some process has asynchronous I/O (io_setup)
};

// Of these processes. Error when one of them, or a mapping, goes meanwhile.
MappedFiles mapped_files(const std::vector<int>& pids);

}  // namespace thaw::runtime
