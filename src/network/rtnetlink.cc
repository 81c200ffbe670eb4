#include "network/rtnetlink.h"

#include <arpa/inet.h>
#include <libmnl/libmnl.h>
#include <linux/fib_rules.h>
#include <linux/if.h>
#include <linux/if_addr.h>
#include <linux/if_link.h>
#include <linux/ipv6.h>
#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <linux/sockios.h>
#include <linux/veth.h>
#include <sys/ioctl.h>

#include <cerrno>
#include <cstring>

#include "network/network.h"
#include "util/clock.h"
#include "util/error.h"
#include "util/process.h"

namespace thaw::network {
namespace {

ifinfomsg* put_link(nlmsghdr* header) {
  auto* link = static_cast<ifinfomsg*>(mnl_nlmsg_put_extra_header(header, sizeof(ifinfomsg)));
  link->ifi_family = AF_UNSPEC;
  return link;
}

nlmsghdr* change_link(Batch& batch, const std::string& name, std::string what) {
  nlmsghdr* header = batch.message(RTM_NEWLINK, 0, std::move(what), 256);
  put_link(header);
  mnl_attr_put_strz(header, IFLA_IFNAME, name.c_str());
  return header;
}

void put_address(nlmsghdr* header, int attribute, const Address& address) {
  mnl_attr_put(header, static_cast<std::uint16_t>(attribute), address.size(), address.bytes.data());
}

rtmsg* put_route(nlmsghdr* header, int family) {
  auto* route = static_cast<rtmsg*>(mnl_nlmsg_put_extra_header(header, sizeof(rtmsg)));
  route->rtm_family = static_cast<unsigned char>(family);
  route->rtm_table = RT_TABLE_MAIN;
  route->rtm_protocol = RTPROT_STATIC;
  route->rtm_type = RTN_UNICAST;
  return route;
}

const nlattr* find_nested(const nlattr* nest, int type) {
  for (const nlattr* attribute : attributes_of(nest)) {
    if (mnl_attr_get_type(attribute) == type) return attribute;
  }
  return nullptr;
}

// IFLA_AF_SPEC > AF_INET6 > IFLA_INET6_CONF is the link's array of IPv6 sysctls; it is missing
// where the kernel has no IPv6.
bool has_ipv6(const nlattr* family_spec) {
  const nlattr* inet6 = find_nested(family_spec, AF_INET6);
  const nlattr* conf = inet6 ? find_nested(inet6, IFLA_INET6_CONF) : nullptr;
  if (!conf || mnl_attr_get_payload_len(conf) <= DEVCONF_DISABLE_IPV6 * sizeof(std::int32_t))
    return false;
  return static_cast<const std::int32_t*>(mnl_attr_get_payload(conf))[DEVCONF_DISABLE_IPV6] == 0;
}

Link read_link(const nlmsghdr* header) {
  Link link;
  link.index = static_cast<const ifinfomsg*>(mnl_nlmsg_get_payload(header))->ifi_index;
  for (const nlattr* attribute : attributes_of(header, sizeof(ifinfomsg))) {
    if (mnl_attr_get_type(attribute) == IFLA_IFNAME) link.name = mnl_attr_get_str(attribute);
    if (mnl_attr_get_type(attribute) == IFLA_AF_SPEC) link.ipv6 = has_ipv6(attribute);
    if (mnl_attr_get_type(attribute) == IFLA_OPERSTATE)
      link.ready = mnl_attr_get_u8(attribute) == IF_OPER_UP;
    if (mnl_attr_get_type(attribute) == IFLA_ADDRESS &&
        mnl_attr_get_payload_len(attribute) == link.mac.size()) {
      std::memcpy(link.mac.data(), mnl_attr_get_payload(attribute), link.mac.size());
    }
  }
  return link;
}

// The lists may change while the kernel writes them; it says so, and then we ask again.
void dump(const Fd& socket, int type, const std::string& what, const std::function<void()>& begin,
          const std::function<void(const nlmsghdr*)>& on_object) {
  for (int attempt = 0;; ++attempt) {
    begin();
    Batch batch;
    auto* header = batch.message(type, NLM_F_DUMP, what, 256);
    // ifinfomsg is the longest of the headers that a dump may begin with; zero means no filter in
    // all of them.
    put_link(header);
    auto failure = try_send(socket, batch, on_object);
    if (!failure) return;
    if (failure->error_number != EINTR || attempt == 20) throw_failure(*failure);
  }
}

// Until `done`, which is asked again whenever the kernel reports something of the group.
void wait_for(const Fd& socket, int group, const std::string& what, const std::string& object,
              const std::function<bool()>& done) {
  if (done()) return;
  // In the socket's namespace, which need not be the caller's.
  Fd netns(check(::ioctl(socket.get(), SIOCGSKNS), "find the namespace of a socket for", object));
  Fd events = [&] {
    NetnsScope scope(netns.get());
    return open_netlink(NETLINK_ROUTE);
  }();
  check(::setsockopt(events.get(), SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof group), what,
        object);
  const Deadline deadline = Deadline::after_ms(1000);
  while (!done()) {
    if (!wait_readable(events.get(), deadline))
      throw Error(Code::kTimeout, what, object, "the kernel does not bring it up");
    char buffer[32768];  // only that something changed is of interest
    (void)::recv(events.get(), buffer, sizeof buffer, MSG_DONTWAIT);
  }
}

}  // namespace

Address Address::parse(const std::string& text) {
  Address address;
  address.family = text.find(':') == std::string::npos ? AF_INET : AF_INET6;
  if (::inet_pton(address.family, text.c_str(), address.bytes.data()) != 1) {
    throw Error(Code::kInvalid, "read address", text, "it is neither an IPv4 nor an IPv6 address");
  }
  return address;
}

std::size_t Address::size() const { return family == AF_INET ? 4 : 16; }

std::string Address::text() const {
  char text[INET6_ADDRSTRLEN] = "";
  ::inet_ntop(family, bytes.data(), text, sizeof text);
  return text;
}

void add_veth(Batch& batch, const std::string& name, const Mac& mac, const std::string& peer_name,
              const Mac& peer_mac, int peer_index, int peer_netns) {
  auto* header = batch.message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, "create link " + name);
  put_link(header);
  mnl_attr_put_strz(header, IFLA_IFNAME, name.c_str());
  mnl_attr_put(header, IFLA_ADDRESS, mac.size(), mac.data());
  // One queue: the kernel's default is one for each possible core, paid for by every replica.
  mnl_attr_put_u32(header, IFLA_NUM_TX_QUEUES, 1);
  mnl_attr_put_u32(header, IFLA_NUM_RX_QUEUES, 1);
  nlattr* info = mnl_attr_nest_start(header, IFLA_LINKINFO);
  mnl_attr_put_str(header, IFLA_INFO_KIND, "veth");
  nlattr* data = mnl_attr_nest_start(header, IFLA_INFO_DATA);
  nlattr* peer = mnl_attr_nest_start(header, VETH_INFO_PEER);
  put_link(header)->ifi_index = peer_index;
  mnl_attr_put_strz(header, IFLA_IFNAME, peer_name.c_str());
  mnl_attr_put(header, IFLA_ADDRESS, peer_mac.size(), peer_mac.data());
  mnl_attr_put_u32(header, IFLA_NUM_TX_QUEUES, 1);
  mnl_attr_put_u32(header, IFLA_NUM_RX_QUEUES, 1);
  mnl_attr_put_u32(header, IFLA_NET_NS_FD, static_cast<std::uint32_t>(peer_netns));
  mnl_attr_nest_end(header, peer);
  mnl_attr_nest_end(header, data);
  mnl_attr_nest_end(header, info);
}

