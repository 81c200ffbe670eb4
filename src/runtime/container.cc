#include "runtime/container.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <sstream>

#include "runtime/resolver.h"
#include "runtime/seccomp.h"
#include "util/error.h"
#include "util/file.h"
#include "util/sealed.h"

namespace thaw::runtime {
namespace {

// podman's default set (containers/common, pkg/config default capabilities).
constexpr std::pair<int, const char*> kCapabilities[] = {
    {CAP_CHOWN, "CAP_CHOWN"},
    {CAP_DAC_OVERRIDE, "CAP_DAC_OVERRIDE"},
    {CAP_FOWNER, "CAP_FOWNER"},
    {CAP_FSETID, "CAP_FSETID"},
    {CAP_KILL, "CAP_KILL"},
    {CAP_NET_BIND_SERVICE, "CAP_NET_BIND_SERVICE"},
    {CAP_SETFCAP, "CAP_SETFCAP"},
    {CAP_SETGID, "CAP_SETGID"},
    {CAP_SETPCAP, "CAP_SETPCAP"},
    {CAP_SETUID, "CAP_SETUID"},
    {CAP_SYS_CHROOT, "CAP_SYS_CHROOT"}};

// What podman hides from containers by default.
constexpr const char* kMaskedPaths[] = {"/proc/acpi",
                                        "/proc/asound",
                                        "/proc/kcore",
                                        "/proc/keys",
                                        "/proc/latency_stats",
                                        "/proc/timer_list",
                                        "/proc/timer_stats",
                                        "/proc/sched_debug",
                                        "/proc/scsi",
                                        "/sys/firmware",
                                        "/sys/fs/selinux",
                                        "/sys/dev/block",
                                        "/sys/devices/virtual/powercap",
                                        "/proc/interrupts"};

struct Device {
  const char* name;
  unsigned major, minor;
};
constexpr Device kDevices[] = {{"null", 1, 3},   {"zero", 1, 5},    {"full", 1, 7},
                               {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}};
constexpr std::pair<const char*, const char*> kDeviceLinks[] = {{"/proc/self/fd", "fd"},
                                                                {"/proc/self/fd/0", "stdin"},
                                                                {"/proc/self/fd/1", "stdout"},
                                                                {"/proc/self/fd/2", "stderr"},
                                                                {"pts/ptmx", "ptmx"}};

void make_directory(const std::string& path, unsigned mode) {
  if (::mkdir(path.c_str(), mode) != 0 && errno != EEXIST) throw_errno("make directory", path);
  check(::chmod(path.c_str(), mode), "set mode of", path);
}

void mount_tmpfs(const std::string& path, unsigned long flags, const std::string& options) {
  check(::mount("tmpfs", path.c_str(), "tmpfs", flags, options.c_str()), "mount tmpfs at", path);
}

std::string escape_overlay(const std::string& path) {
  std::string text;
  for (char c : path) {
    if (c == ':' || c == ',' || c == '\\') text += '\\';
    text += c;
  }
  return text;
}

struct MountEntry {
  std::string target, type;
};

// Octal escapes of proc(5) mountinfo: space, tab, newline, backslash.
std::string unescape(const std::string& text) {
  std::string plain;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 3 < text.size()) {
      plain += static_cast<char>(std::stoi(text.substr(i + 1, 3), nullptr, 8));
      i += 3;
    } else {
      plain += text[i];
    }
  }
  return plain;
}

std::vector<MountEntry> mounts_of(int pid) {
  std::vector<MountEntry> entries;
  std::istringstream lines(read_file("/proc/" + std::to_string(pid) + "/mountinfo"));
  for (std::string line; std::getline(lines, line);) {
    std::size_t dash = line.find(" - ");
    if (dash == std::string::npos) continue;
    std::istringstream head(line), tail(line.substr(dash + 3));
    std::string id, parent, device, root, target, type;
    head >> id >> parent >> device >> root >> target;
    tail >> type;
    entries.push_back({unescape(target), type});
  }
  return entries;
}

