#include "store/tree.h"

#include <dirent.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cerrno>
#include <sstream>

#include "util/error.h"
#include "util/fd.h"

namespace thaw::store {
namespace {

struct Entry {
  std::string name;
  struct stat info;
};

// Sorted by name.
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

// Of the entry itself, links not followed; {name, value} sorted by name, overlay's bookkeeping left
// out.
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

class Copier {
 public:
  TreeSize size;

  void copy_directory(const Fd& from, const Fd& to, const std::string& path) {
    for (const Entry& entry : list(from, path))
      copy_entry(from, to, entry, path + "/" + entry.name);
  }

 private:
  void copy_entry(const Fd& from, const Fd& to, const Entry& entry, const std::string& path) {
    const char* name = entry.name.c_str();
    const struct stat& info = entry.info;
    if (!S_ISDIR(info.st_mode) && info.st_nlink > 1) {
      auto [first, fresh] = links_.try_emplace({info.st_dev, info.st_ino}, Fd());
      if (!fresh) {
        std::string source = "/proc/self/fd/" + std::to_string(first->second.get());
        check(::linkat(AT_FDCWD, source.c_str(), to.get(), name, AT_SYMLINK_FOLLOW), "link", path);
        return;
      }
      create(from, to, entry, path);
      finish(from, to, entry, path);
      std::string source = "/proc/self/fd/" + std::to_string(from.get()) + "/" + entry.name;
      if (::lgetxattr(source.c_str(), "trusted.overlay.nlink", nullptr, 0) >= 0)
        size.linked.push_back(path);
      first->second = Fd::open_at(to, entry.name, O_PATH | O_NOFOLLOW);
      return;
    }
    create(from, to, entry, path);
    finish(from, to, entry, path);
  }

