#include <openssl/evp.h>

#include "image/images.h"
#include "image/tree_walk.h"
#include "util/error.h"

namespace thaw::image {

std::string directory_digest(const std::string& directory) {
  std::unique_ptr<EVP_MD_CTX, void (*)(EVP_MD_CTX*)> context(EVP_MD_CTX_new(), EVP_MD_CTX_free);
  auto must = [&](int result) {
    if (result != 1) throw Error(Code::kInternal, "make digest of", directory, "OpenSSL refused");
  };
  must(context ? EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr) : 0);
  std::string record;
  walk_tree(directory, [&](const TreeEntry& entry) {
    record = entry.path;
    record += '\0';
    if (entry.mount) {
      record += "mount";  // what is mounted there says nothing about this tree
    } else {
      const auto& info = entry.info;
      // A directory's size is the file system's own affair. The device number is what a device node
      // has for contents.
      std::uint64_t size = S_ISDIR(info.stx_mode) ? 0 : info.stx_size;
      fmt::format_to(std::back_inserter(record), "{:o} {} {} {} {}.{:09} {}:{}", info.stx_mode,
                     info.stx_uid, info.stx_gid, size, info.stx_mtime.tv_sec,
                     info.stx_mtime.tv_nsec, info.stx_rdev_major, info.stx_rdev_minor);
    }
    record += '\0';
    record += entry.target;
    record += '\0';
    must(EVP_DigestUpdate(context.get(), record.data(), record.size()));
  });
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned length = 0;
  must(EVP_DigestFinal_ex(context.get(), digest, &length));
  std::string text;
  for (unsigned i = 0; i < length; ++i) text += fmt::format("{:02x}", digest[i]);
  return text;
}

}  // namespace thaw::image
