// Which sockets of a replica lead outside, and their end.
#include <linux/netlink.h>
#include <netinet/in.h>
#include <netinet/tcp.h>

#include "network/network.h"
#include "network/sock_diag.h"
#include "util/error.h"

namespace thaw::network {
namespace {

// The kernel's own state for a connection half accepted; netinet/tcp.h does not name it.
constexpr int kNewSynRecv = 12;
constexpr std::uint32_t kAllButUnconnected =
    ((1u << (kNewSynRecv + 1)) - 1) & ~(1u << TCP_LISTEN) & ~(1u << TCP_CLOSE);

using Ends = std::tuple<Address, std::uint16_t, Address, std::uint16_t>;

class Inside {
 public:
  Inside(const Fd& diag, const std::vector<ConnectedSocket>& tcp) : diag_(diag) {
    for (Address& address : addresses(open_netlink(NETLINK_ROUTE))) addresses_.insert(address);
    for (auto& socket : tcp)
      ends_.insert({socket.local, socket.local_port, socket.remote, socket.remote_port});
  }

  bool leads_outside(const ConnectedSocket& socket) const {
    if (!is_own(socket.local) || !is_own(socket.remote)) return true;
    if (socket.protocol != IPPROTO_TCP) return false;
    // A connection within the namespace has two sockets here. One alone is what is left of a
    // connection whose other end was somebody else's: the gateway makes its own from inside, and
    // they are not in the checkpoint. Not so while it is being made or after it is over: then one
    // end alone is usual, and the kernel ends it by itself.
    if (socket.state == TCP_SYN_SENT || socket.state == TCP_TIME_WAIT) return false;
    if (ends_.contains({socket.remote, socket.remote_port, socket.local, socket.local_port}))
      return false;
    // The list is no snapshot: a connection made while it was read may be in it by half.
    return !has_other_end(diag_, socket);
  }

 private:
  bool is_own(const Address& address) const {
    if (address.family == AF_INET && address.bytes[0] == 127)
      return true;  // 127.0.0.0/8 is local as a whole
    return addresses_.contains(address);
  }

  const Fd& diag_;
  std::set<Address> addresses_;
  std::set<Ends> ends_;
};

}  // namespace

int destroy_outside_sockets() {
  Fd diag = open_netlink(NETLINK_SOCK_DIAG);
  auto tcp = connected_sockets(diag, IPPROTO_TCP, kAllButUnconnected);
  auto udp = connected_sockets(diag, IPPROTO_UDP, 1u << TCP_ESTABLISHED);
  Inside inside(diag, tcp);
  // All are judged before any dies: the death of one end must not make the other look alone.
  std::vector<const ConnectedSocket*> outside;
  for (auto* list : {&tcp, &udp}) {
    for (auto& socket : *list) {
      if (inside.leads_outside(socket)) outside.push_back(&socket);
    }
  }
  int destroyed = 0;
  for (auto* socket : outside) destroyed += destroy(diag, *socket) ? 1 : 0;
  return destroyed;
}

int count_outside_connections(const std::vector<std::uint16_t>& ports) {
  Fd diag = open_netlink(NETLINK_SOCK_DIAG);
  auto tcp = connected_sockets(diag, IPPROTO_TCP, kAllButUnconnected);
  Inside inside(diag, tcp);
  return static_cast<int>(std::count_if(tcp.begin(), tcp.end(), [&](const ConnectedSocket& socket) {
    bool wanted =
        ports.empty() || std::find(ports.begin(), ports.end(), socket.local_port) != ports.end();
    return wanted && socket.state == TCP_ESTABLISHED && inside.leads_outside(socket);
  }));
}

}  // namespace thaw::network
