// Small corrections of CRIU's images, made once, before a checkpoint is sealed.
#pragma once

#include <string>

namespace thaw::checkpoint {

// A periodic timerfd that expired while the tree was frozen has no time left in the image, and CRIU
// restores it as disarmed: it would never fire again. Such timers are set to fire at once. Returns
// how many were.
int rearm_expired_timers(const std::string& images_dir);

}  // namespace thaw::checkpoint
