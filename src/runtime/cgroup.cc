#include "runtime/cgroup.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <sstream>

#include "util/error.h"
#include "util/fd.h"
#include "util/file.h"

namespace thaw::runtime {
namespace {

std::int64_t counter_in(const std::string& file, const std::string& key) {
  if (!exists(file)) return 0;
  std::istringstream lines(read_file(file));
  std::string name;
  std::int64_t value;
  while (lines >> name >> value)
    if (name == key) return value;
  return 0;
}

void for_each_child(const std::string& directory,
                    const std::function<void(const std::string&)>& visit) {
  DIR* stream = ::opendir(directory.c_str());
  if (!stream) return;
  while (dirent* entry = ::readdir(stream))
    if (entry->d_type == DT_DIR && entry->d_name[0] != '.') visit(directory + "/" + entry->d_name);
  ::closedir(stream);
}

bool remove_group(const std::string& directory) {
  bool all = true;
  for_each_child(directory, [&](const std::string& child) { all = remove_group(child) && all; });
  return (::rmdir(directory.c_str()) == 0 || errno == ENOENT) && all;
}

// A new v1 cpuset group has no CPUs and no memory nodes; a process cannot be put in it before it
// has.
void inherit_cpuset(const std::string& mount, const std::string& path) {
  std::string parent = mount;
  for (std::size_t at = 1; at <= path.size();) {
    std::size_t slash = path.find('/', at);
    if (slash == std::string::npos) slash = path.size();
    std::string directory = mount + path.substr(0, slash);
    for (const char* name : {"/cpuset.cpus", "/cpuset.mems"})
      if (trim(read_file(directory + name)).empty())
        write_file(directory + name, trim(read_file(parent + name)));
    parent = directory;
    at = slash + 1;
  }
}

// null, zero, full, random, urandom, tty, ptmx, pts: what a container's /dev holds. Nobody may make
// others usable.
struct Device {
  int major, minor;  // -1: all
};
constexpr Device kDevices[] = {{1, 3}, {1, 5}, {1, 7}, {1, 8}, {1, 9}, {5, 0}, {5, 2}, {136, -1}};

// The v2 way: a program that the kernel asks at each open and mknod of a device
// (BPF_PROG_TYPE_CGROUP_DEVICE; its context is bpf_cgroup_dev_ctx). It goes with the group.
void attach_device_filter(const std::string& directory) {
  std::vector<bpf_insn> code;
  auto jump = [&](int operation, int reg, int value, int over) {
    code.push_back({static_cast<__u8>(BPF_JMP | operation | BPF_K), static_cast<__u8>(reg), 0,
                    static_cast<__s16>(over), value});
  };
  auto load = [&](int reg, std::size_t offset) {
    code.push_back({BPF_LDX | BPF_MEM | BPF_W, static_cast<__u8>(reg), BPF_REG_1,
                    static_cast<__s16>(offset), 0});
  };
  auto answer = [&](int value) {
    code.push_back({BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_0, 0, 0, value});
    code.push_back({BPF_JMP | BPF_EXIT, 0, 0, 0, 0});
  };
  load(BPF_REG_2, offsetof(bpf_cgroup_dev_ctx, access_type));  // access << 16 | type
  load(BPF_REG_4, offsetof(bpf_cgroup_dev_ctx, major));
  load(BPF_REG_5, offsetof(bpf_cgroup_dev_ctx, minor));
  code.push_back({BPF_ALU64 | BPF_MOV | BPF_X, BPF_REG_3, BPF_REG_2, 0, 0});
  code.push_back({BPF_ALU64 | BPF_RSH | BPF_K, BPF_REG_3, 0, 0, 16});
  code.push_back({BPF_ALU64 | BPF_AND | BPF_K, BPF_REG_2, 0, 0, 0xffff});
  // A node alone opens nothing, and to make one is a capability's matter.
  jump(BPF_JNE, BPF_REG_3, BPF_DEVCG_ACC_MKNOD, 2);
  answer(1);
  jump(BPF_JEQ, BPF_REG_2, BPF_DEVCG_DEV_CHAR, 2);
  answer(0);
  for (const Device& device : kDevices) {
    bool any = device.minor < 0;
    jump(BPF_JNE, BPF_REG_4, device.major, any ? 2 : 3);
    if (!any) jump(BPF_JNE, BPF_REG_5, device.minor, 2);
    answer(1);
  }
  answer(0);

  bpf_attr load_program{};
  load_program.prog_type = BPF_PROG_TYPE_CGROUP_DEVICE;
  load_program.insns = reinterpret_cast<__u64>(code.data());
  load_program.insn_cnt = static_cast<__u32>(code.size());
  load_program.license = reinterpret_cast<__u64>("GPL");
  Fd program(
      check(static_cast<int>(::syscall(SYS_bpf, BPF_PROG_LOAD, &load_program, sizeof load_program)),
            "load device filter for", directory));
  Fd group = Fd::open(directory, O_RDONLY | O_DIRECTORY);
  bpf_attr attach{};
  attach.target_fd = static_cast<__u32>(group.get());
  attach.attach_bpf_fd = static_cast<__u32>(program.get());
  attach.attach_type = BPF_CGROUP_DEVICE;
  attach.attach_flags = BPF_F_ALLOW_MULTI;  // systemd may have its own above
  check(::syscall(SYS_bpf, BPF_PROG_ATTACH, &attach, sizeof attach), "attach device filter to",
        directory);
}

// Controllers must be handed down from group to group on v2.
void delegate_controllers(const std::string& mount, const std::string& path) {
  std::string directory = mount;
  for (std::size_t at = 1;;) {
    for (const char* controller : {"+cpu", "+memory", "+pids"}) {
      try {
        write_file(directory + "/cgroup.subtree_control", controller);
      } catch (const Error&) {
        // The controller may belong to v1 (hybrid) or not exist; apply() says so when a limit needs
        // it.
      }
    }
    std::size_t slash = path.find('/', at);
    if (slash == std::string::npos) return;
    directory = mount + path.substr(0, slash);
    at = slash + 1;
  }
}

}  // namespace

bool CgroupLayout::unified_only() const { return hierarchies.size() == 1 && hierarchies[0].v2; }

std::string CgroupLayout::mount_of(const std::string& controller) const {
  for (const Hierarchy& hierarchy : hierarchies) {
    std::istringstream names(hierarchy.controllers);
    for (std::string name; std::getline(names, name, ',');)
      if (name == controller) return hierarchy.mount;
  }
  return {};
}

std::string CgroupLayout::unified() const {
  for (const Hierarchy& hierarchy : hierarchies)
    if (hierarchy.v2) return hierarchy.mount;
  return {};
}

CgroupLayout CgroupLayout::detect() { return parse(read_file("/proc/self/mountinfo")); }

bool CgroupLayout::has(const std::string& controller) const {
  if (!mount_of(controller).empty()) return true;
  if (unified().empty()) return false;
  // Part of every v2 group, not controllers there.
  if (controller == "freezer" || controller == "devices") return true;
  std::istringstream names(read_file(unified() + "/cgroup.controllers"));
  for (std::string name; names >> name;)
    if (name == controller) return true;
  return false;
}

CgroupLayout CgroupLayout::parse(const std::string& mountinfo) {
  CgroupLayout layout;
  std::istringstream lines(mountinfo);
  for (std::string line; std::getline(lines, line);) {
    // proc(5): ID parent major:minor root mountpoint options [optional]* - type source superoptions
    std::size_t dash = line.find(" - ");
    if (dash == std::string::npos) continue;
    std::istringstream head(line), tail(line.substr(dash + 3));
    std::string id, parent, device, root, mount, type, source, options;
    head >> id >> parent >> device >> root >> mount;
    tail >> type >> source >> options;
    if (root != "/" || (type != "cgroup" && type != "cgroup2")) continue;
    std::string controllers;
    if (type == "cgroup") {
      std::istringstream parts(options);
      for (std::string part; std::getline(parts, part, ',');)
        if (part != "rw" && part != "ro" && part != "xattr" && part != "clone_children" &&
            part.rfind("release_agent", 0) != 0)
          controllers += (controllers.empty() ? "" : ",") + part;
    }
    bool seen = false;
    for (const Hierarchy& hierarchy : layout.hierarchies)
      seen = seen || (hierarchy.v2 == (type == "cgroup2") && hierarchy.controllers == controllers);
    if (!seen) layout.hierarchies.push_back({controllers, mount, type == "cgroup2"});
  }
  if (layout.hierarchies.empty())
    throw Error(Code::kUnsupported, "find", "cgroups", "no cgroup file system is mounted",
                "mount one at /sys/fs/cgroup");
  return layout;
}

Enforceable enforceable(const state::Resources& wanted,
                        const std::function<bool(const std::string&)>& has) {
  const state::Resources defaults;
  Enforceable found{wanted, {}};
  auto look = [&](const char* controller, auto state::Resources::*limit) {
    if (wanted.*limit == 0 || has(controller)) return;
    if (wanted.*limit != defaults.*limit)
      throw Error(Code::kUnsupported, "hold", fmt::format("resources.{}", controller),
                  fmt::format("this host has no {} cgroup controller", controller),
                  "leave it out, or mount that controller: see `thaw doctor`");
    found.resources.*limit = 0;
    found.gap +=
        fmt::format("{}resources.{} ({}) is not held: this host has no {} cgroup controller",
                    found.gap.empty() ? "" : "; ", controller, wanted.*limit, controller);
  };
  look("cpu", &state::Resources::cpu);
  look("memory", &state::Resources::memory);
  look("pids", &state::Resources::pids);
  return found;
}

Cgroup::Cgroup(CgroupLayout layout, std::string path)
    : layout_(std::move(layout)), path_(std::move(path)) {}

void Cgroup::create() const {
  for (const auto& hierarchy : layout_.hierarchies) {
    make_directories(hierarchy.mount + path_);
    if (hierarchy.v2) delegate_controllers(hierarchy.mount, path_);
    if (hierarchy.controllers.find("cpuset") != std::string::npos)
      inherit_cpuset(hierarchy.mount, path_);
  }
}

std::vector<std::string> Cgroup::procs_files() const {
  std::vector<std::string> files;
  for (const auto& hierarchy : layout_.hierarchies)
    files.push_back(hierarchy.mount + path_ + "/cgroup.procs");
  return files;
}

std::string Cgroup::file(const std::string& controller, const std::string& v1_name,
                         const std::string& v2_name) const {
  std::string mount = layout_.mount_of(controller);
  if (!mount.empty()) return mount + path_ + "/" + v1_name;
  return layout_.unified() + path_ + "/" + v2_name;
}

void Cgroup::apply(const state::Resources& resources) const {
  bool v1_memory = !layout_.mount_of("memory").empty();
  if (resources.memory)
    write_file(file("memory", "memory.limit_in_bytes", "memory.max"),
               std::to_string(resources.memory));
  if (resources.memory && !v1_memory) {
    std::string swap = layout_.unified() + path_ + "/memory.swap.max";
    if (exists(swap)) write_file(swap, "0");
  }
  if (resources.pids)
    write_file(file("pids", "pids.max", "pids.max"), std::to_string(resources.pids));
  if (resources.cpu > 0) {
    constexpr std::int64_t period = 100'000;
    auto quota = std::to_string(
        std::max<std::int64_t>(1000, static_cast<std::int64_t>(resources.cpu * period)));
    if (layout_.mount_of("cpu").empty()) {
      write_file(layout_.unified() + path_ + "/cpu.max", quota + " " + std::to_string(period));
    } else {
      write_file(file("cpu", "cpu.cfs_period_us", ""), std::to_string(period));
      write_file(file("cpu", "cpu.cfs_quota_us", ""), quota);
    }
  }
  allow_devices();
}

// What the OCI runtime does at a cold start.
void Cgroup::allow_devices() const {
  std::string v1 = layout_.mount_of("devices");
  if (v1.empty()) return attach_device_filter(layout_.unified() + path_);
  write_file(v1 + path_ + "/devices.deny", "a");
  auto allow = [&](const std::string& rule) { write_file(v1 + path_ + "/devices.allow", rule); };
  for (const Device& device : kDevices)
    allow(fmt::format("c {}:{} rwm", device.major,
                      device.minor < 0 ? "*" : std::to_string(device.minor)));
  for (const char* rule : {"c *:* m", "b *:* m"}) allow(rule);
}

std::vector<int> Cgroup::pids() const {
  std::vector<int> found;
  // One hierarchy that every process of ours is in is enough. Not every OCI runtime uses the v2 one
  // of a hybrid host.
  std::string mount = layout_.mount_of("freezer");
  if (mount.empty()) mount = layout_.mount_of("pids");
  if (mount.empty()) mount = layout_.hierarchies.front().mount;
  std::function<void(const std::string&)> collect = [&](const std::string& directory) {
    if (!exists(directory + "/cgroup.procs")) return;
    std::istringstream numbers(read_file(directory + "/cgroup.procs"));
    for (int pid; numbers >> pid;) found.push_back(pid);
    for_each_child(directory, collect);
  };
  collect(mount + path_);
  return found;
}

bool Cgroup::kill_all(Deadline deadline) const {
  // A SIGKILL has no effect on a frozen v1 group, so it is thawed first.
  freeze(false, deadline);
  for (;;) {
    std::vector<int> alive = pids();
    if (alive.empty()) return true;
    std::vector<Fd> handles;
    for (int pid : alive) {
      ::kill(pid, SIGKILL);
      try {
        handles.push_back(Fd::pidfd(pid));
      } catch (const Error&) {
        // It is gone already.
      }
    }
    for (Fd& handle : handles) {
      pollfd wait{handle.get(), POLLIN, 0};
      ::poll(&wait, 1, std::min(deadline.poll_ms(), 200));
    }
    if (deadline.passed()) return false;
  }
}

bool Cgroup::remove() const {
  bool all = true;
  for (const auto& hierarchy : layout_.hierarchies)
    all = remove_group(hierarchy.mount + path_) && all;
  return all;
}

bool Cgroup::remove_if_empty() const {
  bool all = true;
  for (const auto& hierarchy : layout_.hierarchies)
    all = (::rmdir((hierarchy.mount + path_).c_str()) == 0 || errno == ENOENT) && all;
  return all;
}

std::pair<std::string, std::string> Cgroup::thawing() const {
  std::string v1 = layout_.mount_of("freezer");
  if (!v1.empty()) return {v1 + path_ + "/freezer.state", "THAWED"};
  return {layout_.unified() + path_ + "/cgroup.freeze", "0"};
}

void Cgroup::freeze(bool on, Deadline deadline) const {
  std::string v1 = layout_.mount_of("freezer");
  if (!v1.empty()) {
    std::string state = v1 + path_ + "/freezer.state";
    if (!exists(state)) return;
    write_file(state, on ? "FROZEN" : "THAWED");
    // v1 has no event for it: reading the file makes the kernel look again.
    while (on && trim(read_file(state)) != "FROZEN") {
      if (deadline.passed())
        throw Error(Code::kTimeout, "freeze cgroup", path_, "some task did not stop in time");
      ::usleep(200);
    }
    return;
  }
  std::string directory = layout_.unified() + path_;
  if (!exists(directory + "/cgroup.freeze")) return;
  write_file(directory + "/cgroup.freeze", on ? "1" : "0");
  Fd events = Fd::open(directory + "/cgroup.events", O_RDONLY);
  while (on && counter_in(directory + "/cgroup.events", "frozen") != 1) {
    pollfd wait{events.get(), POLLPRI, 0};
    if (deadline.passed())
      throw Error(Code::kTimeout, "freeze cgroup", path_, "some task did not stop in time");
    ::poll(&wait, 1, std::min(deadline.poll_ms(), 100));
  }
}

std::int64_t Cgroup::oom_kills() const {
  return counter_in(file("memory", "memory.oom_control", "memory.events"), "oom_kill");
}

std::uint64_t Cgroup::memory_bytes() const {
  std::string name = file("memory", "memory.usage_in_bytes", "memory.current");
  return exists(name) ? std::stoull(read_file(name)) : 0;
}

std::uint64_t Cgroup::unfiled_bytes() const {
  bool v1 = !layout_.mount_of("memory").empty();
  std::string statistics = file("memory", "memory.stat", "memory.stat");
  return static_cast<std::uint64_t>(counter_in(statistics, v1 ? "total_rss" : "anon") +
                                    counter_in(statistics, v1 ? "total_shmem" : "shmem"));
}

}  // namespace thaw::runtime
