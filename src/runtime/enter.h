// Starts a process inside a running container from outside, cold or restored alike: its mount and
// pid namespaces, root, cgroup, user and capabilities. The caller must be in the container's
// network, uts and ipc namespaces already (the shim lives there) and becomes the parent.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "util/fd.h"
#include "util/process.h"

namespace thaw::runtime {

struct EnterOptions {
  std::vector<std::string> argv;  // argv[0] looked up in env's PATH, inside
  std::vector<std::string> env;   // KEY=VALUE
  std::string cwd = "/";
  std::uint32_t uid = 0, gid = 0;
  std::vector<std::uint32_t> groups;
  std::vector<std::string> procs_files;     // of the container's cgroup
  int input = -1, output = -1, error = -1;  // ignored with a terminal
  bool terminal = false;
  int rows = 24, columns = 80;
};

struct Entered {
  Process process;
  Fd terminal;  // the master end, from the container's own devpts
};

// Error kNotFound when there is no such program inside, kConflict when the container is gone.
Entered enter_container(int init_pid, const EnterOptions& options);

}  // namespace thaw::runtime
