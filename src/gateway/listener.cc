#include "gateway/listener.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>

#include <fmt/format.h>

#include "gateway/relay.h"
#include "util/error.h"

namespace thaw::gateway {
namespace {

constexpr int kBacklog = 4096;
constexpr int kAcceptsAtOnce = 64;
constexpr int kLastDescriptors = 1024;  // or a quarter of all

bool is_v6(const std::string& address) { return address.find(':') != std::string::npos; }
bool is_wildcard(const std::string& address) { return address == "0.0.0.0" || address == "::"; }

socklen_t fill(sockaddr_storage& storage, const std::string& address, std::uint16_t port) {
  if (is_v6(address)) {
    auto* v6 = reinterpret_cast<sockaddr_in6*>(&storage);
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(port);
    ::inet_pton(AF_INET6, address.c_str(), &v6->sin6_addr);
    return sizeof *v6;
  }
  auto* v4 = reinterpret_cast<sockaddr_in*>(&storage);
  v4->sin_family = AF_INET;
  v4->sin_port = htons(port);
  ::inet_pton(AF_INET, address.c_str(), &v4->sin_addr);
  return sizeof *v4;
}

void turn_on(const Fd& socket, int level, int option) {
  int value = 1;
  check(::setsockopt(socket.get(), level, option, &value, sizeof value), "set option of",
        "listening socket");
}

std::string kept_name(const std::string& address, std::uint16_t port) {
  return "tcp " + endpoint_text(address, port);
}

int option_of(const Fd& socket, int option) {
  int value = -1;
  socklen_t size = sizeof value;
  return ::getsockopt(socket.get(), SOL_SOCKET, option, &value, &size) == 0 ? value : -1;
}

bool listens_on(const Fd& socket, const std::string& address, std::uint16_t port) {
  sockaddr_storage wanted{}, found{};
  socklen_t size = fill(wanted, address, port), found_size = sizeof found;
  return option_of(socket, SO_ACCEPTCONN) == 1 && option_of(socket, SO_TYPE) == SOCK_STREAM &&
         option_of(socket, SO_PROTOCOL) == IPPROTO_TCP &&
         ::getsockname(socket.get(), reinterpret_cast<sockaddr*>(&found), &found_size) == 0 &&
         found_size == size && std::memcmp(&found, &wanted, size) == 0;
}

[[noreturn]] void cannot_listen(const std::string& where, int cause) {
  if (cause == EADDRINUSE)
    throw Error(Code::kConflict, "listen on", where, "another program of this host has the port",
                "choose another port, or end that program (ss -ltnp shows it)");
  if (cause == EADDRNOTAVAIL)
    throw Error(Code::kInvalid, "listen on", where, "no interface of this host has the address",
                "choose an address that ip address shows, or 0.0.0.0 for all");
  throw_errno("listen on", where, cause);
}

}  // namespace

std::string normal_address(const std::string& address) {
  if (address.empty() || address == "localhost") return "127.0.0.1";
  char text[INET6_ADDRSTRLEN];
  unsigned char bytes[sizeof(in6_addr)];
  int family = is_v6(address) ? AF_INET6 : AF_INET;
  std::string bare = address;
  if (bare.size() > 2 && bare.front() == '[' && bare.back() == ']')
    bare = bare.substr(1, bare.size() - 2);
  if (::inet_pton(family, bare.c_str(), bytes) != 1)
    throw Error(Code::kInvalid, "publish a port on", address, "that is no IPv4 or IPv6 address",
                "write it like 127.0.0.1, 0.0.0.0 or ::1");
  return ::inet_ntop(family, bytes, text, sizeof text);
}

std::string endpoint_text(const std::string& address, std::uint16_t port) {
  return is_v6(address) ? fmt::format("[{}]:{}", address, port)
                        : fmt::format("{}:{}", address, port);
}

bool addresses_overlap(const std::string& a, const std::string& b) {
  return is_v6(a) == is_v6(b) && (a == b || is_wildcard(a) || is_wildcard(b));
}

Fd listen_on(const std::string& address, std::uint16_t port) {
  std::string where = endpoint_text(address, port);
  int family = is_v6(address) ? AF_INET6 : AF_INET;
  Fd socket(check(::socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0),
                  "make socket for", where));
  turn_on(socket, SOL_SOCKET, SO_REUSEADDR);
  if (family == AF_INET6) turn_on(socket, IPPROTO_IPV6, IPV6_V6ONLY);
  turn_on(socket, IPPROTO_TCP, TCP_NODELAY);
  keep_alive(socket);
  sockaddr_storage storage{};
  socklen_t size = fill(storage, address, port);
  // With SO_REUSEADDR, it may be only listen(2) that finds the port taken.
  if (::bind(socket.get(), reinterpret_cast<sockaddr*>(&storage), size) < 0 ||
      ::listen(socket.get(), kBacklog) < 0)
    cannot_listen(where, errno);
  return socket;
}

