// Small corrections of CRIU's images, made once, before a checkpoint is sealed.
#pragma once

#include <string>

namespace thaw::checkpoint {

// A periodic timerfd that expired while the tree was frozen has no time left in the image, and CRIU
// restores it as disarmed: it would never fire again. Such timers are set to fire at once. Returns
// how many were.
int rearm_expired_timers(const std::string& images_dir);

// A mapping that is too small for a huge page of its own gets its neighbour's advice to have some,
// and so becomes one with it. Each mapping costs a restore several system calls, and numpy's arrays
// of 4 MiB and more lie as advised memory with a page in between that is not. Returns how many
// mappings fewer there are.
int join_mappings(const std::string& images_dir);

}  // namespace thaw::checkpoint
