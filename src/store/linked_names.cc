#include "store/linked_names.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <map>
#include <utility>

#include "store/entries.h"
#include "util/error.h"
#include "util/fd.h"

namespace thaw::store {
namespace {

class LinkedNames {
 public:
  LinkedNames(std::string merged, std::string layer)
      : merged_(std::move(merged)), layer_(std::move(layer)) {}

  void expect(const std::string& path) {
    struct stat info;
    check(::lstat((merged_ + "/" + path).c_str(), &info), "stat", merged_ + "/" + path);
    if (known_.try_emplace({info.st_dev, info.st_ino}, path).second) missing_ += info.st_nlink;
    --missing_;
  }
  bool complete() const { return missing_ == 0; }

  // Names that a lower directory has, as far as they are still names of the file.
  void find(const Fd& dir, const std::string& lower, const std::string& below) {
    for (const Entry& entry : list(dir, lower + "/" + below)) {
      if (complete()) return;
      std::string path = below + entry.name;
      if (S_ISDIR(entry.info.st_mode)) {
        Fd inner = Fd::open_at(dir, entry.name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
        find(inner, lower, path + "/");
      } else if (entry.info.st_nlink > 1) {
        add(path);
      }
    }
  }

 private:
  void add(const std::string& path) {
    struct stat info, there;
    if (::lstat((merged_ + "/" + path).c_str(), &info) != 0) return;  // deleted since
    auto found = known_.find({info.st_dev, info.st_ino});
    std::string to = layer_ + "/" + path;
    if (found == known_.end() || ::lstat(to.c_str(), &there) == 0) return;
    make_parents(path);
    check(::link((layer_ + "/" + found->second).c_str(), to.c_str()), "link", to);
    --missing_;
  }

  // Folders that nothing else in the layer has changed, as the overlay shows them.
  void make_parents(const std::string& path) {
    std::size_t slash = path.rfind('/');
    if (slash == std::string::npos) return;
    std::string folder = path.substr(0, slash), to = layer_ + "/" + folder;
    struct stat info;
    if (::lstat(to.c_str(), &info) == 0) return;
    make_parents(folder);
    std::string from = merged_ + "/" + folder;
    check(::lstat(from.c_str(), &info), "stat", from);
    check(::mkdir(to.c_str(), 0700), "make directory", to);
    check(::chown(to.c_str(), info.st_uid, info.st_gid), "set owner of", to);
    check(::chmod(to.c_str(), info.st_mode & 07777), "set mode of", to);
    Fd parent = Fd::open(from + "/..", O_PATH | O_DIRECTORY);
    for (auto& [key, value] : attributes(parent, from.substr(from.rfind('/') + 1)))
      check(::lsetxattr(to.c_str(), key.c_str(), value.data(), value.size(), 0),
            "set attribute " + key + " of", to);
    timespec times[2] = {info.st_atim, info.st_mtim};
    check(::utimensat(AT_FDCWD, to.c_str(), times, AT_SYMLINK_NOFOLLOW), "set times of", to);
  }

  std::string merged_, layer_;
  std::map<std::pair<dev_t, ino_t>, std::string> known_;  // in the overlay; a name in the layer
  std::uint64_t missing_ = 0;
};

}  // namespace

void add_linked_names(const std::vector<std::string>& linked, const std::string& merged,
                      const std::vector<std::string>& lowers, const std::string& layer) {
  if (linked.empty()) return;
  LinkedNames names(merged, layer);
  for (const std::string& path : linked) names.expect(path);
  for (const std::string& lower : lowers)
    if (!names.complete()) names.find(Fd::open(lower, O_RDONLY | O_DIRECTORY), lower, "");
}

}  // namespace thaw::store
