#include "network/foreign_sources.h"

#include <sys/socket.h>

#include <cerrno>

#include "network/network.h"
#include "network/rtnetlink.h"
#include "util/file.h"

namespace thaw::network {
namespace {

constexpr std::uint32_t kTable = 77;
constexpr int kLoopback = 1;

}  // namespace

void admit_foreign_sources(const Fd& netns) {
  NetnsScope scope(netns.get());
  // What a listener accepts inherits the mark; a refusal by the kernel carries it, too, or it would
  // be sent to the real client.
  write_file("/proc/sys/net/ipv4/tcp_fwmark_accept", "1");
  write_file("/proc/sys/net/ipv4/fwmark_reflect", "1");
  write_file("/proc/sys/net/ipv6/fwmark_reflect", "1");
  Fd socket = open_route_socket();
  for (int family : {AF_INET, AF_INET6}) {
    Batch rule, route;
    add_mark_rule(rule, family, kForeignMark, kTable);
    auto failure = try_send(socket, rule);
    // An earlier daemon may have done this.
    if (failure && failure->error_number != EEXIST) throw_failure(*failure);
    add_local_default(route, family, kLoopback, kTable);
    send(socket, route);
  }
}

}  // namespace thaw::network