void without_link_local(Batch& batch, const std::string& name) {
  auto* header = change_link(batch, name, "turn off link-local addresses of " + name);
  nlattr* spec = mnl_attr_nest_start(header, IFLA_AF_SPEC);
  nlattr* inet6 = mnl_attr_nest_start(header, AF_INET6);
  mnl_attr_put_u8(header, IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE);
  mnl_attr_nest_end(header, inet6);
  mnl_attr_nest_end(header, spec);
}

void set_up(Batch& batch, const std::string& name, bool up) {
  auto* header =
      batch.message(RTM_NEWLINK, 0, fmt::format("set link {} {}", name, up ? "up" : "down"), 256);
  auto* link = put_link(header);
  link->ifi_change = IFF_UP;
  link->ifi_flags = up ? IFF_UP : 0;
  mnl_attr_put_strz(header, IFLA_IFNAME, name.c_str());
}

void set_group(Batch& batch, const std::string& name, std::uint32_t group) {
  mnl_attr_put_u32(change_link(batch, name, "set the group of link " + name), IFLA_GROUP, group);
}

namespace {

void put_ifaddr(nlmsghdr* header, int link, const Address& address, int prefix) {
  auto* message = static_cast<ifaddrmsg*>(mnl_nlmsg_put_extra_header(header, sizeof(ifaddrmsg)));
  message->ifa_family = static_cast<unsigned char>(address.family);
  message->ifa_prefixlen = static_cast<unsigned char>(prefix);
  message->ifa_index = static_cast<std::uint32_t>(link);
  message->ifa_flags = address.family == AF_INET6 ? IFA_F_NODAD : 0;
  put_address(header, IFA_LOCAL, address);
  put_address(header, IFA_ADDRESS, address);
}

}  // namespace

