// Small files that lie on disk encrypted, each bound to its name: AES-256-GCM of OpenSSL's, under a
// key in a file of its own. Any thread.
#pragma once

#include <string>
#include <string_view>

#include "util/error.h"

namespace thaw {

// What to do without the key.
inline constexpr const char* kLostKey =
    "put it back; if it is lost, make another (openssl rand -hex 32) and set the secrets anew "
    "(`thaw secret set`)";

class SealKey {
 public:
  // A file of 64 hexadecimal digits that only its owner, root or us, can read. kNotFound when it is
  // not there, kDenied when others can read it, kCorrupt when it is no key.
  static SealKey read(const std::string& path);
  // A new one in a new file of mode 0600, whole or not there.
  static SealKey make(const std::string& path);
  ~SealKey();
  SealKey(SealKey&& other) noexcept;
  SealKey(const SealKey&) = delete;
  SealKey& operator=(const SealKey&) = delete;

  std::string seal(std::string_view name, std::string_view plain) const;
  // kUnavailable for what another key has sealed, kUnsupported for what a newer Thaw has, kCorrupt
  // for what was changed, or is another one's.
  std::string unseal(std::string_view name, std::string_view sealed) const;

 private:
  SealKey(std::string path, std::string bytes);
  std::string path_, bytes_, id_;
};

}  // namespace thaw
