// A directory for what is not finished: below store_dir/tmp, gone when its owner is, recognised as
// abandoned when its owner was killed.
#pragma once

#include <string>

#include "util/fd.h"

namespace thaw::image {

class Staging {
 public:
  explicit Staging(const std::string& store_dir);
  ~Staging();  // removes the directory
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  const std::string& path() const { return path_; }
  // The lock that tells that somebody works here. Children that work here inherit it, so that it
  // outlives a killed daemon as long as they do.
  const Fd& lock() const { return lock_; }

  // Removes the directories of owners that are gone.
  static void remove_abandoned(const std::string& store_dir);

 private:
  std::string path_;
  Fd lock_;
};

}  // namespace thaw::image
