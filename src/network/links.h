// How a pod reaches another one that it links to. Inside, each name stands for an address that is
// the same in every replica, on every host, before and after a restore. Connections to such an
// address are turned, wherever they lead, to the one place where the gateway listens for them; who
// may go where is for the gateway to say, by the replica's unique address.
#pragma once

#include <netinet/in.h>

#include <cstdint>
#include <string>

namespace thaw::network {

inline constexpr std::uint16_t kLinkPort = 19077;  // of the gateway's listener

// 10.77.1.1 to 10.77.254.254, from the pod's name alone.
std::string link_address(const std::string& pod);
// The host's address on which the gateway of this instance listens; on `lo` while the table is
// loaded.
std::string link_listener(int instance);
// Where the client of an accepted connection wanted to go. False when it was not turned here by our
// table.
bool original_destination(int socket, sockaddr_in& destination);

}  // namespace thaw::network
