// A container's output as log lines in the CRI format of Kubernetes: "<RFC3339> <stdout|stderr>
// <F|P> <text>". P: the line goes on in the next entry. Bounded: past 16 MiB the file becomes
// FILE.1 and a new one is begun.
#pragma once

#include <string>

#include "util/fd.h"

namespace thaw::lifecycle {

class ContainerLog {
 public:
  // Opens (appends to) `directory`/container.log.
  void open(const std::string& directory);
  // Reads what stands in a non-blocking pipe now. False at its end.
  bool pump(const Fd& pipe, bool is_error);
  void flush();  // writes unfinished lines

 private:
  void write_lines(std::string& pending, bool is_error, bool all);
  std::string path_;
  Fd file_;
  std::size_t size_ = 0;
  std::string pending_[2];
};

}  // namespace thaw::lifecycle
