// What the copies and the digests of trees have in common.
#pragma once

#include <sys/stat.h>

#include <string>
#include <utility>
#include <vector>

#include "util/fd.h"

namespace thaw::store {

struct Entry {
  std::string name;
  struct stat info;
};

// Of a directory, sorted by name. `path` is for errors.
std::vector<Entry> list(const Fd& dir, const std::string& path);

// Extended attributes of the entry itself, links not followed; {name, value} sorted by name,
// overlay's bookkeeping left out.
std::vector<std::pair<std::string, std::string>> attributes(const Fd& dir, const std::string& name);

std::string read_link(const Fd& dir, const std::string& name);

}  // namespace thaw::store
