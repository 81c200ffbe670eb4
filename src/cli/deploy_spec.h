// A pod specification from `thaw deploy`'s file and flags.
#pragma once

#include <string>
#include <vector>

#include "state/spec.h"

namespace thaw::cli {

// As typed; empty means not given.
struct SpecFlags {
  std::string file;  // a path, or "-" for stdin
  std::string name, image, rootfs, checkpoint_when, user, workdir, cpu, memory, pids, gpu, min, max,
      replicas, idle;
  std::vector<std::string> ports, env, mounts;
  std::vector<std::string> command;
  bool operator==(const SpecFlags&) const = default;
};

// The file's specification with the flags laid over it (lists are added to, the command is
// replaced). kInvalid names the flag.
state::PodSpec build_spec(const SpecFlags& flags);

// [[ADDRESS:]HOST:]CONTAINER, IPv6 addresses in brackets.
state::Port parse_port(const std::string& text);
// SOURCE:TARGET[:ro|:rw]; a relative source is taken from the working directory.
state::Mount parse_mount(const std::string& text);

}  // namespace thaw::cli