void add_address(Batch& batch, int link, const Address& address, int prefix) {
  put_ifaddr(
      batch.message(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, "add address " + address.text(), 256),
      link, address, prefix);
}

void delete_address(Batch& batch, int link, const Address& address, int prefix) {
  put_ifaddr(batch.message(RTM_DELADDR, 0, "delete address " + address.text(), 256), link, address,
             prefix);
}

void add_neighbour(Batch& batch, int link, const Address& address, const Mac& mac) {
  auto* header = batch.message(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE,
                               "add neighbour " + address.text(), 256);
  auto* message = static_cast<ndmsg*>(mnl_nlmsg_put_extra_header(header, sizeof(ndmsg)));
  message->ndm_family = static_cast<unsigned char>(address.family);
  message->ndm_ifindex = link;
  message->ndm_state = NUD_PERMANENT;
  put_address(header, NDA_DST, address);
  mnl_attr_put(header, NDA_LLADDR, mac.size(), mac.data());
}

void add_default_route(Batch& batch, int link, const Address& gateway, const Address& source) {
  auto* header = batch.message(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL,
                               "add default route via " + gateway.text(), 256);
  put_route(header, gateway.family)->rtm_flags = RTNH_F_ONLINK;
  put_address(header, RTA_GATEWAY, gateway);
  put_address(header, RTA_PREFSRC, source);
  mnl_attr_put_u32(header, RTA_OIF, static_cast<std::uint32_t>(link));
}

void add_host_route(Batch& batch, int link, const Address& address) {
  auto* header = batch.message(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE,
                               "add route to " + address.text(), 256);
  auto* route = put_route(header, address.family);
  route->rtm_scope = RT_SCOPE_LINK;
  route->rtm_dst_len = static_cast<unsigned char>(address.bits());
  put_address(header, RTA_DST, address);
  mnl_attr_put_u32(header, RTA_OIF, static_cast<std::uint32_t>(link));
}

void add_mark_rule(Batch& batch, int family, std::uint32_t mark, std::uint32_t table) {
  auto* header = batch.message(RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL,
                               "add a rule for mark " + std::to_string(mark), 256);
  auto* rule = static_cast<fib_rule_hdr*>(mnl_nlmsg_put_extra_header(header, sizeof(fib_rule_hdr)));
  rule->family = static_cast<unsigned char>(family);
  rule->action = FR_ACT_TO_TBL;
  mnl_attr_put_u32(header, FRA_PRIORITY, table);
  mnl_attr_put_u32(header, FRA_FWMARK, mark);
  mnl_attr_put_u32(header, FRA_TABLE, table);
}

void add_local_default(Batch& batch, int family, int link, std::uint32_t table) {
  auto* header = batch.message(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE,
                               "make every address local in table " + std::to_string(table), 256);
  auto* route = put_route(header, family);
  route->rtm_table = RT_TABLE_UNSPEC;
  route->rtm_type = RTN_LOCAL;
  route->rtm_scope = RT_SCOPE_HOST;
  mnl_attr_put_u32(header, RTA_TABLE, table);
  mnl_attr_put_u32(header, RTA_OIF, static_cast<std::uint32_t>(link));
}

