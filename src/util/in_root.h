// Paths that belong to somebody else's root directory: a container's, an unpacked image's.
#pragma once

#include <string>

#include "util/fd.h"

namespace thaw {

// Opens `path` as a process sees it whose root directory is `root`: absolute symbolic links and
// ".." stay below it, magic links of /proc are not followed. An empty Fd, with errno set, when that
// fails: the caller often expects an absent file. `flags` as in open(2), no O_CREAT.
Fd try_open_in_root(const Fd& root, const std::string& path, int flags);
// The same, throwing Error with the path.
Fd open_in_root(const Fd& root, const std::string& path, int flags);

}  // namespace thaw
