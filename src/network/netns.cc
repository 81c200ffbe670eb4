#include "network/netns.h"

#include <fcntl.h>
#include <linux/rtnetlink.h>
#include <sched.h>

#include <cerrno>
#include <cstdlib>
#include <exception>

#include "network/layout.h"
#include "network/rtnetlink.h"
#include "util/error.h"
#include "util/file.h"
#include "util/log.h"

namespace thaw::network {
namespace {

constexpr const char* kNetns = "/proc/thread-self/ns/net";

// /proc/sys/net shows the namespace of whoever opens it.
void set_namespace_sysctls() {
  // Ping without a capability for every group, as docker has it: images that run as their own user
  // expect it.
  write_file("/proc/sys/net/ipv4/ping_group_range", "0 2147483647");
  // A new namespace takes the host's IPv4 switches, but a replica passes nothing on.
  write_file("/proc/sys/net/ipv4/ip_forward", "0");
}

void make_veth(const Fd& host, const std::string& interface, const Fd& netns) {
  auto attempt = [&] {
    Batch batch;
    add_veth(batch, interface, kHostMac, "eth0", kReplicaMac, kReplicaLink, netns.get());
    return try_send(host, batch);
  };
  auto failure = attempt();
  if (failure && failure->error_number == EEXIST && find_link(host, interface)) {
    Batch batch;
    delete_link(batch, interface);
    // It may be dying by itself just now.
    auto deletion = try_send(host, batch);
    if (deletion && deletion->error_number != ENODEV) throw_failure(*deletion);
    failure = attempt();
  }
  if (!failure) return;
  if (failure->error_number == EBUSY || failure->error_number == EEXIST) {
    throw Error(Code::kUnsupported, "create eth0 with index 2 in a new network namespace",
                interface, "the kernel has put a device of its own there",
                "set the sysctl net.core.fb_tunnels_only_for_init_net=1");
  }
  throw_failure(*failure);
}

void configure_inside(const Fd& inside) {
  const Address address = Address::parse(kReplicaAddress),
                address6 = Address::parse(kReplicaAddress6);
  const Address next_hop = Address::parse(kNextHop), next_hop6 = Address::parse(kNextHop6);
  Batch batch;
  set_up(batch, "lo", true);
  add_address(batch, 1, Address::parse(kGatewayAddress), 32);
  without_link_local(batch, "eth0");
  set_up(batch, "eth0", true);
  add_address(batch, kReplicaLink, address, address.bits());
  add_address(batch, kReplicaLink, address6, address6.bits());
  add_neighbour(batch, kReplicaLink, next_hop, kHostMac);
  add_neighbour(batch, kReplicaLink, next_hop6, kHostMac);
  add_default_route(batch, kReplicaLink, next_hop, address);
  add_default_route(batch, kReplicaLink, next_hop6, address6);
  send(inside, batch);
  wait_until_local(inside, address6);
}

// Routes and neighbours of the host end.
void connect_host_end(const Fd& route_socket, const std::string& interface,
                      const std::string& address, const std::string& address6) {
  auto link = find_link(route_socket, interface);
  if (!link) throw Error(Code::kNotFound, "set the routes of link", interface, "it does not exist");
  // The next hop of a packet is looked up after its destination became the fixed one, so that is
  // the neighbour's name.
  Batch batch;
  add_host_route(batch, link->index, Address::parse(address));
  add_neighbour(batch, link->index, Address::parse(kReplicaAddress), kReplicaMac);
  if (link->ipv6) {  // the host's administrator may have turned it off
    add_host_route(batch, link->index, Address::parse(address6));
    add_neighbour(batch, link->index, Address::parse(kReplicaAddress6), kReplicaMac);
  }
  send(route_socket, batch);
}

Fd make_on_this_thread(const std::string& interface, const std::string& address,
                       const std::string& address6) {
  Fd host = open_route_socket();
  check(::unshare(CLONE_NEWNET), "create a network namespace for", interface);
  Fd netns = Fd::open(kNetns, O_RDONLY | O_CLOEXEC);
  set_namespace_sysctls();
  make_veth(host, interface, netns);
  Batch batch;
  without_link_local(batch, interface);
  set_up(batch, interface, true);
  send(host, batch);
  // The end that is brought up last is ready at once: eth0, whose owner must not wait for us.
  configure_inside(open_route_socket());
  wait_until_ready(host, interface);
  connect_host_end(host, interface, address, address6);
  return netns;
}

}  // namespace

Fd make_replica_netns(const std::string& interface, const std::string& address,
                      const std::string& address6) {
  // On a thread of its own: unshare moves the thread that calls it.
  Fd netns;
  std::exception_ptr error;
  std::thread([&] {
    try {
      netns = make_on_this_thread(interface, address, address6);
    } catch (...) {
      error = std::current_exception();
    }
  }).join();
  if (error) std::rethrow_exception(error);
  return netns;
}

Fd open_route_socket() { return open_netlink(NETLINK_ROUTE); }

void set_link_open(const Fd& route_socket, const std::string& interface, bool open) {
  Batch batch;
  set_group(batch, interface, open ? 0 : kClosedGroup);
  send(route_socket, batch);
}

void cut_off() {
  Batch batch;
  delete_default_routes(batch, kReplicaLink);
  auto failure = try_send(open_route_socket(), batch);
  if (failure && failure->error_number != ESRCH) throw_failure(*failure);
}

NetnsScope::NetnsScope(int netns_fd) : home_(Fd::open(kNetns, O_RDONLY | O_CLOEXEC)) {
  check(::setns(netns_fd, CLONE_NEWNET), "enter a network namespace");
}

NetnsScope::~NetnsScope() {
  if (::setns(home_.get(), CLONE_NEWNET) == 0) return;
  // Going on would send every later packet of this thread through a replica.
  log::error("cannot leave a network namespace", {{"errno", std::to_string(errno)}});
  std::abort();
}

}  // namespace thaw::network
