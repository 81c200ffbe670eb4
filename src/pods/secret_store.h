// Secrets that the daemon keeps, for pods to name: a file each, root's alone, in a folder that only
// root enters. What is in them leaves it only for a replica's memory. Thread-safe.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

namespace thaw::pods {

// RE2, of the whole name.
inline constexpr std::string_view kSecretName = "[A-Za-z0-9_][-A-Za-z0-9_.]{0,126}";

struct SecretRow {
  std::string name;
  std::int64_t updated_us = 0;
};

class SecretStore {
 public:
  // Makes the folder, and takes away what a daemon that was killed while it wrote has left.
  explicit SecretStore(std::string folder);

  // Whether there was none of this name. kInvalid for what is no name, and for a value that is
  // empty or above 1 MiB. Replicas that start from then on have the new value.
  bool put(const std::string& name, std::string_view value);
  std::vector<SecretRow> list() const;   // by name
  void remove(const std::string& name);  // kNotFound

 private:
  std::string folder_;
  std::mutex mutex_;
};

}  // namespace thaw::pods
