// The checkpoint's layer: what a container wrote to its root, copied for the most part before it is
// frozen.
#pragma once

#include <string>
#include <vector>

#include "runtime/container.h"
#include "runtime/mapped_files.h"
#include "store/copy.h"

namespace thaw::lifecycle {

class UpperCopy {
 public:
  // Into the existing, empty directory `to`.
  UpperCopy(const runtime::SlotPaths& paths, const std::string& to)
      : merged_(paths.rootfs()), to_(to), copy_(paths.upper(), to) {}

  // While the container's processes run.
  void ahead(const std::vector<int>& pids);
  // While they are frozen. `lowers`: the layers below, topmost first.
  void finish(const std::vector<int>& pids, const std::vector<std::string>& lowers);

 private:
  std::string merged_, to_;
  store::TreeCopy copy_;
  runtime::MappedFiles before_;
};

}  // namespace thaw::lifecycle
