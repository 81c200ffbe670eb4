#include "util/packet.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "util/error.h"
#include "util/file.h"

namespace thaw {
namespace {

constexpr std::size_t kMaxText = 4096;

sockaddr_un unix_name(const std::string& path) {
  sockaddr_un name{};
  name.sun_family = AF_UNIX;
  if (path.size() >= sizeof name.sun_path)
    throw Error(Code::kInvalid, "use the socket path", path, "it is longer than 107 bytes",
                "choose a data directory with a shorter path");
  std::memcpy(name.sun_path, path.data(), path.size());
  return name;
}

void limit(const Fd& socket, std::int64_t us) {
  timeval time{.tv_sec = us / 1'000'000, .tv_usec = us % 1'000'000};
  for (int option : {SO_RCVTIMEO, SO_SNDTIMEO})
    check(::setsockopt(socket.get(), SOL_SOCKET, option, &time, sizeof time), "set time limit of",
          "private socket");
}

}  // namespace

bool send_packet(int socket, std::string_view text, int descriptor) {
  iovec data{const_cast<char*>(text.data()), text.size()};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  if (descriptor >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(header), &descriptor, sizeof descriptor);
  }
  ssize_t n;
  do n = ::sendmsg(socket, &message, MSG_NOSIGNAL);
  while (n < 0 && errno == EINTR);
  return n >= 0;
}

std::optional<Packet> receive_packet(const Fd& socket) {
  char text[kMaxText];
  iovec data{text, sizeof text};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  ssize_t n;
  do n = ::recvmsg(socket.get(), &message, MSG_CMSG_CLOEXEC);
  while (n < 0 && errno == EINTR);
  if (n <= 0) return std::nullopt;
  Packet packet{std::string(text, static_cast<std::size_t>(n)), {}};
  cmsghdr* part = CMSG_FIRSTHDR(&message);
  if (part && part->cmsg_level == SOL_SOCKET && part->cmsg_type == SCM_RIGHTS) {
    int fd;
    std::memcpy(&fd, CMSG_DATA(part), sizeof fd);
    packet.descriptor.reset(fd);
  }
  return packet;
}

Fd listen_private(const std::string& path) {
  make_directories(path.substr(0, path.rfind('/')), 0700);
  sockaddr_un name = unix_name(path);
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) throw_errno("remove", path);
  Fd socket(check(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0), "make socket"));
  check(::bind(socket.get(), reinterpret_cast<sockaddr*>(&name), sizeof name), "listen on", path);
  // Nobody can connect before listen().
  check(::chmod(path.c_str(), 0600), "set the mode of", path);
  check(::listen(socket.get(), 16), "listen on", path);
  return socket;
}

Fd connect_private(const std::string& path, std::int64_t limit_us) {
  sockaddr_un name = unix_name(path);
  Fd socket(check(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0), "make socket"));
  limit(socket, limit_us);
  if (::connect(socket.get(), reinterpret_cast<sockaddr*>(&name), sizeof name) != 0) socket.reset();
  return socket;
}

Fd accept_private(const Fd& listener, std::int64_t limit_us) {
  Fd client(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (!client) return client;
  ucred peer{};
  socklen_t size = sizeof peer;
  if (::getsockopt(client.get(), SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0 ||
      (peer.uid != 0 && peer.uid != ::geteuid()))
    return {};
  limit(client, limit_us);
  return client;
}

}  // namespace thaw
