// Leaves out of a dump's memory what a restore has without it. A page that no run of a pagemap
// names is zero in anonymous memory, whether CRIU or the page service fills it, and the file's own
// in a private mapping of a file.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "util/fd.h"

namespace thaw::checkpoint {

struct LeftOut {
  std::uint64_t zero = 0, file = 0;  // bytes: of zeros, and of what the mapped file has
};

// Opens a file of the container's root file system, named by its path in it, as every restored
// program will find it; an empty descriptor where that is not certain.
using OpenMapped = std::function<Fd(const std::string& path)>;

// Moves pagemap-*.img and their pages-*.img from one folder to another and leaves out on the way
// what need not be there; other files stay. Works in place where both are the same. Pages that are
// left out within a run split it, and a split costs each restore more than a page does: shorter
// runs of zeros become holes of the file instead. Error kCorrupt when the images make no sense.
LeftOut move_memory(const std::string& from, const std::string& to, const OpenMapped& open);

}  // namespace thaw::checkpoint
