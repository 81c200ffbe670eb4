// Copies and digests of directory trees, with all that a container's filesystem layer holds.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "util/fd.h"

namespace thaw::store {

struct TreeSize {
  std::uint64_t files = 0, bytes = 0;  // bytes: allocated on disk, holes not counted
  // Files, relative to the top, of which overlay's index knows names outside this tree.
  std::vector<std::string> linked;
};

// Copies everything below `from` into the existing directory `to`: owners, modes, times, extended
// attributes, hard links, holes, symbolic links, fifos, sockets, device nodes (so overlay's
// whiteouts, which are 0:0 character devices) and opaque directories. Overlay's own bookkeeping
// attributes (origin, impure, nlink, uuid, upper) are left out: they name inodes of the source.
// Does not cross mounts or follow links.
TreeSize copy_tree(const std::string& from, const std::string& to);

// A file of a lower layer that has several names is written to by one of them: only that name then
// lies in the upper layer, and the index beside it keeps the others on the same file. `layer` is a
// copy of such an upper layer and `linked` its files of that kind; this adds their other names, so
// that the layer needs no index. `merged` is the mounted overlay, `lowers` its lower directories,
// topmost first.
void add_linked_names(const std::vector<std::string>& linked, const std::string& merged,
                      const std::vector<std::string>& lowers, const std::string& layer);

// The regular file that an overlay of these layers (topmost first) shows at `path`, opened for
// reading; empty where there is none, or more than one layer has a part in it.
Fd open_layered(const std::vector<std::string>& layers, const std::string& path);

// Bytes allocated to files below a directory that others may be changing: about.
std::uint64_t tree_bytes(const std::string& directory);

// sha256 hex over every entry's path, type, mode, owner, device number, link target, attributes,
// and contents, in sorted order.
std::string digest_tree(const std::string& directory);

// sha256 hex of a file's contents. `between`: called after each MiB; it may throw.
std::string digest_file(const std::string& path, const std::function<void()>& between = {});

}  // namespace thaw::store
