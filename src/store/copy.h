// Copies of directory trees, with all that a container's filesystem layer holds: owners, modes,
// times, extended attributes, hard links, holes, symbolic links, fifos, sockets, device nodes (so
// overlay's whiteouts, which are 0:0 character devices) and opaque directories. Overlay's own
// bookkeeping attributes (origin, impure, nlink, uuid, upper) are left out: they name inodes of the
// source. Mounts are not crossed, links not followed.
#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "store/entries.h"
#include "util/fd.h"

namespace thaw::store {

struct TreeSize {
  std::uint64_t files = 0, bytes = 0;  // bytes: allocated on disk, holes not counted
  // Files, relative to the top, of which overlay's index knows names outside this tree.
  std::vector<std::string> linked;
};

// A copy of everything below `from` into the existing, empty directory `to`. While the tree is
// still in use most of it can be copied ahead; finish() then copies what has changed since.
class TreeCopy {
 public:
  TreeCopy(std::string from, std::string to);

  // Others may go on changing the tree; what cannot be read just now is left out. Does nothing on a
  // file system whose times do not tell of every write.
  void ahead();
  bool begun() const { return !seen_.empty(); }
  // Nobody changes the tree any more: `to` becomes exactly the same. `doubtful` names files, by
  // their path below `from`, that may have been written to without a trace in their times, as
  // through a mapping that existed before ahead(). The size is of what this call copied.
  using Doubt = std::function<bool(const std::string& path)>;
  TreeSize finish(const Doubt& doubtful = {});
  // Copies all of it at once, beside what `to` holds already.
  TreeSize add();

 private:
  TreeSize end(const Fd& from, const Fd& to);
  bool update(const Fd& from, const Fd& to, const std::string& below);
  bool unchanged(const std::string& path, const struct stat& now) const;
  bool keep(const Fd& from, const Fd& to, const Entry& entry, const Entry& old,
            const std::string& path);
  void copy_directory(const Fd& from, const Fd& to, const std::string& below);
  void copy_entry(const Fd& from, const Fd& to, const Entry& entry, const std::string& path);
  void create(const Fd& from, const Fd& to, const Entry& entry, const std::string& path);
  void copy_file(const Fd& from, const Fd& to, const Entry& entry, const std::string& path);
  void note_linked(const Fd& from, const Entry& entry, const std::string& path);
  void complete(const Fd& from, const Fd& to, const Entry& entry, const std::string& path);

  std::string from_, to_;
  bool ahead_ = false;                       // while others change the tree
  std::map<std::string, struct stat> seen_;  // copied ahead, as it was before it was copied
  std::int64_t ahead_since_us_ = 0;          // wall clock
  Doubt doubtful_;
  std::map<std::pair<dev_t, ino_t>, Fd> links_;  // files with several names; their copies
  TreeSize size_;
};

// TreeCopy::add().
TreeSize copy_tree(const std::string& from, const std::string& to);

}  // namespace thaw::store
