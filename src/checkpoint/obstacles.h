// What is known to be in the way of a dump. CRIU's own words for it are often about something else:
// the kernel refuses to pass an io_uring on, and all that is heard is that descriptors could not be
// sent.
#pragma once

#include <string>
#include <vector>

namespace thaw::checkpoint {

// One sentence about the first of these processes that CRIU cannot dump: it has a descriptor of a
// kind that CRIU does not know, or its root or working directory is on no mount that it has. Empty
// when there is none. Processes that are gone are passed over.
std::string find_obstacle(const std::vector<int>& pids);

}  // namespace thaw::checkpoint
