#include "util/file.h"

#include <dirent.h>
#include <fcntl.h>
#include <openssl/sha.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>

#include <fmt/format.h>

#include "util/error.h"
#include "util/fd.h"

namespace thaw {
namespace {

void remove_entries(const Fd& dir, const std::string& path, dev_t device) {
  int copy = ::fcntl(dir.get(), F_DUPFD_CLOEXEC, 3);
  check(copy, "open", path);
  DIR* stream = ::fdopendir(copy);
  if (!stream) throw_errno("list", path);
  struct Close {
    DIR* stream;
    ~Close() { ::closedir(stream); }
  } close{stream};
  for (;;) {
    errno = 0;
    dirent* entry = ::readdir(stream);
    if (!entry) {
      if (errno) throw_errno("list", path);
      return;
    }
    std::string_view name = entry->d_name;
    if (name == "." || name == "..") continue;
    if (::unlinkat(dir.get(), entry->d_name, 0) == 0 || errno == ENOENT) continue;
    if (errno != EISDIR && errno != EPERM) throw_errno("remove", path + "/" + entry->d_name);
    std::string child_path = path + "/" + entry->d_name;
    Fd child = Fd::open_at(dir, entry->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
    struct stat info;
    check(::fstat(child.get(), &info), "stat", child_path);
    if (info.st_dev != device)
      throw Error(Code::kConflict, "remove", child_path, "something is mounted there",
                  "unmount it first");
    remove_entries(child, child_path, device);
    check(::unlinkat(dir.get(), entry->d_name, AT_REMOVEDIR), "remove", child_path);
  }
}

}  // namespace

std::string read_file(const std::string& path, std::size_t limit) {
  return read_all(Fd::open(path, O_RDONLY), limit);
}

void write_file(const std::string& path, std::string_view data) {
  Fd file = Fd::open(path, O_WRONLY | O_CREAT | O_TRUNC);
  write_all(file, data, path);
}

void sync_directory(const std::string& path) {
  check(::fsync(Fd::open(path, O_RDONLY | O_DIRECTORY).get()), "sync", path);
}

void write_file_atomic(const std::string& path, std::string_view data, unsigned mode) {
  std::string beside = path + ".tmp-" + random_hex(8);
  try {
    Fd file = Fd::open(beside, O_WRONLY | O_CREAT | O_EXCL, mode);
    write_all(file, data, beside);
    check(::fsync(file.get()), "sync", beside);
    check(::rename(beside.c_str(), path.c_str()), "rename", path);
  } catch (...) {
    ::unlink(beside.c_str());
    throw;
  }
  std::string folder = std::filesystem::path(path).parent_path().string();
  sync_directory(folder.empty() ? "." : folder);
}

bool exists(const std::string& path) { return ::access(path.c_str(), F_OK) == 0; }

void make_directories(const std::string& path, unsigned mode) {
  std::string so_far;
  for (std::size_t at = 0; at <= path.size();) {
    std::size_t slash = path.find('/', at);
    if (slash == std::string::npos) slash = path.size();
    so_far = path.substr(0, slash);
    at = slash + 1;
    if (so_far.empty()) continue;
    if (::mkdir(so_far.c_str(), mode) != 0 && errno != EEXIST)
      throw_errno("make directory", so_far);
  }
}

void remove_tree(const std::string& path) {
  struct stat info;
  if (::lstat(path.c_str(), &info) != 0) {
    if (errno == ENOENT) return;
    throw_errno("stat", path);
  }
  if (!S_ISDIR(info.st_mode)) {
    check(::unlink(path.c_str()), "remove", path);
    return;
  }
  {
    Fd dir = Fd::open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
    remove_entries(dir, path, info.st_dev);
  }
  check(::rmdir(path.c_str()), "remove", path);
}

std::string trim(std::string_view text) {
  const char* white = " \t\r\n";
  auto from = text.find_first_not_of(white);
  if (from == std::string_view::npos) return {};
  return std::string(text.substr(from, text.find_last_not_of(white) - from + 1));
}

std::string random_hex(int length) {
  unsigned char bytes[32];
  std::size_t count = static_cast<std::size_t>(length) / 2;
  check(::getrandom(bytes, count, 0), "read random bytes");
  std::string text;
  for (std::size_t i = 0; i < count; ++i) text += fmt::format("{:02x}", bytes[i]);
  return text;
}

std::string sha256_hex(std::string_view data) {
  unsigned char digest[SHA256_DIGEST_LENGTH];
  ::SHA256(reinterpret_cast<const unsigned char*>(data.data()), data.size(), digest);
  std::string text;
  for (unsigned char byte : digest) text += fmt::format("{:02x}", byte);
  return text;
}

std::string format_bytes(std::uint64_t bytes) {
  if (bytes < 1024) return fmt::format("{} B", bytes);
  const char* units[] = {"KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes) / 1024;
  int unit = 0;
  while (value >= 1024 && unit < 3) {
    value /= 1024;
    ++unit;
  }
  return fmt::format("{:.1f} {}", value, units[unit]);
}

}  // namespace thaw
