#include "gateway/dial.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/nsfs.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <exception>

#include "network/foreign_sources.h"
#include "network/network.h"
#include "util/clock.h"
#include "util/error.h"
#include "util/log.h"

namespace thaw::gateway {
namespace {

constexpr std::uint32_t kGatewayAddress = 0x0a4d0001;  // 10.77.0.1
constexpr std::uint32_t kAddresses[kReplicaAddresses] = {0x0a4d0002,
                                                         0x7f000001};  // 10.77.0.2, 127.0.0.1

constexpr int kAhead = 7;
constexpr std::int64_t kOftenUs = 10'000;

sockaddr_in endpoint(std::uint32_t address, std::uint16_t port) {
  return {.sin_family = AF_INET,
          .sin_port = htons(port),
          .sin_addr = {.s_addr = htonl(address)},
          .sin_zero = {}};
}

in6_addr replica_address6() {
  in6_addr address{};
  ::inet_pton(AF_INET6, network::kReplicaAddress6, &address);
  return address;
}

int try_connect(int fd, const sockaddr* to, socklen_t size) {
  if (::connect(fd, to, size) == 0 || errno == EISCONN) return 0;
  return errno == EALREADY || errno == EINTR ? EINPROGRESS : errno;
}

template <typename Endpoint>
int connect_to(const Fd& socket, const Endpoint& to) {
  auto* address = reinterpret_cast<const sockaddr*>(&to);
  int error = try_connect(socket.get(), address, sizeof to);
  // Everything between us and the program is in this kernel: mostly the handshake is over when the
  // call returns.
  return error == EINPROGRESS ? try_connect(socket.get(), address, sizeof to) : error;
}

void turn_on(const Fd& socket, int level, int option) {
  int on = 1;
  ::setsockopt(socket.get(), level, option, &on, sizeof on);
}

}  // namespace

bool Dialer::Attempt::pending() const { return error == EINPROGRESS; }

Dialer::Dialer(DescriptorReserve& reserve)
    : reserve_(reserve), home_(Fd::open("/proc/thread-self/ns/net", O_RDONLY)) {}

template <typename Work>
auto Dialer::inside(const Fd& netns, const Work& work) {
  using Result = decltype(work());
  if (::setns(netns.get(), CLONE_NEWNET) < 0) return Result{-1};
  Result result = work();
  int cause = errno;
  if (::setns(home_.get(), CLONE_NEWNET) < 0) {
    // Going on would listen and connect in a container's network.
    log::error("the gateway cannot return to the host's network namespace",
               {{"error", std::strerror(errno)}});
    std::terminate();
  }
  errno = cause;
  return result;
}

// Empty when it failed; errno says why.
Fd Dialer::take_socket(Namespace& replica) {
  auto make = [] { return ::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0); };
  Fd socket;
  if (!replica.sockets.empty()) {
    socket = std::move(replica.sockets.back());
    replica.sockets.pop_back();
  } else {
    std::int64_t now = monotonic_us();
    bool often = now - std::exchange(replica.visited_us, now) < kOftenUs;
    socket.reset(inside(replica.fd, [&] {
      int first = make();
      for (int i = 0; often && first >= 0 && i < kAhead; ++i)
        if (Fd next(make()); next && !reserve_.reached_by(next))
          replica.sockets.push_back(std::move(next));
      return first;
    }));
  }
  if (!socket || !reserve_.reached_by(socket)) return socket;
  socket.reset();
  errno = EMFILE;
  return {};
}

Dialer::Attempt Dialer::connect(Namespace& replica, int address, std::uint16_t port) {
  Fd socket = take_socket(replica);
  if (!socket) return {{}, errno};
  turn_on(socket, IPPROTO_TCP, TCP_NODELAY);
  // The port is chosen by connect(2), so that it need be free for this destination only.
  turn_on(socket, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT);
  sockaddr_in from = endpoint(kGatewayAddress, 0);
  if (::bind(socket.get(), reinterpret_cast<sockaddr*>(&from), sizeof from) < 0) return {{}, errno};
  int error = connect_to(socket, endpoint(kAddresses[address], port));
  if (error != 0 && error != EINPROGRESS) return {{}, error};
  return {std::move(socket), error};
}

