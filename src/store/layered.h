// Files as an overlay shows them, without one.
#pragma once

#include <string>
#include <vector>

#include "util/fd.h"

namespace thaw::store {

// The regular file that an overlay of these layers (topmost first) shows at `path`, opened for
// reading; empty where there is none, or more than one layer has a part in it.
Fd open_layered(const std::vector<std::string>& layers, const std::string& path);

}  // namespace thaw::store
