// Every entry of a directory tree, in sorted order.
#pragma once

#include <sys/stat.h>

#include <functional>
#include <string>

namespace thaw::image {

struct TreeEntry {
  std::string path;  // relative; "." for the top
  struct statx info {};
  std::string target;  // of a symbolic link
  bool mount = false;  // something is mounted here: nothing below it is visited
};

// Depth first, the names of each directory sorted by bytes. Follows no symbolic link, crosses no
// mount, reads no file. What vanishes while it walks is left out. Throws Error with the path.
void walk_tree(const std::string& directory, const std::function<void(const TreeEntry&)>& visit);

}  // namespace thaw::image
