#include "network/sock_diag.h"

#include <arpa/inet.h>
#include <libmnl/libmnl.h>
#include <linux/inet_diag.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <netinet/tcp.h>

#include <cerrno>
#include <cstring>

#include "util/error.h"

namespace thaw::network {
namespace {

inet_diag_req_v2* put_request(nlmsghdr* header, int family, int protocol) {
  auto* request =
      static_cast<inet_diag_req_v2*>(mnl_nlmsg_put_extra_header(header, sizeof(inet_diag_req_v2)));
  request->sdiag_family = static_cast<std::uint8_t>(family);
  request->sdiag_protocol = static_cast<std::uint8_t>(protocol);
  return request;
}

Address read_address(int family, const std::uint32_t* words) {
  Address address{family, {}};
  const in6_addr* six = reinterpret_cast<const in6_addr*>(words);
  if (family == AF_INET) {
    std::memcpy(address.bytes.data(), words, 4);
  } else if (IN6_IS_ADDR_V4MAPPED(six)) {
    address.family = AF_INET;
    std::memcpy(address.bytes.data(), words + 3, 4);
  } else {
    std::memcpy(address.bytes.data(), words, 16);
  }
  return address;
}

const inet_diag_sockid& id_of(const ConnectedSocket& connection) {
  return *reinterpret_cast<const inet_diag_sockid*>(connection.id.data());
}

ConnectedSocket read_socket(const inet_diag_msg& message, int protocol) {
  ConnectedSocket found;
  found.protocol = protocol;
  found.state = message.idiag_state;
  found.local = read_address(message.idiag_family, message.id.idiag_src);
  found.remote = read_address(message.idiag_family, message.id.idiag_dst);
  found.local_port = ntohs(message.id.idiag_sport);
  found.remote_port = ntohs(message.id.idiag_dport);
  found.family = message.idiag_family;
  found.id.resize(sizeof message.id);
  std::memcpy(found.id.data(), &message.id, sizeof message.id);
  return found;
}

// "Not there" has these two numbers: no socket at all, or another one with the same addresses by
// now.
bool is_gone(const NetlinkFailure& failure) {
  return failure.error_number == ENOENT || failure.error_number == ESTALE;
}

}  // namespace

std::vector<ConnectedSocket> connected_sockets(const Fd& socket, int protocol,
                                               std::uint32_t states) {
  std::vector<ConnectedSocket> found;
  for (int family : {AF_INET, AF_INET6}) {
    Batch batch;
    auto* header = batch.message(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, "list sockets", 256);
    put_request(header, family, protocol)->idiag_states = states;
    send(socket, batch, [&](const nlmsghdr* answer) {
      auto* message = static_cast<const inet_diag_msg*>(mnl_nlmsg_get_payload(answer));
      if (message->id.idiag_dport != 0) found.push_back(read_socket(*message, protocol));
    });
  }
  return found;
}

bool has_other_end(const Fd& socket, const ConnectedSocket& connection) {
  Batch batch;
  auto* header = batch.message(SOCK_DIAG_BY_FAMILY, 0, "look up socket", 256);
  auto* request = put_request(header, connection.family, IPPROTO_TCP);
  const inet_diag_sockid& id = id_of(connection);
  request->idiag_states = ~0u;
  request->id.idiag_sport = id.idiag_dport;
  request->id.idiag_dport = id.idiag_sport;
  std::memcpy(request->id.idiag_src, id.idiag_dst, sizeof id.idiag_dst);
  std::memcpy(request->id.idiag_dst, id.idiag_src, sizeof id.idiag_src);
  request->id.idiag_cookie[0] = request->id.idiag_cookie[1] = INET_DIAG_NOCOOKIE;
  bool found = false;
  auto failure = try_send(socket, batch, [&](const nlmsghdr* answer) {
    // The kernel falls back to a listener on that port, which is no other end.
    found =
        static_cast<const inet_diag_msg*>(mnl_nlmsg_get_payload(answer))->idiag_state != TCP_LISTEN;
  });
  if (failure && !is_gone(*failure)) throw_failure(*failure);
  return found;
}

bool destroy(const Fd& socket, const ConnectedSocket& connection) {
  Batch batch;
  const std::string what =
      fmt::format("destroy socket {} port {} to {} port {}", connection.local.text(),
                  connection.local_port, connection.remote.text(), connection.remote_port);
  auto* header = batch.message(SOCK_DESTROY, 0, what, 256);
  auto* request = put_request(header, connection.family, connection.protocol);
  request->idiag_states = ~0u;
  request->id = id_of(connection);
  auto failure = try_send(socket, batch);
  if (!failure) return true;
  if (is_gone(*failure)) return false;
  if (failure->error_number == EOPNOTSUPP) {
    throw Error(Code::kUnsupported,
                "destroy the sockets that a restore left connected to the outside", what,
                "this kernel cannot",
                "use a kernel with CONFIG_INET_DIAG_DESTROY, CONFIG_INET_TCP_DIAG and "
                "CONFIG_INET_UDP_DIAG");
  }
  throw_failure(*failure);
}

}  // namespace thaw::network
