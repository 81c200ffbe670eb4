#include "store/tree.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "store/entries.h"
#include "util/error.h"
#include "util/fd.h"

namespace thaw::store {
namespace {

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

std::string digest_pieces(const std::function<std::string_view()>& next) {
  Hasher hasher;
  for (std::string_view piece = next(); !piece.empty(); piece = next())
    hasher.add(piece.data(), piece.size());
  return hasher.hex();
}

}  // namespace thaw::store
