// Secrets that the daemon keeps, for pods to name: a sealed file each (util/sealed.h), in a folder
// that only root enters. What is in them leaves it only for a replica's memory. Thread-safe.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "util/sealed.h"

namespace thaw::pods {

// RE2, of the whole name.
inline constexpr std::string_view kSecretName = "[A-Za-z0-9_][-A-Za-z0-9_.]{0,126}";

struct SecretRow {
  std::string name;
  std::int64_t updated_us = 0;
};

class SecretStore {
 public:
  // Makes the folder, takes away what a daemon that was killed while it wrote has left, and seals
  // what an earlier version kept in `plain` as it was. What cannot be sealed, for want of the key
  // or of room, stays there and is used from there; the next start tries again.
  SecretStore(std::string folder, std::string plain, std::string key_file);

  // Whether there was none of this name. kInvalid for what is no name, and for a value that is
  // empty or above 1 MiB. kUnavailable when the key is gone that others are sealed with; without
  // others a new one is made. Replicas that start from then on have the new value.
  bool put(const std::string& name, std::string_view value);
  std::vector<SecretRow> list() const;   // by name
  void remove(const std::string& name);  // kNotFound

 private:
  SealKey key() const;
  void seal_plain();
  std::vector<std::string> names(const std::string& folder) const;
  void write(const SealKey& key, const std::string& name, std::string_view value) const;

  const std::string folder_, plain_, key_file_;
  std::mutex mutex_;
};

}  // namespace thaw::pods