bool same_file(const std::string& a, const std::string& b) {
  struct stat left, right;
  return ::stat(a.c_str(), &left) == 0 && ::stat(b.c_str(), &right) == 0 &&
         left.st_dev == right.st_dev && left.st_ino == right.st_ino;
}

constexpr std::size_t kMostSecret = 1 << 20, kSealing = 4096;  // bytes; what sealing adds, at most

constexpr std::uint64_t kMaskFile = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC,
                        kMaskDirectory = kMaskFile | MOUNT_ATTR_RDONLY;

void write_secret(const ContainerSpec& spec, const state::Secret& secret, const std::string& path) {
  std::string value = secret_value(secret, spec.secrets_key);
  Fd target = Fd::open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0400);
  write_all(target, value, path);
  check(::fchown(target.get(), spec.uid, spec.gid), "set owner of", path);
}

}  // namespace

std::string secret_value(const state::Secret& secret, const std::string& key_file) {
  if (secret.secret.empty()) return read_all(Fd::open(secret.file, O_RDONLY), kMostSecret);
  std::string sealed = read_all(Fd::open(secret.file, O_RDONLY), kMostSecret + kSealing);
  if (!exists(key_file))
    throw Error(Code::kUnavailable, "open secret", secret.secret,
                "its key " + key_file + " is gone", kLostKey);
  return SealKey::read(key_file).unseal(secret.secret, sealed);
}

Fd detached_mount(const std::string& path, std::uint64_t attributes) {
  Fd tree(check(static_cast<int>(::syscall(SYS_open_tree, AT_FDCWD, path.c_str(),
                                           OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC)),
                "clone mount", path));
  struct mount_attr change {};
  change.attr_set = attributes;
  if (attributes)
    check(::syscall(SYS_mount_setattr, tree.get(), "", AT_EMPTY_PATH, &change, sizeof change),
          "set attributes of mount", path);
  return tree;
}

nlohmann::json to_json(const ContainerSpec& spec) {
  nlohmann::json mounts = nlohmann::json::array();
  for (const auto& mount : spec.mounts)
    mounts.push_back(
        {{"source", mount.source}, {"target", mount.target}, {"readonly", mount.readonly}});
  nlohmann::json secrets = nlohmann::json::array();
  for (const auto& secret : spec.secrets)
    secrets.push_back({secret.name, secret.file, secret.secret});
  return {{"argv", spec.argv},
          {"env", spec.env},
          {"cwd", spec.cwd},
          {"uid", spec.uid},
          {"gid", spec.gid},
          {"groups", spec.groups},
          {"hostname", spec.hostname},
          {"identity", spec.identity},
          {"lowers", spec.lowers},
          {"mounts", mounts},
          {"secrets", secrets},
          {"secrets_key", spec.secrets_key},
          {"cpu", spec.resources.cpu},
          {"memory", spec.resources.memory},
          {"pids", spec.resources.pids},
          {"hosts", spec.hosts},
          {"cut_off", spec.cut_off}};
}

ContainerSpec container_from_json(const nlohmann::json& json) {
  ContainerSpec spec;
  json.at("argv").get_to(spec.argv);
  json.at("env").get_to(spec.env);
  json.at("cwd").get_to(spec.cwd);
  json.at("uid").get_to(spec.uid);
  json.at("gid").get_to(spec.gid);
  json.at("groups").get_to(spec.groups);
  json.at("hostname").get_to(spec.hostname);
  json.at("identity").get_to(spec.identity);
  json.at("lowers").get_to(spec.lowers);
  for (const auto& mount : json.at("mounts"))
    spec.mounts.push_back({mount.at("source"), mount.at("target"), mount.at("readonly")});
  for (const auto& secret : json.at("secrets"))
    spec.secrets.push_back({secret.at(0), secret.at(1), secret.at(2)});
  json.at("secrets_key").get_to(spec.secrets_key);
  json.at("cpu").get_to(spec.resources.cpu);
  json.at("memory").get_to(spec.resources.memory);
  json.at("pids").get_to(spec.resources.pids);
  json.at("hosts").get_to(spec.hosts);
  json.at("cut_off").get_to(spec.cut_off);
  return spec;
}

