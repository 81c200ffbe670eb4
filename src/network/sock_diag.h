// The sockets of the calling thread's network namespace as the kernel lists them
// (NETLINK_SOCK_DIAG).
#pragma once

#include <cstdint>
#include <vector>

#include "network/rtnetlink.h"

namespace thaw::network {

// One TCP or UDP socket with a remote end. IPv4-mapped IPv6 addresses are given as IPv4, so that
// the two ends of a connection compare.
struct ConnectedSocket {
  int protocol = 0;  // IPPROTO_TCP, IPPROTO_UDP
  int state = 0;     // TCP_ESTABLISHED …
  Address local, remote;
  std::uint16_t local_port = 0, remote_port = 0;
  // As the kernel wants them back to find the same socket.
  int family = 0;
  std::vector<char> id;
};

// `states`: a mask of 1 << TCP_ESTABLISHED and so on. Sockets without a remote port are left out.
std::vector<ConnectedSocket> connected_sockets(const Fd& socket, int protocol,
                                               std::uint32_t states);
// Whether the other end of a TCP connection is a socket of the same namespace, at this moment.
bool has_other_end(const Fd& socket, const ConnectedSocket& connection);
// False when it had gone already. The owner sees ECONNABORTED; the remote end of a TCP connection
// is sent a reset.
bool destroy(const Fd& socket, const ConnectedSocket& connection);

}  // namespace thaw::network
