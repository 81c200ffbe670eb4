// Names of one file on both sides of an overlay.
#pragma once

#include <string>
#include <vector>

namespace thaw::store {

// A file of a lower layer that has several names is written to by one of them: only that name then
// lies in the upper layer, and the index beside it keeps the others on the same file. `layer` is a
// copy of such an upper layer and `linked` its files of that kind; this adds their other names, so
// that the layer needs no index. `merged` is the mounted overlay, `lowers` its lower directories,
// topmost first.
void add_linked_names(const std::vector<std::string>& linked, const std::string& merged,
                      const std::vector<std::string>& lowers, const std::string& layer);

}  // namespace thaw::store