std::vector<Bind> binds(const ContainerSpec& spec, const SlotPaths& paths,
                        const std::string& cgroup_mount) {
  std::vector<Bind> list = {{"dev", paths.dev(), "/dev", false},
                            {"shm", paths.shm(), "/dev/shm", false},
                            {"thaw", paths.thaw(), "/run/thaw", false},
                            {"hosts", paths.etc() + "/hosts", "/etc/hosts", false},
                            {"hostname", paths.etc() + "/hostname", "/etc/hostname", false},
                            {"resolv", paths.etc() + "/resolv.conf", "/etc/resolv.conf", false}};
  if (!spec.secrets.empty())
    list.push_back({"secrets", paths.secrets(), "/run/thaw/secrets", true});
  if (!cgroup_mount.empty()) list.push_back({"cgroup", cgroup_mount, "/sys/fs/cgroup", true});
  for (const auto& mount : spec.mounts)
    list.push_back({"mount-" + mount.target, mount.source, mount.target, mount.readonly});
  return list;
}

void prepare_slot_mounts(const SlotPaths& paths) {
  for (const std::string& path :
       {paths.dir, paths.dir + "/fs", paths.bundle(), paths.runc_root(), paths.criu_work()})
    make_directory(path, 0700);
  for (const std::string& path : {paths.rootfs(), paths.upper(), paths.work(), paths.dev(),
                                  paths.shm(), paths.etc(), paths.empty()})
    make_directory(path, 0755);
  make_directory(paths.thaw(), 01777);
  mount_tmpfs(paths.dev(), MS_NOSUID | MS_NOEXEC | MS_STRICTATIME, "mode=755,size=64m");
  for (const Device& device : kDevices) {
    std::string path = paths.dev() + "/" + device.name;
    check(::mknod(path.c_str(), S_IFCHR | 0666, makedev(device.major, device.minor)), "make device",
          path);
    check(::chmod(path.c_str(), 0666), "set mode of", path);
  }
  for (auto& [target, name] : kDeviceLinks)
    check(::symlink(target, (paths.dev() + "/" + name).c_str()), "make link",
          paths.dev() + "/" + name);
  make_directory(paths.dev() + "/pts", 0755);
  make_directory(paths.dev() + "/shm", 0755);
  mount_tmpfs(paths.shm(), MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=1777,size=50%");
  // They are written anew while a client waits for a standby; a disk's file system may take its
  // time.
  mount_tmpfs(paths.etc(), MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=755,size=1m");
}

void write_names(const ContainerSpec& spec, const SlotPaths& paths) {
  write_file(paths.etc() + "/hostname", spec.hostname + "\n");
  std::string hosts = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n10.77.0.2 " +
                      spec.hostname + "\nfd00:77::2 " + spec.hostname + "\n";
  for (auto& [address, name] : spec.hosts) hosts += address + " " + name + "\n";
  write_file(paths.etc() + "/hosts", hosts);
  if (spec.identity.empty()) return;
  // As long for every replica: CRIU restores a file that a program had open only if it has the size
  // that it had at the dump.
  constexpr std::size_t kIdentityBytes = 1024;
  std::string identity = spec.identity;
  if (identity.size() < kIdentityBytes)
    identity.insert(identity.find_last_not_of('\n') + 1, kIdentityBytes - identity.size(), ' ');
  write_inside(paths, "identity.json", identity);
}

void write_inside(const SlotPaths& paths, const std::string& name, std::string_view text) {
  // The folder is the container's to write to: the text is made outside it, and a rename replaces
  // whatever has the name, without following it.
  std::string beside = paths.dir + "/" + name, file = paths.thaw() + "/" + name;
  write_file(beside, text);
  check(::chmod(beside.c_str(), 0644), "set mode of", beside);
  if (::rename(beside.c_str(), file.c_str()) == 0) return;
  if (errno != EISDIR) throw_errno("rename", file);
  remove_tree(file);
  check(::rename(beside.c_str(), file.c_str()), "rename", file);
}

// The contents never leave this process but into memory that only the container's user can read.
void prepare_secrets(const ContainerSpec& spec, const SlotPaths& paths) {
  if (spec.secrets.empty()) return;
  make_directory(paths.thaw() + "/secrets", 0755);  // to mount on
  make_directory(paths.secrets(), 0700);
  mount_tmpfs(paths.secrets(), MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=700,size=16m");
  for (const auto& secret : spec.secrets)
    write_secret(spec, secret, paths.secrets() + "/" + secret.name);
  check(::chown(paths.secrets().c_str(), spec.uid, spec.gid), "set owner of", paths.secrets());
}

void refresh_secrets(const ContainerSpec& spec, const SlotPaths& paths) {
  for (const auto& secret : spec.secrets) {
    std::string path = paths.secrets() + "/" + secret.name;
    // A secret's name has no dot in front: nothing of the pod's can be in the way.
    std::string beside = paths.secrets() + "/.new";
    ::unlink(beside.c_str());
    write_secret(spec, secret, beside);
    check(::rename(beside.c_str(), path.c_str()), "rename", path);
  }
}

void prepare_rootfs(const ContainerSpec& spec, const SlotPaths& paths) {
  std::string lowers;
  for (const std::string& lower : spec.lowers)
    lowers += (lowers.empty() ? "" : ":") + escape_overlay(lower);
  // redirect_dir and metacopy would put references to other layers into the upper; a checkpoint's
  // layer must stand alone. The index keeps the names of one file together when it is written to:
  // those a checkpoint's layer holds are in a lower layer here. Nothing is written through to the
  // disk (volatile): no upper outlives the host, and a restore would wait for the disk with each
  // file that the program has open for writing, since opening it copies it up and syncs the copy.
  std::string options = "lowerdir=" + lowers + ",upperdir=" + escape_overlay(paths.upper()) +
                        ",workdir=" + escape_overlay(paths.work()) +
                        ",redirect_dir=off,metacopy=off,index=on,xino=off,volatile";
  check(::mount("overlay", paths.rootfs().c_str(), "overlay", MS_NODEV, options.c_str()),
        "mount overlay at", paths.rootfs());
  write_file(paths.etc() + "/resolv.conf", spec.cut_off ? "" : resolver_configuration());
  write_names(spec, paths);
  prepare_secrets(spec, paths);
}

std::uint64_t default_capabilities() {
  std::uint64_t mask = 0;
  for (auto& [number, name] : kCapabilities) mask |= std::uint64_t{1} << number;
  return mask;
}

ProcessLimits process_limits() {
  ProcessLimits limits;
  auto at_most = [](auto resource, std::uint64_t wanted) {
    rlimit own{};
    check(::getrlimit(resource, &own), "read limit");
    return std::min<std::uint64_t>(wanted, own.rlim_max);
  };
  limits.descriptors = at_most(RLIMIT_NOFILE, 65536);
  limits.locked_bytes = at_most(RLIMIT_MEMLOCK, 8 << 20);
  limits.oom_score_adj = std::max(0, std::stoi(read_file("/proc/self/oom_score_adj")));
  return limits;
}

nlohmann::json oci_config(const ContainerSpec& spec, const SlotPaths& paths,
                          const std::vector<Bind>& binds, const std::string& cgroup_path) {
  using nlohmann::json;
  json capabilities = json::array();
  for (auto& [number, name] : kCapabilities) capabilities.push_back(name);
  json mounts = json::array({
      {{"destination", "/proc"},
       {"type", "proc"},
       {"source", "proc"},
       {"options", {"nosuid", "noexec", "nodev"}}},
      {{"destination", "/sys"},
       {"type", "sysfs"},
       {"source", "sysfs"},
       {"options", {"nosuid", "noexec", "nodev", "ro"}}},
  });
  for (const Bind& bind : binds) {
    json options = {"bind", "rprivate"};
    options.push_back(bind.readonly ? "ro" : "rw");
    if (bind.key == "shm" || bind.key == "thaw" || bind.key == "secrets")
      options.insert(options.end(), {"nosuid", "nodev", "noexec"});
    mounts.push_back({{"destination", bind.target},
                      {"type", "bind"},
                      {"source", bind.source},
                      {"options", options}});
    if (bind.key == "dev")
      mounts.push_back(
          {{"destination", "/dev/pts"},
           {"type", "devpts"},
           {"source", "devpts"},
           {"options",
            {"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}}});
  }
  json resources = json::object();
  if (spec.resources.pids)
    resources["pids"] = {{"limit", static_cast<std::int64_t>(spec.resources.pids)}};
  if (spec.resources.memory)
    resources["memory"] = {{"limit", static_cast<std::int64_t>(spec.resources.memory)}};
  if (spec.resources.cpu > 0)
    resources["cpu"] = {
        {"period", 100000},
        {"quota",
         std::max<std::int64_t>(1000, static_cast<std::int64_t>(spec.resources.cpu * 100000))}};
  resources["devices"] = json::array({{{"allow", false}, {"access", "rwm"}}});
  ProcessLimits limits = process_limits();
  auto rlimit = [](const char* type, std::uint64_t value) {
    return json{{"type", type}, {"soft", value}, {"hard", value}};
  };
  return {
      {"ociVersion", "1.0.2"},
      {"process",
       {{"terminal", false},
        {"user", {{"uid", spec.uid}, {"gid", spec.gid}, {"additionalGids", spec.groups}}},
        {"args", spec.argv},
        {"env", spec.env},
        {"cwd", spec.cwd},
        {"capabilities",
         {{"bounding", capabilities}, {"effective", capabilities}, {"permitted", capabilities}}},
        {"rlimits",
         {rlimit("RLIMIT_NOFILE", limits.descriptors),
          rlimit("RLIMIT_MEMLOCK", limits.locked_bytes)}},
        {"oomScoreAdj", limits.oom_score_adj},
        {"noNewPrivileges", true}}},
      {"root", {{"path", paths.rootfs()}, {"readonly", false}}},
      {"mounts", mounts},
      {"linux",
       {{"namespaces", json::array({{{"type", "pid"}}, {{"type", "mount"}}})},
        {"cgroupsPath", cgroup_path},
        {"resources", resources},
        {"rootfsPropagation", "private"},
        {"seccomp", seccomp_profile()},
        {"maskedPaths", json::array()},
        {"readonlyPaths",
         {"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}}}},
  };
}

void mask_paths(int init_pid, const SlotPaths& paths) {
  // A child enters the container's mount namespace: a thread of ours could not, it shares its root
  // with the others. Detached copies of the two sources are made before, since their paths do not
  // exist in there.
  std::vector<Fd> files, directories;
  std::string root = "/proc/" + std::to_string(init_pid) + "/root";
  std::vector<std::pair<int, const char*>> work;
  for (const char* path : kMaskedPaths) {
    struct stat info;
    if (::stat((root + path).c_str(), &info) != 0) continue;
    auto& list = S_ISDIR(info.st_mode) ? directories : files;
    list.push_back(S_ISDIR(info.st_mode) ? detached_mount(paths.empty(), kMaskDirectory)
                                         : detached_mount(paths.dev() + "/null", kMaskFile));
    work.emplace_back(list.back().get(), path);
  }
  Fd mounts = Fd::open("/proc/" + std::to_string(init_pid) + "/ns/mnt", O_RDONLY);
  auto [report_read, report_write] = Fd::pipe();
  pid_t child = check(::fork(), "fork to mask paths");
  if (child == 0) {
    int failure = 0;
    if (::setns(mounts.get(), CLONE_NEWNS) != 0) failure = errno;
    for (auto& [tree, path] : work)
      if (!failure &&
          ::syscall(SYS_move_mount, tree, "", AT_FDCWD, path, MOVE_MOUNT_F_EMPTY_PATH) != 0)
        failure = errno;
    [[maybe_unused]] ssize_t n = ::write(report_write.get(), &failure, sizeof failure);
    ::_exit(0);
  }
  report_write.reset();
  int failure = EPIPE;
  ssize_t n;
  do n = ::read(report_read.get(), &failure, sizeof failure);
  while (n < 0 && errno == EINTR);
  while (::waitpid(child, nullptr, 0) < 0 && errno == EINTR) {
  }
  if (failure) throw_errno("mask paths of container", std::to_string(init_pid), failure);
}

std::vector<ExternalMount> external_mounts(int init_pid, const SlotPaths& paths,
                                           const std::vector<Bind>& binds) {
  std::vector<ExternalMount> found;
  std::string root = "/proc/" + std::to_string(init_pid) + "/root";
  for (const MountEntry& mount : mounts_of(init_pid)) {
    // These CRIU makes anew by itself. (/proc/bus and its like are binds of proc.)
    if (mount.target == "/" || mount.type == "proc" || mount.type == "sysfs" ||
        mount.type == "devpts")
      continue;
    std::string seen = root + mount.target, key;
    bool masked = false;
    for (const char* path : kMaskedPaths) masked = masked || mount.target == path;
    if (masked) {
      struct stat info;
      check(::stat(seen.c_str(), &info), "stat", seen);
      key = S_ISDIR(info.st_mode) ? "mask-directory" : "mask-file";
    }
    for (const Bind& bind : binds)
      if (key.empty() && bind.target == mount.target) key = bind.key;
    for (const Bind& bind : binds)  // a target behind a symbolic link of the image
      if (key.empty() && same_file(seen, bind.source)) key = bind.key;
    if (key.empty())
      throw Error(Code::kUnsupported, "dump mount", mount.target,
                  "it is a " + mount.type + " that the container made itself",
                  "programs that mount file systems cannot be checkpointed");
    // The key is part of CRIU's option syntax: nothing in it may look like it.
    found.push_back({mount.target, key});
  }
  (void)paths;
  return found;
}

std::string external_source(const std::string& key, const SlotPaths& paths,
                            const std::vector<Bind>& binds) {
  std::string source;
  std::uint64_t attributes = 0;
  if (key == "mask-file") {
    source = paths.dev() + "/null";
    attributes = kMaskFile;
  } else if (key == "mask-directory") {
    source = paths.empty();
    attributes = kMaskDirectory;
  }
  for (const Bind& bind : binds) {
    if (bind.key != key) continue;
    source = bind.source;
    if (bind.readonly) attributes |= MOUNT_ATTR_RDONLY;
    if (key == "shm" || key == "thaw" || key == "secrets")
      attributes |= MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;
  }
  if (source.empty())
    throw Error(Code::kNotFound, "restore mount", key, "the pod has no such mount any more",
                "deploy it again, the next replica starts cold");
  if (!attributes) return source;
  // CRIU takes a mount's flags from the source where it believes that another of the same file
  // system has brought them: the source must have them.
  std::string staged = paths.dir + "/staged/" + sha256_hex(key).substr(0, 16);
  struct stat info;
  check(::stat(source.c_str(), &info), "stat", source);
  make_directory(paths.dir + "/staged", 0700);
  if (exists(staged)) return staged;
  if (S_ISDIR(info.st_mode))
    make_directory(staged, 0755);
  else
    write_file(staged, "");
  Fd tree = detached_mount(source, attributes);
  check(
      ::syscall(SYS_move_mount, tree.get(), "", AT_FDCWD, staged.c_str(), MOVE_MOUNT_F_EMPTY_PATH),
      "mount at", staged);
  return staged;
}

}  // namespace thaw::runtime
