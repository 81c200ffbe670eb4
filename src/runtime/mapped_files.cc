#include "runtime/mapped_files.h"

#include <sys/stat.h>

#include <string>
#include <string_view>

#include "util/error.h"
#include "util/file.h"

namespace thaw::runtime {
namespace {

constexpr std::size_t kMostText = 512u << 20;

}  // namespace

MappedFiles mapped_files(const std::vector<int>& pids) {
  MappedFiles found;
  for (int pid : pids) {
    std::string process = "/proc/" + std::to_string(pid);
    std::string text = read_file(process + "/maps", kMostText);
    // proc_pid_maps(5), a line each: range permissions offset device inode path. There may be many.
    for (std::string_view rest = text; !rest.empty();) {
      std::string_view line = rest.substr(0, rest.find('\n'));
      rest.remove_prefix(std::min(line.size() + 1, rest.size()));
      std::size_t permissions = line.find(' ') + 1;
      found.asynchronous = found.asynchronous || line.ends_with("/[aio] (deleted)");
      if (permissions + 4 > line.size() || line[permissions + 3] != 's') continue;
      std::string range(line.substr(0, permissions - 1));
      std::string link = process + "/map_files/" + range;
      struct stat opened, file;
      check(::lstat(link.c_str(), &opened), "examine", link);
      if (!(opened.st_mode & S_IWUSR)) continue;
      check(::stat(link.c_str(), &file), "examine", link);
      found.writable.emplace(file.st_dev, file.st_ino);
    }
  }
  return found;
}

}  // namespace thaw::runtime