bool Dialer::can_keep(const sockaddr_storage& client) {
  if (client.ss_family == AF_INET) {
    auto& v4 = reinterpret_cast<const sockaddr_in&>(client);
    return ntohl(v4.sin_addr.s_addr) >> 24 != IN_LOOPBACKNET;
  }
  if (client.ss_family != AF_INET6) return false;
  const in6_addr& v6 = reinterpret_cast<const sockaddr_in6&>(client).sin6_addr;
  return !IN6_IS_ADDR_LOOPBACK(&v6) && !IN6_IS_ADDR_LINKLOCAL(&v6);
}

Dialer::Attempt Dialer::connect_as(Namespace& replica, const sockaddr_storage& client, int address,
                                   std::uint16_t port) {
  int family = client.ss_family;
  if (family == AF_INET6 && address > 0) return connect(replica, address, port);
  Fd socket(inside(
      replica.fd, [&] { return ::socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0); }));
  if (reserve_.reached_by(socket)) return {{}, EMFILE};
  if (!socket) return {{}, errno};
  turn_on(socket, IPPROTO_TCP, TCP_NODELAY);
  turn_on(socket, SOL_SOCKET, SO_REUSEADDR);
  turn_on(socket, family == AF_INET ? IPPROTO_IP : IPPROTO_IPV6,
          family == AF_INET ? IP_TRANSPARENT : IPV6_TRANSPARENT);
  int mark = network::kForeignMark;
  if (::setsockopt(socket.get(), SOL_SOCKET, SO_MARK, &mark, sizeof mark) < 0) return {{}, errno};
  sockaddr_storage from = client;
  socklen_t size = family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
  if (::bind(socket.get(), reinterpret_cast<sockaddr*>(&from), size) < 0) {
    if (errno != EADDRINUSE) return {{}, errno};
    // The client has used this port a moment ago: its address matters more.
    auto& their_port = family == AF_INET ? reinterpret_cast<sockaddr_in&>(from).sin_port
                                         : reinterpret_cast<sockaddr_in6&>(from).sin6_port;
    their_port = 0;
    turn_on(socket, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT);
    if (::bind(socket.get(), reinterpret_cast<sockaddr*>(&from), size) < 0) return {{}, errno};
  }
  int error;
  if (family == AF_INET) {
    error = connect_to(socket, endpoint(kAddresses[address], port));
  } else {
    sockaddr_in6 to{};
    to.sin6_family = AF_INET6;
    to.sin6_port = htons(port);
    to.sin6_addr = replica_address6();
    error = connect_to(socket, to);
  }
  if (error != 0 && error != EINPROGRESS) return {{}, error};
  return {std::move(socket), error};
}

int Dialer::result(const Fd& socket) {
  int error = 0;
  socklen_t size = sizeof error;
  if (::getsockopt(socket.get(), SOL_SOCKET, SO_ERROR, &error, &size) < 0) return errno;
  if (error != 0) return error;
  sockaddr_storage peer;
  size = sizeof peer;
  if (::getpeername(socket.get(), reinterpret_cast<sockaddr*>(&peer), &size) == 0) return 0;
  return errno == ENOTCONN ? EINPROGRESS : errno;
}

void Dialer::prepare(const Fd& netns, const std::string& replica) {
  if (::ioctl(netns.get(), NS_GET_NSTYPE) != CLONE_NEWNET)
    throw Error(Code::kInvalid, "open the gate of replica", replica,
                "the descriptor given is no network namespace");
  struct stat theirs {
  }, ours{};
  check(::fstat(netns.get(), &theirs), "read", "network namespace");
  check(::fstat(home_.get(), &ours), "read", "network namespace");
  if (theirs.st_ino == ours.st_ino) return;  // the host's settings are not ours
  // A connection that we end first leaves its port in TIME_WAIT for a minute, and there is one
  // source address. Timestamps make reuse after a second safe; the default allows it for
  // 127.0.0.0/8 only.
  int written = inside(netns, [] {
    Fd setting(::open("/proc/sys/net/ipv4/tcp_tw_reuse", O_WRONLY | O_CLOEXEC));
    return setting ? static_cast<int>(::write(setting.get(), "1", 1)) : -1;
  });
  if (written < 0)
    log::debug("tcp_tw_reuse cannot be set in a replica's network",
               {{"replica", replica}, {"error", std::strerror(errno)}});
}

}  // namespace thaw::gateway