  void create(const Fd& from, const Fd& to, const Entry& entry, const std::string& path) {
    const char* name = entry.name.c_str();
    const struct stat& info = entry.info;
    ++size.files;
    if (S_ISDIR(info.st_mode)) {
      check(::mkdirat(to.get(), name, 0700), "make directory", path);
      Fd source = Fd::open_at(from, entry.name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
      Fd target = Fd::open_at(to, entry.name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
      struct stat at;
      check(::fstat(source.get(), &at), "stat", path);
      copy_directory(source, target, path);
    } else if (S_ISREG(info.st_mode)) {
      copy_file(from, to, entry, path);
    } else if (S_ISLNK(info.st_mode)) {
      check(::symlinkat(read_link(from, entry.name).c_str(), to.get(), name), "make link", path);
    } else {
      check(::mknodat(to.get(), name, info.st_mode, info.st_rdev), "make node", path);
    }
  }

  void copy_file(const Fd& from, const Fd& to, const Entry& entry, const std::string& path) {
    Fd source = Fd::open_at(from, entry.name, O_RDONLY | O_NOFOLLOW);
    Fd target = Fd::open_at(to, entry.name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0600);
    check(::ftruncate(target.get(), entry.info.st_size), "set size of", path);
    for (off_t at = 0;;) {
      off_t data = ::lseek(source.get(), at, SEEK_DATA);
      if (data < 0) {
        if (errno == ENXIO) break;
        throw_errno("find data in", path);
      }
      off_t hole = check(::lseek(source.get(), data, SEEK_HOLE), "find hole in", path);
      off_t read_at = data, write_at = data;
      while (read_at < hole) {
        ssize_t n = ::copy_file_range(source.get(), &read_at, target.get(), &write_at,
                                      static_cast<std::size_t>(hole - read_at), 0);
        if (n < 0 && (errno == EXDEV || errno == EINVAL || errno == EOPNOTSUPP))
          n = copy_by_buffer(source, target, read_at, write_at, hole);
        check(n, "copy", path);
        if (n == 0) break;
        size.bytes += static_cast<std::uint64_t>(n);
      }
      at = hole;
    }
  }

  static ssize_t copy_by_buffer(const Fd& source, const Fd& target, off_t& read_at, off_t& write_at,
                                off_t end) {
    char buffer[65536];
    ssize_t n = ::pread(
        source.get(), buffer,
        std::min<std::size_t>(sizeof buffer, static_cast<std::size_t>(end - read_at)), read_at);
    if (n <= 0) return n;
    ssize_t written = ::pwrite(target.get(), buffer, static_cast<std::size_t>(n), write_at);
    if (written < 0) return written;
    read_at += written;
    write_at += written;
    return written;
  }

  void finish(const Fd& from, const Fd& to, const Entry& entry, const std::string& path) {
    const char* name = entry.name.c_str();
    const struct stat& info = entry.info;
    check(::fchownat(to.get(), name, info.st_uid, info.st_gid, AT_SYMLINK_NOFOLLOW), "set owner of",
          path);
    if (!S_ISLNK(info.st_mode))
      check(::fchmodat(to.get(), name, info.st_mode & 07777, 0), "set mode of", path);
    std::string target = "/proc/self/fd/" + std::to_string(to.get()) + "/" + entry.name;
    for (auto& [key, value] : attributes(from, entry.name))
      check(::lsetxattr(target.c_str(), key.c_str(), value.data(), value.size(), 0),
            "set attribute " + key + " of", path);
    timespec times[2] = {info.st_atim, info.st_mtim};
    check(::utimensat(to.get(), name, times, AT_SYMLINK_NOFOLLOW), "set times of", path);
  }

  std::map<std::pair<dev_t, ino_t>, Fd> links_;
};

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

class Hasher {
 public:
  Hasher() : context_(::EVP_MD_CTX_new()) {
    ::EVP_DigestInit_ex(context_, ::EVP_sha256(), nullptr);
  }
  ~Hasher() { ::EVP_MD_CTX_free(context_); }
  Hasher(const Hasher&) = delete;
  Hasher& operator=(const Hasher&) = delete;
  void add(const void* data, std::size_t size) { ::EVP_DigestUpdate(context_, data, size); }
  void add(const std::string& text) {
    std::string length = std::to_string(text.size()) + ":";
    add(length.data(), length.size());
    add(text.data(), text.size());
  }
  void add_file(const Fd& file, const std::string& path,
                const std::function<void()>& between = {}) {
    std::string buffer(1 << 20, '\0');
    for (;;) {
      ssize_t n = ::read(file.get(), buffer.data(), buffer.size());
      if (n < 0 && errno == EINTR) continue;
      check(n, "read", path);
      if (n == 0) return;
      add(buffer.data(), static_cast<std::size_t>(n));
      if (between) between();
    }
  }
  std::string hex() {
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned length = 0;
    ::EVP_DigestFinal_ex(context_, digest, &length);
    std::string text;
    for (unsigned i = 0; i < length; ++i) text += fmt::format("{:02x}", digest[i]);
    return text;
  }

 private:
  EVP_MD_CTX* context_;
};

void digest_directory(Hasher& hasher, const Fd& dir, const std::string& path) {
  for (const Entry& entry : list(dir, path)) {
    std::string here = path + "/" + entry.name;
    const struct stat& info = entry.info;
    hasher.add(here);
    hasher.add(fmt::format("{:o} {} {} {}", info.st_mode, info.st_uid, info.st_gid, info.st_rdev));
    for (auto& [key, value] : attributes(dir, entry.name)) {
      hasher.add(key);
      hasher.add(value);
    }
    if (S_ISLNK(info.st_mode)) hasher.add(read_link(dir, entry.name));
    if (S_ISREG(info.st_mode)) {
      hasher.add(std::to_string(info.st_size));
      hasher.add_file(Fd::open_at(dir, entry.name, O_RDONLY | O_NOFOLLOW), here);
    }
    if (S_ISDIR(info.st_mode))
      digest_directory(hasher, Fd::open_at(dir, entry.name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW),
                       here);
  }
}

}  // namespace

TreeSize copy_tree(const std::string& from, const std::string& to) {
  Copier copier;
  copier.copy_directory(Fd::open(from, O_RDONLY | O_DIRECTORY),
                        Fd::open(to, O_RDONLY | O_DIRECTORY), from);
  // The top directory's own attributes: an opaque or changed root of the layer.
  struct stat info;
  check(::stat(from.c_str(), &info), "stat", from);
  check(::chown(to.c_str(), info.st_uid, info.st_gid), "set owner of", to);
  check(::chmod(to.c_str(), info.st_mode & 07777), "set mode of", to);
  for (std::string& path : copier.size.linked) path.erase(0, from.size() + 1);
  return copier.size;
}

void add_linked_names(const std::vector<std::string>& linked, const std::string& merged,
                      const std::vector<std::string>& lowers, const std::string& layer) {
  if (linked.empty()) return;
  LinkedNames names(merged, layer);
  for (const std::string& path : linked) names.expect(path);
  for (const std::string& lower : lowers)
    if (!names.complete()) names.find(Fd::open(lower, O_RDONLY | O_DIRECTORY), lower, "");
}

Fd open_layered(const std::vector<std::string>& layers, const std::string& path) {
  for (const std::string& layer : layers) {
    std::string at = layer;
    std::istringstream parts(path);
    bool hidden = false;  // what lower layers have at this path
    for (std::string part; std::getline(parts, part, '/');) {
      if (part.empty()) continue;
      if (part == "." || part == "..") return {};
      at += "/" + part;
      struct stat info;
      if (::lstat(at.c_str(), &info) != 0) {
        at.clear();
        break;
      }
      for (const char* name : {"opaque", "redirect", "metacopy"})
        hidden = hidden || ::lgetxattr(at.c_str(), (std::string("trusted.overlay.") + name).c_str(),
                                       nullptr, 0) >= 0;
      hidden = hidden || !S_ISDIR(info.st_mode);
    }
    struct stat info;
    if (!at.empty() && ::lstat(at.c_str(), &info) == 0 && S_ISREG(info.st_mode) &&
        ::lgetxattr(at.c_str(), "trusted.overlay.metacopy", nullptr, 0) < 0)
      return Fd::open(at, O_RDONLY | O_NOFOLLOW);
    if (hidden) return {};
  }
  return {};
}

std::uint64_t tree_bytes(const std::string& directory) {
  std::uint64_t bytes = 0;
  std::error_code gone;  // of what has vanished meanwhile
  for (std::filesystem::recursive_directory_iterator
           at(directory, std::filesystem::directory_options::skip_permission_denied, gone),
       end;
       !gone && at != end; at.increment(gone)) {
    struct stat info;
    if (::lstat(at->path().c_str(), &info) == 0 && S_ISREG(info.st_mode))
      bytes += static_cast<std::uint64_t>(info.st_blocks) * 512 / info.st_nlink;
  }
  return bytes;
}

std::string digest_tree(const std::string& directory) {
  Hasher hasher;
  digest_directory(hasher, Fd::open(directory, O_RDONLY | O_DIRECTORY), "");
  return hasher.hex();
}

std::string digest_file(const std::string& path, const std::function<void()>& between) {
  Hasher hasher;
  hasher.add_file(Fd::open(path, O_RDONLY | O_NOFOLLOW), path, between);
  return hasher.hex();
}

}  // namespace thaw::store
