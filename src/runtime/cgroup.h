// One control group of a replica on every hierarchy the host has: v2, v1, or hybrid. The same
// limits whether runc or CRIU puts processes in it.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "state/spec.h"
#include "util/clock.h"

namespace thaw::runtime {

// Where the host's hierarchies are mounted. Read from /proc/self/mountinfo once.
struct CgroupLayout {
  struct Hierarchy {
    std::string controllers;  // "cpu", "cpu,cpuacct", "name=systemd"; empty for v2
    std::string mount;
    bool v2 = false;
  };
  std::vector<Hierarchy> hierarchies;
  bool unified_only() const;                                  // a pure v2 host
  std::string mount_of(const std::string& controller) const;  // "" when no v1 hierarchy has it
  std::string unified() const;                                // mount of v2, "" when none
  static CgroupLayout detect();
  // From a text as /proc/self/mountinfo has it. Error kUnsupported when it names no hierarchy.
  static CgroupLayout parse(const std::string& mountinfo);
  // Whether a controller can be used: on a v1 hierarchy, or offered by the v2 one.
  bool has(const std::string& controller) const;
};

// What of a pod's limits this host can hold. Without a controller a default is given up, and `gap`
// says so; one that the pod itself asks for is refused: kUnsupported. `has`: CgroupLayout::has.
struct Enforceable {
  state::Resources resources;
  std::string gap;
};
Enforceable enforceable(const state::Resources& wanted,
                        const std::function<bool(const std::string&)>& has);

class Cgroup {
 public:
  // `path` absolute within each hierarchy, e.g. "/thaw/d3f1/slot-12". Made when absent. Does not
  // own: remove() is explicit.
  Cgroup(CgroupLayout layout, std::string path);
  void create() const;
  // cgroup.procs of each hierarchy that replicas are put in.
  std::vector<std::string> procs_files() const;
  const std::string& path() const { return path_; }
  // Sets cpu, memory and pids limits, of which zero means none, and which devices can be opened.
  void apply(const state::Resources& resources) const;
  std::vector<int> pids() const;
  // SIGKILL to everything in it until it is empty; thaws it first. False at the deadline.
  bool kill_all(Deadline deadline) const;
  // rmdir on every hierarchy, nested groups too. False when something still lives in it.
  bool remove() const;
  bool remove_if_empty() const;  // the same, but leaves it when it has groups of its own
  void freeze(bool on, Deadline deadline) const;
  // The file that freezes it, and what thaws it when written there; "" where there is none.
  std::pair<std::string, std::string> thawing() const;
  std::int64_t oom_kills() const;      // since creation
  std::uint64_t memory_bytes() const;  // charged now
  // Of them what no file holds: anonymous and shared memory.
  std::uint64_t unfiled_bytes() const;

 private:
  std::string file(const std::string& controller, const std::string& v1_name,
                   const std::string& v2_name) const;
  void allow_devices() const;
  CgroupLayout layout_;
  std::string path_;
};

}  // namespace thaw::runtime
