#include "runtime/heartbeat.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <ctime>
#include <string>
#include <string_view>

namespace thaw::runtime {
namespace {

bool is_heartbeat(int folder, const char* number) {
  char target[4096];
  ssize_t size = ::readlinkat(folder, number, target, sizeof target);
  if (size <= 0) return false;
  std::string_view path(target, static_cast<std::size_t>(size));
  std::string_view name = path.substr(path.rfind('/') + 1);
  return name.starts_with("wgunicorn-") && name.ends_with(" (deleted)");
}

}  // namespace

void freshen_heartbeats(const std::vector<int>& pids) {
  // gunicorn up to 20 goes by the change time, which every call here sets to now; later ones by a
  // modification time that they set to the monotonic clock.
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  const timespec times[2] = {now, now};
  for (int pid : pids) {
    DIR* folder = ::opendir(("/proc/" + std::to_string(pid) + "/fd").c_str());
    if (!folder) continue;
    while (dirent* entry = ::readdir(folder)) {
      if (entry->d_name[0] == '.' || !is_heartbeat(::dirfd(folder), entry->d_name)) continue;
      struct stat info;
      if (::fstatat(::dirfd(folder), entry->d_name, &info, 0) == 0 && S_ISREG(info.st_mode) &&
          info.st_nlink == 0)
        ::utimensat(::dirfd(folder), entry->d_name, times, 0);
    }
    ::closedir(folder);
  }
}

}  // namespace thaw::runtime
