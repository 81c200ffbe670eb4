// http and tcp: connections made inside the replica's network namespace, gone without a trace when
// a try is over.
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include <arpa/inet.h>

#include "lifecycle/condition_kinds.h"
#include "lifecycle/http_answer.h"
#include "network/network.h"
#include "util/error.h"

namespace thaw::lifecycle {
namespace {

constexpr std::int64_t kAttemptUs = 1'000'000;
constexpr std::int64_t kFirstPauseUs = 5'000, kMostPauseUs = 100'000;
constexpr std::int64_t kGoodbyeUs = 50'000;
constexpr const char* kAddresses[] = {network::kReplicaAddress, "127.0.0.1"};

Fd open_socket(int netns_fd) {
  network::NetnsScope inside(netns_fd);
  Fd socket(check(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), "make socket"));
  // Our end lives in the replica's namespace, which may be dumped the moment we are done: closing
  // resets, so that neither end stays in TIME_WAIT.
  linger reset{1, 0};
  check(::setsockopt(socket.get(), SOL_SOCKET, SO_LINGER, &reset, sizeof reset), "set SO_LINGER");
  return socket;
}

// A connection that met itself: when nobody listens on a port of the ephemeral range, the kernel
// may pick that port for our end, and TCP then connects the socket with itself.
bool met_itself(const Fd& socket) {
  sockaddr_in here{}, there{};
  socklen_t here_size = sizeof here, there_size = sizeof there;
  if (::getsockname(socket.get(), reinterpret_cast<sockaddr*>(&here), &here_size) != 0)
    return false;
  if (::getpeername(socket.get(), reinterpret_cast<sockaddr*>(&there), &there_size) != 0)
    return false;
  return here.sin_port == there.sin_port && here.sin_addr.s_addr == there.sin_addr.s_addr;
}

// Connects to the first of the fixed addresses that takes it. Empty when none does; why it was
// stands in wait.last.
Fd connect_inside(Wait& wait, Deadline& attempt) {
  for (const char* address : kAddresses) {
    attempt = wait.at_most(kAttemptUs);
    Fd socket = open_socket(wait.target.netns_fd());
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port = htons(wait.condition.port);
    ::inet_pton(AF_INET, address, &to.sin_addr);
    int error =
        ::connect(socket.get(), reinterpret_cast<sockaddr*>(&to), sizeof to) == 0 ? 0 : errno;
    if (error == EINPROGRESS) {
      if (!wait.ready({{socket.get(), POLLOUT, 0}}, attempt)) {
        wait.see("no connection in time");
        continue;
      }
      socklen_t size = sizeof error;
      check(::getsockopt(socket.get(), SOL_SOCKET, SO_ERROR, &error, &size), "get SO_ERROR");
    }
    if (error == 0 && met_itself(socket)) error = ECONNREFUSED;
    if (error == 0) return socket;
    wait.see(error == ECONNREFUSED ? "connection refused" : std::strerror(error));
  }
  return Fd();
}

// Reads the answer to its end, so that the server has seen the connection through; within the
// attempt's time and the limit.
std::string read_answer(const Wait& wait, const Fd& socket, Deadline attempt) {
  std::string answer;
  char buffer[16384];
  std::optional<std::size_t> size;
  while (answer.size() < kAnswerLimit) {
    // A server that keeps connections in spite of our "Connection: close" gets a moment to think
    // better of it.
    Deadline until = size && answer.size() >= *size
                         ? Deadline::after_us(std::min(kGoodbyeUs, attempt.left_us()))
                         : attempt;
    if (!wait.ready({{socket.get(), POLLIN, 0}}, until)) break;
    ssize_t n = ::recv(socket.get(), buffer, sizeof buffer, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) continue;
    if (n <= 0) break;
    answer.append(buffer, static_cast<std::size_t>(n));
    if (!size) size = answer_size(answer);
  }
  return answer;
}

std::string request_for(const Wait& wait) {
  std::string path = wait.condition.path.empty() ? "/" : wait.condition.path;
  bool plain = path[0] == '/' && path.size() <= 8192;
  for (unsigned char c : path) plain = plain && c > ' ' && c != 0x7f;
  if (!plain)
    throw Error(Code::kInvalid, "probe", condition_text(wait.condition),
                "this is not the path of an HTTP request",
                "begin it with / and percent-encode spaces");
  // localhost, not the address: it is the name that servers which check the host let through.
  return fmt::format(
      "GET {} HTTP/1.1\r\nHost: localhost:{}\r\nUser-Agent: thaw-probe\r\nAccept: "
      "*/*\r\nConnection: close\r\n\r\n",
      path, wait.condition.port);
}

bool http_holds(Wait& wait, const std::string& request) {
  Deadline attempt = Deadline::never();
  Fd socket = connect_inside(wait, attempt);
  if (!socket) return false;
  // A request fits any send buffer, so this is whole or an error.
  if (::send(socket.get(), request.data(), request.size(), MSG_NOSIGNAL) < 0) {
    wait.see(std::string("cannot send the request: ") + std::strerror(errno));
    return false;
  }
  std::string answer = read_answer(wait, socket, attempt);
  auto status = status_of(answer);
  if (status)
    wait.see(fmt::format(
        "status {}{}", *status,
        *status == wait.condition.status ? "" : fmt::format(", wanted {}", wait.condition.status)));
  else if (!answer.empty())
    wait.see("the answer is not HTTP");
  else
    wait.see(attempt.passed() ? "no answer in time" : "closed without an answer");
  return status == wait.condition.status;
}

bool tcp_holds(Wait& wait) {
  Deadline attempt = Deadline::never();
  if (!connect_inside(wait, attempt)) return false;
  wait.see("connected");
  return true;
}

template <typename Try>
bool retry(Wait& wait, Try holds) {
  if (wait.condition.port == 0)
    throw Error(Code::kInvalid, "probe", condition_text(wait.condition), "the port is 0",
                "give the port that the server listens on");
  Backoff backoff(kFirstPauseUs, kMostPauseUs);
  while (!wait.deadline.passed()) {
    if (holds()) return true;
    if (!wait.pause(backoff.next())) break;
  }
  return false;
}

}  // namespace

bool wait_http(Wait& wait) {
  std::string request = request_for(wait);
  return retry(wait, [&] { return http_holds(wait, request); });
}

bool wait_tcp(Wait& wait) {
  return retry(wait, [&] { return tcp_holds(wait); });
}

}  // namespace thaw::lifecycle
