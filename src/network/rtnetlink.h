// Links, addresses, neighbours and routes: the few rtnetlink messages that a replica's network is
// made of. Each adds one message to a batch.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "network/netlink.h"

namespace thaw::network {

using Mac = std::array<unsigned char, 6>;

// An IPv4 or IPv6 address as the kernel takes it.
struct Address {
  int family = 0;
  std::array<unsigned char, 16> bytes{};  // the first 4 for IPv4, the rest zero

  static Address parse(const std::string& text);  // throws kInvalid
  std::size_t size() const;
  int bits() const { return static_cast<int>(size()) * 8; }
  std::string text() const;
  auto operator<=>(const Address&) const = default;
};

// Makes a veth pair, both ends down: `name` in the socket's namespace, the other end in
// `peer_netns` with a chosen index.
void add_veth(Batch& batch, const std::string& name, const Mac& mac, const std::string& peer_name,
              const Mac& peer_mac, int peer_index, int peer_netns);
// No link-local address on this link, and so no duplicate address detection and no router
// solicitation.
void without_link_local(Batch& batch, const std::string& name);
void set_up(Batch& batch, const std::string& name, bool up);
void set_group(Batch& batch, const std::string& name, std::uint32_t group);
void add_address(Batch& batch, int link, const Address& address, int prefix);
void delete_address(Batch& batch, int link, const Address& address, int prefix);
// Never resolved, never aged. Replaces one that exists.
void add_neighbour(Batch& batch, int link, const Address& address, const Mac& mac);
// Default route through a gateway that is in no subnet of ours.
void add_default_route(Batch& batch, int link, const Address& gateway, const Address& source);
// Replaces one that exists.
void add_host_route(Batch& batch, int link, const Address& address);
// Of both families.
void delete_default_routes(Batch& batch, int link);
// What carries the mark is routed by the table.
void add_mark_rule(Batch& batch, int family, std::uint32_t mark, std::uint32_t table);
// Every address is local, in this table.
void add_local_default(Batch& batch, int family, int link, std::uint32_t table);
void delete_link(Batch& batch, const std::string& name);
// Every link of the group at once: the kernel's long waits are then paid once, not for each link.
void delete_group(Batch& batch, std::uint32_t group);

struct Link {
  int index = 0;
  std::string name;
  Mac mac{};
  bool ipv6 = false;   // neither the kernel nor a sysctl has turned it off for this link
  bool ready = false;  // up, and the kernel has begun to pass packets
};
std::vector<Link> links(const Fd& socket);
std::optional<Link> find_link(const Fd& socket, const std::string& name);
// An end of a veth pair that was brought up first gets its carrier when the other follows, and then
// drops what is sent until a worker of the kernel has seen it: milliseconds, but a lost first
// packet costs its sender a second. Waits for that; kTimeout after a second.
void wait_until_ready(const Fd& socket, const std::string& name);
// An IPv6 address is there at once, but the route that makes packets to it local is the work of a
// kernel worker, later; a connection that is begun before is sent to the neighbours and never finds
// home. Waits for that; kTimeout after a second.
void wait_until_local(const Fd& socket, const Address& address);
// Addresses of every link in the socket's namespace.
std::vector<Address> addresses(const Fd& socket);

}  // namespace thaw::network