void delete_default_routes(Batch& batch, int link) {
  for (int family : {AF_INET, AF_INET6}) {
    auto* header = batch.message(RTM_DELROUTE, 0, "delete the default route", 256);
    put_route(header, family);
    mnl_attr_put_u32(header, RTA_OIF, static_cast<std::uint32_t>(link));
  }
}

void delete_link(Batch& batch, const std::string& name) {
  auto* header = batch.message(RTM_DELLINK, 0, "delete link " + name, 256);
  put_link(header);
  mnl_attr_put_strz(header, IFLA_IFNAME, name.c_str());
}

void delete_group(Batch& batch, std::uint32_t group) {
  auto* header =
      batch.message(RTM_DELLINK, 0, fmt::format("delete the links of group {:#x}", group), 256);
  put_link(header);
  mnl_attr_put_u32(header, IFLA_GROUP, group);
}

std::vector<Link> links(const Fd& socket) {
  std::vector<Link> found;
  dump(
      socket, RTM_GETLINK, "list links", [&] { found.clear(); },
      [&](const nlmsghdr* header) { found.push_back(read_link(header)); });
  return found;
}

std::optional<Link> find_link(const Fd& socket, const std::string& name) {
  Batch batch;
  auto* header = batch.message(RTM_GETLINK, 0, "look up link " + name, 256);
  put_link(header);
  mnl_attr_put_strz(header, IFLA_IFNAME, name.c_str());
  std::optional<Link> found;
  auto failure =
      try_send(socket, batch, [&](const nlmsghdr* answer) { found = read_link(answer); });
  if (failure && failure->error_number != ENODEV) throw_failure(*failure);
  return found;
}

void wait_until_ready(const Fd& socket, const std::string& name) {
  // From Linux 6.8 on the question itself makes the kernel catch up.
  wait_for(socket, RTNLGRP_LINK, "wait for link", name, [&] {
    auto link = find_link(socket, name);
    if (!link) throw Error(Code::kNotFound, "wait for link", name, "it does not exist");
    return link->ready;
  });
}

void wait_until_local(const Fd& socket, const Address& address) {
  wait_for(socket, address.family == AF_INET ? RTNLGRP_IPV4_ROUTE : RTNLGRP_IPV6_ROUTE,
           "wait for address", address.text(), [&] {
             Batch batch;
             auto* header =
                 batch.message(RTM_GETROUTE, 0, "look up the route to " + address.text(), 256);
             auto* route = static_cast<rtmsg*>(mnl_nlmsg_put_extra_header(header, sizeof(rtmsg)));
             route->rtm_family = static_cast<unsigned char>(address.family);
             route->rtm_dst_len = static_cast<unsigned char>(address.bits());
             put_address(header, RTA_DST, address);
             bool local = false;
             auto failure = try_send(socket, batch, [&](const nlmsghdr* answer) {
               local =
                   static_cast<const rtmsg*>(mnl_nlmsg_get_payload(answer))->rtm_type == RTN_LOCAL;
             });
             if (failure && failure->error_number != ENETUNREACH &&
                 failure->error_number != EHOSTUNREACH)
               throw_failure(*failure);
             return local;
           });
}

std::vector<Address> addresses(const Fd& socket) {
  std::vector<Address> found;
  dump(
      socket, RTM_GETADDR, "list addresses", [&] { found.clear(); },
      [&](const nlmsghdr* header) {
        auto* message = static_cast<const ifaddrmsg*>(mnl_nlmsg_get_payload(header));
        if (message->ifa_family != AF_INET && message->ifa_family != AF_INET6) return;
        // IFA_ADDRESS is the far end on a point-to-point link; IFA_LOCAL, where present, is always
        // ours.
        Address address{message->ifa_family, {}};
        bool local = false;
        for (const nlattr* attribute : attributes_of(header, sizeof(ifaddrmsg))) {
          int type = mnl_attr_get_type(attribute);
          if (type != IFA_LOCAL && (type != IFA_ADDRESS || local)) continue;
          if (mnl_attr_get_payload_len(attribute) != address.size()) continue;
          std::memcpy(address.bytes.data(), mnl_attr_get_payload(attribute), address.size());
          local = local || type == IFA_LOCAL;
        }
        found.push_back(address);
      });
  return found;
}

}  // namespace thaw::network
