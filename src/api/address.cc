#include "api/address.h"

#include <grp.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstring>
#include <memory>

#include "api/unreachable.h"
#include "util/error.h"
#include "util/file.h"

namespace thaw::api {
namespace {

constexpr std::string_view kForms = "give unix:/path/to/thaw.sock or tls:HOST:7443";

sockaddr_un unix_address(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) {
    throw Error(Code::kInvalid, "use the socket path", path, "it is longer than 107 bytes",
                "choose a shorter path");
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

Fd make_socket(int family) {
  return Fd(check(::socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0), "open a socket"));
}

using AddressList = std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)>;

AddressList resolve(const Address& address, bool passive) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV | (passive ? AI_PASSIVE : 0);
  addrinfo* list = nullptr;
  int result =
      ::getaddrinfo(address.host.c_str(), std::to_string(address.port).c_str(), &hints, &list);
  if (result != 0) {
    throw Error(Code::kInvalid, "find the host", address.host, ::gai_strerror(result),
                std::string(kForms));
  }
  return AddressList(list, &::freeaddrinfo);
}

bool is_loopback(const sockaddr* address) {
  if (address->sa_family == AF_INET) {
    auto& v4 = *reinterpret_cast<const sockaddr_in*>(address);
    return (ntohl(v4.sin_addr.s_addr) >> 24) == 127;
  }
  auto& v6 = *reinterpret_cast<const sockaddr_in6*>(address);
  return address->sa_family == AF_INET6 && IN6_IS_ADDR_LOOPBACK(&v6.sin6_addr);
}

void remove_stale(const Address& address, const sockaddr_un& name) {
  struct stat info;
  if (::lstat(address.path.c_str(), &info) != 0) return;
  if (!S_ISSOCK(info.st_mode)) {
    throw Error(Code::kConflict, "listen on", address.text(), "a file that is no socket is there",
                "choose another path or move that file away");
  }
  Fd probe = make_socket(AF_UNIX);
  if (::connect(probe.get(), reinterpret_cast<const sockaddr*>(&name), sizeof name) == 0) {
    throw Error(Code::kConflict, "listen on", address.text(), "another daemon answers there",
                "stop it first, or give this one another --data-dir or --listen");
  }
  check(::unlink(address.path.c_str()), "remove the stale socket", address.path);
}

void set_access(const Address& address) {
  const group* thaw = ::getgrnam(address.group.c_str());
  check(::chown(address.path.c_str(), 0, thaw ? thaw->gr_gid : 0), "set the owner of",
        address.path);
  check(::chmod(address.path.c_str(), 0660), "set the mode of", address.path);
}

Fd listen_unix(const Address& address) {
  sockaddr_un name = unix_address(address.path);
  remove_stale(address, name);
  Fd fd = make_socket(AF_UNIX);
  check(::bind(fd.get(), reinterpret_cast<const sockaddr*>(&name), sizeof name), "listen on",
        address.text());
  // Nobody can connect before listen(), so the mode is right before it can matter.
  set_access(address);
  check(::listen(fd.get(), SOMAXCONN), "listen on", address.text());
  return fd;
}

sockaddr_storage bound_to(const Fd& socket) {
  sockaddr_storage bound{};
  socklen_t size = sizeof bound;
  check(::getsockname(socket.get(), reinterpret_cast<sockaddr*>(&bound), &size),
        "read the address of", "listening socket");
  return bound;
}

Fd listen_tcp(Address& address) {
  auto list = resolve(address, true);
  const addrinfo& first = *list;
  for (const addrinfo* entry = &first; entry; entry = entry->ai_next) {
    if (!address.tls && !is_loopback(entry->ai_addr)) {
      throw Error(Code::kInvalid, "listen on", address.text(),
                  "only loopback addresses are allowed without TLS", "listen on tls:HOST:PORT");
    }
  }
  Fd fd = make_socket(first.ai_family);
  int on = 1;
  check(::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on), "listen on",
        address.text());
  if (::bind(fd.get(), first.ai_addr, first.ai_addrlen) != 0) {
    if (errno == EADDRINUSE) {
      throw Error(Code::kConflict, "listen on", address.text(), "the port is in use",
                  "choose another port, or stop what listens there");
    }
    throw_errno("listen on", address.text());
  }
  check(::listen(fd.get(), SOMAXCONN), "listen on", address.text());
  sockaddr_storage bound = bound_to(fd);
  address.port =
      ntohs(bound.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6&>(bound).sin6_port
                                        : reinterpret_cast<sockaddr_in&>(bound).sin_port);
  return fd;
}

std::string kept_name(const Address& address) { return "api " + address.text(); }