Fd listen_on(const std::string& address, std::uint16_t port, Holder* holder) {
  if (!holder) return listen_on(address, port);
  std::string name = kept_name(address, port);
  if (Fd kept = holder->take(name)) {
    if (listens_on(kept, address, port)) return kept;
    holder->drop(name);
  }
  Fd socket = listen_on(address, port);
  holder->keep(kept_name(address, port_of(socket)), socket);
  return socket;
}

void stop_listening(Fd& listener, const std::string& address, Holder* holder) {
  if (holder) holder->drop(kept_name(address, port_of(listener)));
  listener.reset();
}

std::uint16_t port_of(const Fd& listener) {
  sockaddr_storage storage{};
  socklen_t size = sizeof storage;
  check(::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&storage), &size),
        "read address of", "listening socket");
  return ntohs(storage.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6*>(&storage)->sin6_port
                                             : reinterpret_cast<sockaddr_in*>(&storage)->sin_port);
}

DescriptorReserve::DescriptorReserve() {
  look();
  retake();
}

void DescriptorReserve::look() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  auto most = static_cast<int>(std::min<rlim_t>(limit.rlim_cur, INT_MAX));
  line_ = most - std::min(kLastDescriptors, most / 4);
}

bool DescriptorReserve::reached_by(const Fd& fd) {
  if (fd.get() < line_) return false;
  look();
  return fd.get() >= line_;
}

int DescriptorReserve::shed(const Fd& listener) {
  if (!fd_) retake();
  fd_.reset();
  Fd client(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  int cause = client ? 0 : errno;
  reset_socket(client);
  retake();
  return cause;
}

void DescriptorReserve::retake() { fd_.reset(::open("/dev/null", O_RDONLY | O_CLOEXEC)); }

int accept_waiting(const Fd& listener, DescriptorReserve& reserve,
                   const std::function<void(Fd client, const sockaddr_storage& address)>& on_client,
                   const std::function<void()>& on_shed) {
  // Taking a client may close the listener.
  for (int i = 0; i < kAcceptsAtOnce && listener; ++i) {
    sockaddr_storage address{};
    socklen_t size = sizeof address;
    Fd client(::accept4(listener.get(), reinterpret_cast<sockaddr*>(&address), &size,
                        SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (client) {
      on_client(std::move(client), address);
      continue;
    }
    switch (int cause = errno) {
      case EAGAIN:
        return 0;
      case EMFILE:
      case ENFILE:
        reserve.look();
        cause = reserve.shed(listener);
        if (cause == EAGAIN) return 0;
        if (cause != 0) return cause;
        on_shed();
        break;
      case ENOBUFS:
      case ENOMEM:
        return cause;
      default:
        break;  // of that one client (accept(2)): the next may be well
    }
  }
  return 0;
}

}  // namespace thaw::gateway
