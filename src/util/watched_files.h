// Tells when files have been replaced or written anew, such as a certificate and its key, which are
// renewed while a program uses them. Their folders are watched, since renewing mostly means to
// rename a new file, or a link, into place.
#pragma once

#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "util/fd.h"

namespace thaw {

class WatchedFiles {
 public:
  // `changed` is called on a thread of this object, a moment after a change (the files of a pair
  // come one after the other), and must not throw.
  WatchedFiles(std::vector<std::string> paths, std::function<void()> changed);
  ~WatchedFiles();
  WatchedFiles(const WatchedFiles&) = delete;
  WatchedFiles& operator=(const WatchedFiles&) = delete;

 private:
  void run();
  void watch_folders();
  std::string identity() const;

  const std::vector<std::string> paths_;
  const std::function<void()> changed_;
  Fd events_, stop_ = Fd::event();
  std::string known_;
  std::thread thread_;
};

}  // namespace thaw
