// The host's switches for passing packets on.
#pragma once

namespace thaw::network {

// Turns on IPv4 and IPv6 forwarding in the calling thread's network namespace where they are off,
// and says so in the log. They are never turned off again: somebody else may have come to need
// them.
void enable_forwarding();

}  // namespace thaw::network
