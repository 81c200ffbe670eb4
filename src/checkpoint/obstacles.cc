#include "checkpoint/obstacles.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <fstream>
#include <set>

#include "util/file.h"

namespace thaw::checkpoint {
namespace {

constexpr std::string_view kAnonymous = "anon_inode:";
// The kinds that CRIU has an image for (criu/files.c, dump_one_file).
constexpr std::string_view kDumped[] = {"[eventfd]", "[eventpoll]", "[signalfd]", "[timerfd]",
                                        "[pidfd]",   "inotify",     "[fanotify]"};
// Major numbers: memory devices (null, zero, random), terminals, pseudo terminals.
constexpr unsigned kPlainDevices[] = {1, 4, 5, 136, 137, 138, 139, 140, 141, 142, 143};

// Empty when CRIU can dump it.
std::string obstacle_of(const std::string& link, const std::string& target) {
  if (target.starts_with(kAnonymous)) {
    std::string kind = target.substr(kAnonymous.size());
    for (std::string_view known : kDumped)
      if (kind == known) return {};
    if (kind.starts_with('[') && kind.ends_with(']')) kind = kind.substr(1, kind.size() - 2);
    return kind;
  }
  struct stat info;
  if (!target.starts_with("/dev/") || ::stat(link.c_str(), &info) != 0 || !S_ISCHR(info.st_mode))
    return {};
  for (unsigned number : kPlainDevices)
    if (major(info.st_rdev) == number) return {};
  return target;
}

// Of all of them: one that has a root of its own sees only what is below that. Each line of
// mountinfo begins with a mount's number.
std::set<std::uint64_t> mounts_of(const std::vector<int>& pids) {
  std::set<std::uint64_t> found;
  for (int pid : pids) {
    std::ifstream lines("/proc/" + std::to_string(pid) + "/mountinfo");
    for (std::string line; std::getline(lines, line);) found.insert(std::stoull(line));
  }
  return found;
}

// CRIU looks these two up among the mounts, and does not find one that was unmounted under the
// process.
std::string lost_place_of(const std::string& process, const std::set<std::uint64_t>& mounts) {
  for (auto [name, what] : {std::pair("/root", "root"), std::pair("/cwd", "working directory")}) {
    struct statx info;
    if (::statx(AT_FDCWD, (process + name).c_str(), 0, STATX_MNT_ID, &info) == 0 &&
        !mounts.contains(info.stx_mnt_id))
      return fmt::format("its {} on mount {}, which is not among the container's", what,
                         info.stx_mnt_id);
  }
  return {};
}

std::string name_of(const std::string& process) {
  return exists(process + "/comm") ? trim(read_file(process + "/comm")) : "?";
}

}  // namespace

std::string find_obstacle(const std::vector<int>& pids) {
  std::set<std::uint64_t> mounts = mounts_of(pids);
  for (int pid : pids) {
    std::string process = "/proc/" + std::to_string(pid);
    std::string lost = lost_place_of(process, mounts);
    if (!lost.empty()) return fmt::format("process {} ({}) has {}", pid, name_of(process), lost);
    std::error_code error;
    for (std::filesystem::directory_iterator at(process + "/fd", error), end; !error && at != end;
         at.increment(error)) {
      std::error_code closed;
      std::string what = obstacle_of(at->path(), std::filesystem::read_symlink(at->path(), closed));
      if (what.empty()) continue;
      return fmt::format("process {} ({}) has {} open, which CRIU cannot dump", pid,
                         name_of(process), what);
    }
  }
  return {};
}

}  // namespace thaw::checkpoint
