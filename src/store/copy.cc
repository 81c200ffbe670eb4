#include "store/copy.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/statfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "util/clock.h"
#include "util/error.h"
#include "util/file.h"

namespace thaw::store {
namespace {

// Two writes within one tick of the file system's clock leave the same time: a file that was
// changed so shortly before it was copied is copied again.
constexpr std::int64_t kSettledUs = 100'000;

// Their times change with each write, the first one through a mapping included (page_mkwrite).
// Those of a tmpfs do not.
bool times_tell(const Fd& dir, const std::string& path) {
  struct statfs info;
  check(::fstatfs(dir.get(), &info), "examine", path);
  constexpr decltype(info.f_type) kXfs = 0x58465342;
  return info.f_type == EXT4_SUPER_MAGIC || info.f_type == kXfs || info.f_type == BTRFS_SUPER_MAGIC;
}

bool same_time(const timespec& a, const timespec& b) {
  return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec;
}

bool same(const struct stat& a, const struct stat& b) {
  return a.st_dev == b.st_dev && a.st_ino == b.st_ino && a.st_mode == b.st_mode &&
         a.st_nlink == b.st_nlink && a.st_uid == b.st_uid && a.st_gid == b.st_gid &&
         a.st_rdev == b.st_rdev && a.st_size == b.st_size && same_time(a.st_mtim, b.st_mtim) &&
         same_time(a.st_ctim, b.st_ctim);
}

std::string magic_path(const Fd& dir, const std::string& name) {
  return "/proc/self/fd/" + std::to_string(dir.get()) + "/" + name;
}

// While the tree is in use another program may put a device or a fifo in the file's place, which
// must not be opened.
Fd open_regular(const Fd& dir, const std::string& name, const std::string& path) {
  Fd found = Fd::open_at(dir, name, O_PATH | O_NOFOLLOW);
  struct stat info;
  check(::fstat(found.get(), &info), "stat", path);
  if (!S_ISREG(info.st_mode))
    throw Error(Code::kConflict, "copy", path, "it is no regular file any more");
  return Fd::open("/proc/self/fd/" + std::to_string(found.get()), O_RDONLY);
}

ssize_t copy_by_buffer(const Fd& source, const Fd& target, off_t& read_at, off_t& write_at,
                       off_t end) {
  char buffer[65536];
  ssize_t n = ::pread(source.get(), buffer,
                      std::min<std::size_t>(sizeof buffer, static_cast<std::size_t>(end - read_at)),
                      read_at);
  if (n <= 0) return n;
  ssize_t written = ::pwrite(target.get(), buffer, static_cast<std::size_t>(n), write_at);
  if (written < 0) return written;
  read_at += written;
  write_at += written;
  return written;
}

}  // namespace

TreeCopy::TreeCopy(std::string from, std::string to) : from_(std::move(from)), to_(std::move(to)) {}

void TreeCopy::ahead() {
  Fd from = Fd::open(from_, O_RDONLY | O_DIRECTORY);
  if (!times_tell(from, from_)) return;
  ahead_since_us_ = wall_us();
  ahead_ = true;
  copy_directory(from, Fd::open(to_, O_RDONLY | O_DIRECTORY), "");
  ahead_ = false;
  links_.clear();
}

TreeSize TreeCopy::finish(const Doubt& doubtful) {
  doubtful_ = doubtful;
  size_ = {};
  Fd from = Fd::open(from_, O_RDONLY | O_DIRECTORY), to = Fd::open(to_, O_RDONLY | O_DIRECTORY);
  update(from, to, "");
  return end(from, to);
}

TreeSize TreeCopy::add() {
  Fd from = Fd::open(from_, O_RDONLY | O_DIRECTORY), to = Fd::open(to_, O_RDONLY | O_DIRECTORY);
  copy_directory(from, to, "");
  return end(from, to);
}

// The top directory's own attributes: an opaque or changed root of the layer.
TreeSize TreeCopy::end(const Fd& from, const Fd& to) {
  struct stat info;
  check(::fstat(from.get(), &info), "stat", from_);
  check(::fchown(to.get(), info.st_uid, info.st_gid), "set owner of", to_);
  check(::fchmod(to.get(), info.st_mode & 07777), "set mode of", to_);
  links_.clear();
  return std::move(size_);
}

// Whether entries of the copy came or went.
bool TreeCopy::update(const Fd& from, const Fd& to, const std::string& below) {
  bool changed = false;
  std::map<std::string, Entry> there;
  for (Entry& entry : list(to, to_ + below)) there.emplace(entry.name, entry);
  for (const Entry& entry : list(from, from_ + below)) {
    std::string path = below + "/" + entry.name;
    auto old = there.extract(entry.name);
    if (old && S_ISDIR(entry.info.st_mode) && S_ISDIR(old.mapped().info.st_mode)) {
      Fd inner_from = Fd::open_at(from, entry.name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
      Fd inner_to = Fd::open_at(to, entry.name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
      if (update(inner_from, inner_to, path) || !unchanged(path, entry.info)) {
        for (auto& [key, value] : attributes(to, entry.name))
          check(::lremovexattr(magic_path(to, entry.name).c_str(), key.c_str()),
                "remove attribute " + key + " of", to_ + path);
        complete(from, to, entry, path);
      }
    } else if (!old || !keep(from, to, entry, old.mapped(), path)) {
      if (old) remove_tree(to_ + path);
      copy_entry(from, to, entry, path);
      changed = true;
    }
  }
  for (auto& [name, entry] : there) remove_tree(to_ + below + "/" + name);
  return changed || !there.empty();
}

bool TreeCopy::unchanged(const std::string& path, const struct stat& now) const {
  auto seen = seen_.find(path);
  if (seen == seen_.end() || !same(seen->second, now)) return false;
  std::int64_t changed_us = now.st_ctim.tv_sec * 1'000'000LL + now.st_ctim.tv_nsec / 1000;
  return changed_us < ahead_since_us_ - kSettledUs;
}

// Whether what was copied ahead can stay.
bool TreeCopy::keep(const Fd& from, const Fd& to, const Entry& entry, const Entry& old,
                    const std::string& path) {
  if (!unchanged(path, entry.info)) return false;
  if (S_ISREG(entry.info.st_mode) && doubtful_ && doubtful_(path.substr(1))) return false;
  if (S_ISDIR(entry.info.st_mode) || entry.info.st_nlink == 1) return true;
  auto [first, fresh] = links_.try_emplace({entry.info.st_dev, entry.info.st_ino}, Fd());
  struct stat copy;
  if (!fresh) {
    check(::fstat(first->second.get(), &copy), "stat", to_ + path);
    return copy.st_ino == old.info.st_ino;
  }
  first->second = Fd::open_at(to, entry.name, O_PATH | O_NOFOLLOW);
  note_linked(from, entry, path);
  return true;
}

void TreeCopy::copy_directory(const Fd& from, const Fd& to, const std::string& below) {
  for (const Entry& entry : list(from, from_ + below)) {
    std::string path = below + "/" + entry.name;
    try {
      copy_entry(from, to, entry, path);
    } catch (const Error&) {
      if (!ahead_) throw;
      continue;  // finish() comes back to it
    }
    if (ahead_) seen_[path] = entry.info;
  }
}

void TreeCopy::copy_entry(const Fd& from, const Fd& to, const Entry& entry,
                          const std::string& path) {
  const struct stat& info = entry.info;
  if (S_ISDIR(info.st_mode) || info.st_nlink == 1) {
    create(from, to, entry, path);
    complete(from, to, entry, path);
    return;
  }
  auto [first, fresh] = links_.try_emplace({info.st_dev, info.st_ino}, Fd());
  if (!fresh && first->second) {
    std::string source = "/proc/self/fd/" + std::to_string(first->second.get());
    check(::linkat(AT_FDCWD, source.c_str(), to.get(), entry.name.c_str(), AT_SYMLINK_FOLLOW),
          "link", to_ + path);
    return;
  }
  create(from, to, entry, path);
  complete(from, to, entry, path);
  first->second = Fd::open_at(to, entry.name, O_PATH | O_NOFOLLOW);
  note_linked(from, entry, path);
}

void TreeCopy::note_linked(const Fd& from, const Entry& entry, const std::string& path) {
  if (::lgetxattr(magic_path(from, entry.name).c_str(), "trusted.overlay.nlink", nullptr, 0) >= 0)
    size_.linked.push_back(path.substr(1));
}

void TreeCopy::create(const Fd& from, const Fd& to, const Entry& entry, const std::string& path) {
  const char* name = entry.name.c_str();
  const struct stat& info = entry.info;
  ++size_.files;
  if (S_ISDIR(info.st_mode)) {
    check(::mkdirat(to.get(), name, 0700), "make directory", to_ + path);
    copy_directory(Fd::open_at(from, entry.name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW),
                   Fd::open_at(to, entry.name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW), path);
  } else if (S_ISREG(info.st_mode)) {
    copy_file(from, to, entry, path);
  } else if (S_ISLNK(info.st_mode)) {
    check(::symlinkat(read_link(from, entry.name).c_str(), to.get(), name), "make link",
          to_ + path);
  } else {
    check(::mknodat(to.get(), name, info.st_mode, info.st_rdev), "make node", to_ + path);
  }
}

void TreeCopy::copy_file(const Fd& from, const Fd& to, const Entry& entry,
                         const std::string& path) {
  Fd source = open_regular(from, entry.name, from_ + path);
  Fd target = Fd::open_at(to, entry.name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0600);
  check(::ftruncate(target.get(), entry.info.st_size), "set size of", to_ + path);
  for (off_t at = 0; at < entry.info.st_size;) {
    off_t data = ::lseek(source.get(), at, SEEK_DATA);
    if (data < 0) {
      if (errno == ENXIO) break;
      throw_errno("find data in", from_ + path);
    }
    off_t hole = check(::lseek(source.get(), data, SEEK_HOLE), "find hole in", from_ + path);
    // What is growing while it is copied ahead is not run after.
    hole = std::min(hole, entry.info.st_size);
    off_t read_at = data, write_at = data;
    while (read_at < hole) {
      ssize_t n = ::copy_file_range(source.get(), &read_at, target.get(), &write_at,
                                    static_cast<std::size_t>(hole - read_at), 0);
      if (n < 0 && (errno == EXDEV || errno == EINVAL || errno == EOPNOTSUPP))
        n = copy_by_buffer(source, target, read_at, write_at, hole);
      check(n, "copy", from_ + path);
      if (n == 0) break;
      size_.bytes += static_cast<std::uint64_t>(n);
    }
    at = std::max(hole, data);
  }
}

// All but its contents and name.
void TreeCopy::complete(const Fd& from, const Fd& to, const Entry& entry, const std::string& path) {
  const char* name = entry.name.c_str();
  const struct stat& info = entry.info;
  check(::fchownat(to.get(), name, info.st_uid, info.st_gid, AT_SYMLINK_NOFOLLOW), "set owner of",
        to_ + path);
  if (!S_ISLNK(info.st_mode))
    check(::fchmodat(to.get(), name, info.st_mode & 07777, 0), "set mode of", to_ + path);
  for (auto& [key, value] : attributes(from, entry.name))
    check(
        ::lsetxattr(magic_path(to, entry.name).c_str(), key.c_str(), value.data(), value.size(), 0),
        "set attribute " + key + " of", to_ + path);
  timespec times[2] = {info.st_atim, info.st_mtim};
  check(::utimensat(to.get(), name, times, AT_SYMLINK_NOFOLLOW), "set times of", to_ + path);
}

TreeSize copy_tree(const std::string& from, const std::string& to) {
  return TreeCopy(from, to).add();
}

}  // namespace thaw::store
