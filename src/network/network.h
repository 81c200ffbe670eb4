// Replica networks. Inside every replica the same addresses, outside each a unique one; one static
// nft table translates statelessly by interface name. Layout and reasons: DESIGN.md "Network";
// numbers: docs/network.md.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "util/fd.h"

namespace thaw::network {

// Fixed addresses inside every replica.
inline constexpr const char* kReplicaAddress = "10.77.0.2";
inline constexpr const char* kReplicaAddress6 = "fd00:77::2";
inline constexpr const char* kGatewayAddress =
    "10.77.0.1";  // on the replica's lo; source of the gateway's connections

// One prepared network: a namespace held by a descriptor, a veth pair whose host end has the unique
// address.
struct Endpoint {
  Fd netns;
  int index = -1;                 // of the pool
  std::string interface;          // host end's name
  std::string address, address6;  // unique, on the host
};

// Owns the host side: table, forwarding, masquerade, the index pool. One for each daemon.
// Thread-safe.
class Network {
 public:
  // Claims the first free instance (0 to 31) of the host by locking `lock_dir`/network-N (flock,
  // held until destroyed), loads its table (replacing one a dead daemon of the same instance left),
  // turns on IPv4 and IPv6 forwarding. `preferred_instance` >= 0: that one or an Error (a restarted
  // daemon takes back its instance, so that its replicas keep their addresses). Without it,
  // instances that have interfaces left are taken last. `lock`: lock() of an earlier daemon, kept
  // by somebody meanwhile, with its instance; empty or of no instance: claimed as said. `rest_us`:
  // how long a released namespace may take to end before its host end is deleted from outside. Like
  // create, destroy and remove_stray_interfaces it must be called from the host's network
  // namespace.
  explicit Network(const std::string& lock_dir, int preferred_instance = -1, Fd lock = {},
                   std::int64_t rest_us = 5'000'000);
  ~Network();  // leaves the table and the namespaces of living replicas as they are
  int instance() const;
  const Fd& lock() const;  // the instance is claimed as long as a duplicate of it is open

  // Makes a complete namespace: lo up with the gateway's source address; eth0 (ifindex 2, fixed MAC
  // and addresses, permanent neighbours, default routes); host end up, routes and neighbours of the
  // unique addresses. About 1 ms. kExhausted when all addresses are in use.
  Endpoint create();
  // After a daemon restart: marks the index as in use again.
  void adopt(int index);
  // Gives the index back. The namespace ends with its last descriptor and process, the veth with
  // it. A host end that still exists is deleted in the background only if it outlives that.
  void release(int index);
  // Removes the table and every interface of this instance; for a daemon that shuts down with no
  // replica left.
  void destroy();
  // Names of this instance's interfaces that exist and whose index is not in use: leaks of a
  // crashed daemon. Deletes them.
  int remove_stray_interfaces();

  static std::string interface_name(int instance, int index);
  static std::string unique_address(int instance, int index);
  static std::string unique_address6(int instance, int index);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// --- used by the shim, which lives inside the replica's network namespace ---

// A netlink socket of the namespace that the caller is in now; setting links through it works after
// the caller has moved elsewhere.
Fd open_route_socket();
// Opens or closes a replica's link, given by its host end's name, through such a socket: while it
// is closed, the nft table drops every packet from and to the replica. The replica's own view does
// not change. Throws Error with the kernel's errno.
void set_link_open(const Fd& route_socket, const std::string& interface, bool open);
// For a replica that is to reach nothing: in the caller's network namespace, what is not inside has
// no route, and programs are told so at once.
void cut_off();
// Destroys every TCP and UDP socket (IPv4 and IPv6) of the caller's network namespace that is
// connected to anything outside it: own are those whose both ends are addresses of the namespace.
// Listening and unconnected sockets stay. Returns how many were destroyed.
int destroy_outside_sockets();
// Counts established TCP connections between the namespace and the outside whose local port is in
// `ports` (all when empty).
int count_outside_connections(const std::vector<std::uint16_t>& ports);

// Moves the calling thread into a network namespace for the life of the object, then back.
class NetnsScope {
 public:
  explicit NetnsScope(int netns_fd);
  ~NetnsScope();
  NetnsScope(const NetnsScope&) = delete;
  NetnsScope& operator=(const NetnsScope&) = delete;

 private:
  Fd home_;
};

}  // namespace thaw::network