// Whether a socket of an earlier daemon listens there still, for whoever connects now.
bool listens_on(const Fd& socket, const Address& address) {
  int listens = 0;
  socklen_t size = sizeof listens;
  if (::getsockopt(socket.get(), SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) != 0 || !listens)
    return false;
  sockaddr_storage bound = bound_to(socket);
  if (!address.is_unix) {
    auto list = resolve(address, true);
    return bound.ss_family == list->ai_family &&
           std::memcmp(&bound, list->ai_addr, list->ai_addrlen) == 0;
  }
  struct stat info;
  sockaddr_un name = unix_address(address.path);
  return std::memcmp(&bound, &name, offsetof(sockaddr_un, sun_path) + address.path.size() + 1) ==
             0 &&
         ::lstat(address.path.c_str(), &info) == 0 && S_ISSOCK(info.st_mode);
}

// Connects without waiting longer than the deadline; 0 or the error number.
int connect_by(const Fd& fd, const sockaddr* address, socklen_t size, Deadline deadline) {
  set_nonblocking(fd, true);
  if (::connect(fd.get(), address, size) != 0) {
    // A unix socket with a full backlog says EAGAIN: that daemon is stuck, and nothing tells when
    // it is not.
    if (errno != EINPROGRESS) return errno;
    pollfd entry{fd.get(), POLLOUT, 0};
    int ready = 0;
    do {
      ready = ::poll(&entry, 1, deadline.poll_ms());
    } while (ready < 0 && errno == EINTR);
    if (ready == 0) return ETIMEDOUT;
    int error = 0;
    socklen_t length = sizeof error;
    ::getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &length);
    if (error) return error;
  }
  set_nonblocking(fd, false);
  return 0;
}

std::string connect_cause(int error_number) {
  switch (error_number) {
    case ENOENT:
      return "no such file";
    case ECONNREFUSED:
      return "nothing listens there";
    case EACCES:
      return "permission denied, only root and the group thaw may use it";
    case EAGAIN:
      return "it accepts no more connections";
    default:
      return std::strerror(error_number);
  }
}

}  // namespace

std::string Address::text() const {
  if (is_unix) return "unix:" + path;
  bool v6 = host.find(':') != std::string::npos;
  return (tls ? "tls:" : "tcp:") + (v6 ? "[" + host + "]" : host) + ":" + std::to_string(port);
}

Address parse_address(std::string_view text, std::string_view source) {
  auto wrong = [&](std::string cause) {
    return Error(Code::kInvalid, "use the address of " + std::string(source), std::string(text),
                 std::move(cause), std::string(kForms));
  };
  Address address;
  std::string_view rest = text;
  if (rest.starts_with("unix:") || rest.starts_with("/")) {
    if (rest.starts_with("unix:")) rest.remove_prefix(5);
    while (rest.starts_with("//")) rest.remove_prefix(1);
    if (!rest.starts_with("/")) throw wrong("the socket's path is not absolute");
    address.path = rest;
    return address;
  }
  address.tls = rest.starts_with("tls:");
  if (!address.tls && !rest.starts_with("tcp:")) throw wrong("it is neither unix: nor tls:");
  rest.remove_prefix(4);
  if (rest.starts_with("//")) rest.remove_prefix(2);
  address.is_unix = false;
  std::size_t colon = rest.rfind(':');
  if (colon == std::string_view::npos) throw wrong("the port is missing");
  std::string_view host = rest.substr(0, colon), port = rest.substr(colon + 1);
  if (host.starts_with("[") && host.ends_with("]")) host = host.substr(1, host.size() - 2);
  if (host.empty()) throw wrong("the host is missing");
  auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), address.port);
  if (port.empty() || error != std::errc() || end != port.data() + port.size()) {
    throw wrong("the port is not a number from 0 to 65535");
  }
  address.host = host;
  return address;
}

Fd listen_on(Address& address) {
  return address.is_unix ? listen_unix(address) : listen_tcp(address);
}

Fd listen_on(Address& address, Holder* holder) {
  if (!holder) return listen_on(address);
  if (Fd kept = holder->take(kept_name(address))) {
    if (listens_on(kept, address)) {
      if (address.is_unix) set_access(address);  // the group may be another one now
      return kept;
    }
    kept.reset();
    holder->drop(kept_name(address));
  }
  Fd socket = listen_on(address);
  holder->keep(kept_name(address), socket);
  return socket;
}

void stop_listening(Fd& listener, const Address& address, Holder* holder) {
  if (holder) holder->drop(kept_name(address));
  listener.reset();
  if (address.is_unix) ::unlink(address.path.c_str());
}

Fd connect_to(const Address& address, Deadline deadline) {
  int error = 0;
  if (address.is_unix) {
    sockaddr_un name = unix_address(address.path);
    Fd fd = make_socket(AF_UNIX);
    error = connect_by(fd, reinterpret_cast<const sockaddr*>(&name), sizeof name, deadline);
    if (error == 0) return fd;
  } else {
    auto list = resolve(address, false);
    for (const addrinfo* entry = list.get(); entry; entry = entry->ai_next) {
      Fd fd = make_socket(entry->ai_family);
      error = connect_by(fd, entry->ai_addr, entry->ai_addrlen, deadline);
      if (error != 0) continue;
      int on = 1;  // exec sends single key strokes
      ::setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
      return fd;
    }
  }
  throw Unreachable(address.text(), connect_cause(error));
}

}  // namespace thaw::api
