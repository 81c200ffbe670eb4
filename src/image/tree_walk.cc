#include "image/tree_walk.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <unistd.h>

#include <cerrno>

#include "util/error.h"
#include "util/fd.h"

namespace thaw::image {
namespace {

struct Walk {
  std::string top;
  const std::function<void(const TreeEntry&)>& visit;

  std::string full(const std::string& path) const { return path.empty() ? top : top + "/" + path; }

  std::vector<std::string> names(Fd directory, const std::string& path) const {
    DIR* stream = ::fdopendir(directory.get());
    if (!stream) throw_errno("list", full(path));
    directory.release();
    std::unique_ptr<DIR, int (*)(DIR*)> closer(stream, ::closedir);
    std::vector<std::string> found;
    for (;;) {
      errno = 0;
      dirent* entry = ::readdir(stream);
      if (!entry) break;
      std::string_view name = entry->d_name;
      if (name != "." && name != "..") found.emplace_back(name);
    }
    if (errno) throw_errno("list", full(path));
    std::sort(found.begin(), found.end());
    return found;
  }

  // `path` is that of the directory, empty for the top.
  void below(const Fd& directory, const std::string& path) const {
    for (const std::string& name : names(directory.duplicate(), path)) {
      TreeEntry entry;
      entry.path = path.empty() ? name : path + "/" + name;
      if (::statx(directory.get(), name.c_str(), AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT,
                  STATX_BASIC_STATS, &entry.info) != 0) {
        if (errno == ENOENT) continue;
        throw_errno("stat", full(entry.path));
      }
      entry.mount = entry.info.stx_attributes & STATX_ATTR_MOUNT_ROOT;
      if (S_ISLNK(entry.info.stx_mode)) {
        char target[PATH_MAX];
        ssize_t length = ::readlinkat(directory.get(), name.c_str(), target, sizeof target);
        if (length < 0 && errno != ENOENT && errno != EINVAL)
          throw_errno("read link", full(entry.path));
        if (length > 0) entry.target.assign(target, static_cast<std::size_t>(length));
      }
      visit(entry);
      if (!S_ISDIR(entry.info.stx_mode) || entry.mount) continue;
      Fd child(
          ::openat(directory.get(), name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
      if (child)
        below(child, entry.path);
      else if (errno != ENOENT && errno != ENOTDIR && errno != ELOOP)
        throw_errno("open", full(entry.path));
    }
  }
};

}  // namespace

void walk_tree(const std::string& directory, const std::function<void(const TreeEntry&)>& visit) {
  Fd top = Fd::open(directory, O_RDONLY | O_DIRECTORY);
  TreeEntry entry;
  entry.path = ".";
  check(::statx(top.get(), "", AT_EMPTY_PATH, STATX_BASIC_STATS, &entry.info), "stat", directory);
  visit(entry);
  Walk{directory, visit}.below(top, "");
}

}  // namespace thaw::image
