#include "checkpoint/obstacles.h"

#include <sys/stat.h>
#include <sys/sysmacros.h>

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

}  // namespace

std::string find_obstacle(const std::vector<int>& pids) {
  for (int pid : pids) {
    std::string process = "/proc/" + std::to_string(pid);
    std::error_code error;
    for (std::filesystem::directory_iterator at(process + "/fd", error), end; !error && at != end;
         at.increment(error)) {
      std::error_code closed;
      std::string what = obstacle_of(at->path(), std::filesystem::read_symlink(at->path(), closed));
      if (what.empty()) continue;
      std::string name = exists(process + "/comm") ? trim(read_file(process + "/comm")) : "?";
      return fmt::format("process {} ({}) has {} open, which CRIU cannot dump", pid, name, what);
    }
  }
  return {};
}

}  // namespace thaw::checkpoint
