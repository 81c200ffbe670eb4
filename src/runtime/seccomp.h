// Which system calls a container may make: the same for its first process, for what is executed in
// it later, and for a restored replica (CRIU takes the filter along in its image).
#pragma once

#include <linux/filter.h>

#include <vector>

#include <nlohmann/json.hpp>

namespace thaw::runtime {

// For the OCI runtime: `linux.seccomp` of the configuration.
nlohmann::json seccomp_profile();

// The same filter for a process that no OCI runtime starts. Made once, then kept. Error
// kUnsupported when libseccomp cannot make it.
const std::vector<sock_filter>& seccomp_program();

}  // namespace thaw::runtime
