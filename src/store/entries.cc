#include "store/entries.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>

#include "util/error.h"

namespace thaw::store {

std::vector<Entry> list(const Fd& dir, const std::string& path) {
  int copy = check(::openat(dir.get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), "open", path);
  DIR* stream = ::fdopendir(copy);
  if (!stream) throw_errno("list", path);
  std::vector<Entry> entries;
  while (dirent* found = ::readdir(stream)) {
    std::string name = found->d_name;
    if (name == "." || name == "..") continue;
    Entry entry{name, {}};
    if (::fstatat(dir.get(), name.c_str(), &entry.info, AT_SYMLINK_NOFOLLOW) == 0)
      entries.push_back(entry);
  }
  ::closedir(stream);
  std::sort(entries.begin(), entries.end(),
            [](const Entry& a, const Entry& b) { return a.name < b.name; });
  return entries;
}

std::vector<std::pair<std::string, std::string>> attributes(const Fd& dir,
                                                            const std::string& name) {
  std::string path = "/proc/self/fd/" + std::to_string(dir.get()) + "/" + name;
  std::vector<std::pair<std::string, std::string>> found;
  std::string names(64 << 10, '\0'), value(64 << 10, '\0');
  ssize_t length = ::llistxattr(path.c_str(), names.data(), names.size());
  if (length <= 0) return found;
  for (std::size_t at = 0; at < static_cast<std::size_t>(length);) {
    std::string key = names.c_str() + at;
    at += key.size() + 1;
    bool bookkeeping = false;
    for (const char* own : {"origin", "impure", "nlink", "uuid", "upper"})
      bookkeeping = bookkeeping || key == std::string("trusted.overlay.") + own;
    if (bookkeeping) continue;
    ssize_t size = ::lgetxattr(path.c_str(), key.c_str(), value.data(), value.size());
    if (size < 0) throw_errno("read attribute " + key + " of", name);
    found.emplace_back(key, value.substr(0, static_cast<std::size_t>(size)));
  }
  std::sort(found.begin(), found.end());
  return found;
}

std::string read_link(const Fd& dir, const std::string& name) {
  std::string target(4096, '\0');
  ssize_t n =
      check(::readlinkat(dir.get(), name.c_str(), target.data(), target.size()), "read link", name);
  target.resize(static_cast<std::size_t>(n));
  return target;
}

}  // namespace thaw::store
