// Making a replica's network namespace.
#pragma once

#include <string>

#include "network/network.h"

namespace thaw::network {

// A new namespace with everything in it that is the same in every replica, and the veth pair
// `interface` to the calling thread's namespace, its host end up. A link of that name that exists
// is deleted first. The calling thread stays where it is.
Fd make_replica_netns(const std::string& interface, const std::string& address,
                      const std::string& address6);

}  // namespace thaw::network
