// Sizes and digests of directory trees, with all that a container's filesystem layer holds.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

namespace thaw::store {

// Bytes allocated to files below a directory that others may be changing: about.
std::uint64_t tree_bytes(const std::string& directory);

// sha256 hex over every entry's path, type, mode, owner, device number, link target, attributes,
// and contents, in sorted order.
std::string digest_tree(const std::string& directory);

// sha256 hex of a file's contents. `between`: called after each MiB; it may throw.
std::string digest_file(const std::string& path, const std::function<void()>& between = {});

// sha256 hex of what next() gives one after the other, until that is empty.
std::string digest_pieces(const std::function<std::string_view()>& next);

}  // namespace thaw::store
