// The checks of `thaw doctor`: what this host can do, and what to do about what it cannot.
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <cstdio>

#include "checkpoint/criu_install.h"
#include "checkpoint/page_intake.h"
#include "network/network.h"
#include "network/rtnetlink.h"
#include "pods/controller.h"
#include "runtime/cgroup.h"
#include "runtime/resolver.h"
#include "util/error.h"
#include "util/file.h"
#include "util/private_tmpfs.h"
#include "util/process.h"

namespace thaw::pods {
namespace {

using Status = CheckResult::Status;

CheckResult check_root() {
  if (::geteuid() == 0) return {"root", Status::kPass, "uid 0", ""};
  return {"root", Status::kFail, fmt::format("uid {}", ::geteuid()), "run the daemon as root"};
}

CheckResult check_kernel() {
  struct utsname kernel;
  ::uname(&kernel);
  int major = 0, minor = 0;
  std::sscanf(kernel.release, "%d.%d", &major, &minor);
  bool enough = major > 5 || (major == 5 && minor >= 14);
  return {"kernel", enough ? Status::kPass : Status::kFail, kernel.release,
          enough ? "" : "Linux 5.14 or newer is needed"};
}

CheckResult check_criu(const lifecycle::Settings& settings) {
  try {
    checkpoint::CriuInstall criu = checkpoint::find_criu(settings.criu_home);
    // That it is there does not mean that it runs.
    std::vector<std::string> argv = criu.command;
    argv.push_back("--version");
    RunResult result = run(argv, Deadline::after_ms(10'000));
    if (!result.ok())
      return {"criu", Status::kWarn, criu.command.back() + " does not run: " + result.why(),
              "run scripts/setup again; without it every replica starts cold"};
    return {"criu", Status::kPass, criu.version + " (" + criu.command.back() + ")", ""};
  } catch (const Error& error) {
    return {"criu", Status::kWarn, error.cause(),
            error.remedy() + "; without it every replica starts cold"};
  }
}

CheckResult check_program(const std::string& label, const std::string& program, Status missing,
                          const std::string& remedy) {
  try {
    RunResult result = run({program, "--version"}, Deadline::after_ms(10'000));
    if (result.ok())
      return {label, Status::kPass, trim(result.out.substr(0, result.out.find('\n'))), ""};
    return {label, missing, program + ": " + result.why(), remedy};
  } catch (const Error& error) {
    return {label, missing, program + ": " + error.cause(), remedy};
  }
}

CheckResult check_cgroups() {
  try {
    runtime::CgroupLayout layout = runtime::CgroupLayout::detect();
    std::string kind = layout.unified_only() ? "v2" : layout.unified().empty() ? "v1" : "hybrid";
    std::string lacking;
    for (const char* controller : {"memory", "cpu", "pids", "freezer", "devices"})
      if (!layout.has(controller)) lacking += std::string(lacking.empty() ? "" : ", ") + controller;
    if (lacking.empty()) return {"cgroups", Status::kPass, kind, ""};
    return {"cgroups", Status::kWarn, kind + " without " + lacking,
            "mount these controllers; limits that need them do not work"};
  } catch (const Error& error) {
    return {"cgroups", Status::kFail, error.cause(), error.remedy()};
  }
}

CheckResult check_userfaultfd() {
  int fd = static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK));
  if (fd < 0)
    return {"userfaultfd", Status::kWarn, "not available",
            "build the kernel with CONFIG_USERFAULTFD; restores read all memory ahead without it"};
  Fd owner(fd);
  struct uffdio_api api {};
  api.api = UFFD_API;
  if (::ioctl(fd, UFFDIO_API, &api) != 0)
    return {"userfaultfd", Status::kWarn, "its API is refused",
            "a newer kernel is needed for lazy restores"};
  bool events =
      (api.features & UFFD_FEATURE_EVENT_FORK) && (api.features & UFFD_FEATURE_EVENT_REMOVE);
  return {"userfaultfd", events ? Status::kPass : Status::kWarn,
          fmt::format("features {:#x}", static_cast<unsigned long long>(api.features)),
          events ? "" : "fork and remove events are missing: lazy restores are not possible"};
}

// By mounting one, out of everybody's sight: /proc/filesystems does not name a module that nobody
// has loaded yet.
CheckResult check_overlay() {
  constexpr const char* remedy = "build the kernel with CONFIG_OVERLAY_FS, or load the module";
  try {
    with_private_tmpfs("/tmp", [] {
      for (const char* name : {"/tmp/lower", "/tmp/upper", "/tmp/work", "/tmp/merged"})
        make_directories(name);
      check(::mount("overlay", "/tmp/merged", "overlay", 0,
                    "lowerdir=/tmp/lower,upperdir=/tmp/upper,workdir=/tmp/work"),
            "mount overlay at", "/tmp/merged");
    });
    return {"overlay", Status::kPass, "available", ""};
  } catch (const Error& error) {
    return {"overlay", Status::kFail, error.what(), remedy};
  }
}

CheckResult check_nftables() {
  try {
    RunResult result = run({"nft", "list", "tables"}, Deadline::after_ms(10'000));
    if (result.ok()) return {"nftables", Status::kPass, "available", ""};
    return {"nftables", Status::kFail, result.why(),
            "load nf_tables, or build the kernel with CONFIG_NF_TABLES"};
  } catch (const Error& error) {
    return {"nftables", Status::kFail, error.cause(), "install nftables"};
  }
}

// Replicas ask the host's name servers themselves; the host's own services they do not reach.
CheckResult check_name_servers() {
  constexpr const char* remedy =
      "name one in /etc/resolv.conf that is not on this host, or pods cannot resolve names";
  auto servers = runtime::name_servers(runtime::resolver_configuration());
  if (servers.empty())
    return {"name servers", Status::kWarn, "none but on loopback addresses", remedy};
  std::string all, own;
  auto ours = network::addresses(network::open_route_socket());
  for (const std::string& server : servers) {
    all += (all.empty() ? "" : ", ") + server;
    for (const auto& address : ours)
      if (address.text() == server) own = server;
  }
  if (!own.empty())
    return {"name servers", Status::kWarn, own + " is this host, which replicas do not reach",
            remedy};
  return {"name servers", Status::kPass, all, ""};
}

CheckResult check_limits() {
  rlimit files{};
  ::getrlimit(RLIMIT_NOFILE, &files);
  bool few = files.rlim_max < 4096;
  return {"open files", few ? Status::kWarn : Status::kPass,
          fmt::format("limit {}", files.rlim_max),
          few ? "raise the hard limit (LimitNOFILE= of the unit): each replica and connection "
                "needs some"
              : ""};
}

bool has_resource_capability() { return ::prctl(PR_CAPBSET_READ, CAP_SYS_RESOURCE, 0, 0, 0) == 1; }

// docs/performance.md, "The dump", has the figures.
CheckResult check_pipes() {
  std::uint64_t limit = std::stoull(read_file("/proc/sys/fs/pipe-max-size"));
  bool small = limit < checkpoint::kPipeBytes && !has_resource_capability();
  return {"pipes", small ? Status::kWarn : Status::kPass,
          small ? fmt::format("limit {}", limit) : "large enough",
          small ? fmt::format("sysctl -w fs.pipe-max-size={}: dumps freeze a replica for less long",
                              checkpoint::kPipeBytes)
                : ""};
}

CheckResult check_capability() {
  bool has = has_resource_capability();
  return {"CAP_SYS_RESOURCE", has ? Status::kPass : Status::kWarn, has ? "present" : "missing",
          has ? ""
              : "limits cannot be raised; CRIU gets a helper to read the limits of other users' "
                "processes (docs/criu.md)"};
}

CheckResult check_disk(const std::string& data_dir) {
  std::string path = data_dir;
  while (!exists(path) && path.size() > 1)
    path = std::filesystem::path(path).parent_path().string();
  struct statvfs info {};
  if (::statvfs(path.c_str(), &info) != 0) return {"disk", Status::kWarn, "cannot be read", ""};
  std::uint64_t free = static_cast<std::uint64_t>(info.f_bavail) * info.f_frsize;
  bool little = free < (2ull << 30);
  return {"disk", little ? Status::kWarn : Status::kPass,
          format_bytes(free) + " free for " + data_dir,
          little ? "make room: checkpoints hold whole memories" : ""};
}

}  // namespace

std::vector<CheckResult> run_doctor(const lifecycle::Settings& settings) {
  return {check_root(),
          check_kernel(),
          check_criu(settings),
          check_program("runtime", settings.runtime, Status::kFail,
                        "install runc, or give another OCI runtime with --runtime"),
          check_cgroups(),
          check_userfaultfd(),
          check_overlay(),
          check_nftables(),
          check_name_servers(),
          check_program("skopeo", "skopeo", Status::kWarn,
                        "install skopeo: images cannot be imported without it"),
          check_program("umoci", "umoci", Status::kWarn,
                        "install umoci: images cannot be unpacked without it"),
          check_limits(),
          check_pipes(),
          check_capability(),
          check_disk(settings.data_dir)};
}

}  // namespace thaw::pods
