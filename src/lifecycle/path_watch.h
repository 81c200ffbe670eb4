// Tells when a path that may not exist yet changes, in somebody else's root directory or in ours.
// One thread at a time.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>

#include "util/fd.h"

namespace thaw::lifecycle {

// Watches, with inotify, every directory that resolving the path passes through (symbolic links
// included), up to the place where it ends, for the names that the resolution used. So nothing that
// can make the path appear, vanish or mean something else goes by unseen, except a mount: the
// kernel has no event for that, and whoever waits should look again now and then.
class PathWatch {
 public:
  enum class What {
    kPath,      // that it resolves
    kContents,  // and that what it names is written to
    kEntries,   // and that entries come to or leave the directory it names
  };
  // How to use it: arm(), look, wait until fd() is readable, changed(), look again. `path` is
  // resolved below `root`.
  PathWatch(Fd root, std::string path, What what);

  const Fd& root() const { return root_; }
  const std::string& path() const { return path_; }

  // Sets the watches for how the path resolves now: what happens from here on is seen. False when
  // the kernel had no watch left (fs.inotify.*), so that something may go unseen.
  bool arm();
  const Fd& fd() const { return inotify_; }
  // Takes the events away. True when one of them touches the path; arms again where the path may
  // now resolve differently.
  bool changed();

 private:
  bool walk();
  bool watch(const Fd& directory, const std::string& name, std::uint32_t events);
  Fd root_;
  std::string path_;
  What what_;
  Fd inotify_;
  std::map<int, std::set<std::string>> names_;  // of a watch; "" stands for every name
};

}  // namespace thaw::lifecycle
