// What is known to be in the way of a dump. CRIU's own words for it are often about something else:
// the kernel refuses to pass an io_uring on, and all that is heard is that descriptors could not be
// sent.
#pragma once

#include <string>
#include <vector>

namespace thaw::checkpoint {

// One sentence about the first descriptor of these processes that CRIU cannot dump; empty when
// there is none. Processes that are gone are passed over.
std::string find_obstacle(const std::vector<int>& pids);

}  // namespace thaw::checkpoint
