#include "gateway/relay.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>

#include "gateway/listener.h"
#include "util/error.h"

namespace thaw::gateway {
namespace {

// A turn's share: enough to keep a stream fast, little enough that others wait less than a
// millisecond.
constexpr std::uint64_t kBytesPerTurn = 2 * 1024 * 1024;
constexpr int kStepsPerTurn = 64;
constexpr int kKeepAliveIdleS = 60, kKeepAliveIntervalS = 15, kKeepAliveProbes = 4;
// A stream that dribbles below this goes back to recv and send, which take fewer calls.
constexpr std::size_t kStreamBytes = 16 * 1024;

bool would_block() { return errno == EAGAIN || errno == EWOULDBLOCK; }

}  // namespace

bool RelayTools::has_pipe() {
  if (!spares_.empty()) return true;
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC | O_NONBLOCK) < 0) return false;
  Pipe pipe{Fd(ends[0]), Fd(ends[1])};
  // Refused past the user's quota of pipe pages; the default size works, too.
  int size = ::fcntl(ends[1], F_SETPIPE_SZ, kPipeBytes);
  if (size < 0) size = ::fcntl(ends[1], F_GETPIPE_SZ);
  if (size < static_cast<int>(kScratch) || reserve_.reached_by(pipe.write)) return false;
  spares_.push_back(std::move(pipe));
  return true;
}

Pipe RelayTools::take_pipe() {
  Pipe pipe = std::move(spares_.back());
  spares_.pop_back();
  return pipe;
}

void RelayTools::give_back(Pipe pipe) {
  if (spares_.size() < kSpares) spares_.push_back(std::move(pipe));
}

void reset_socket(Fd& socket) {
  if (!socket) return;
  linger now{.l_onoff = 1, .l_linger = 0};
  ::setsockopt(socket.get(), SOL_SOCKET, SO_LINGER, &now, sizeof now);
  socket.reset();
}

void keep_alive(const Fd& socket) {
  constexpr std::pair<int, int> kSettings[] = {{TCP_KEEPIDLE, kKeepAliveIdleS},
                                               {TCP_KEEPINTVL, kKeepAliveIntervalS},
                                               {TCP_KEEPCNT, kKeepAliveProbes}};
  int on = 1;
  ::setsockopt(socket.get(), SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
  for (auto [option, value] : kSettings)
    ::setsockopt(socket.get(), IPPROTO_TCP, option, &value, sizeof value);
}

void Relay::Side::note(std::uint32_t events) {
  if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) readable = true;
  if (events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) writable = true;
  if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) hung_up = true;
  if (events & EPOLLERR) failed = true;
}

Relay::Progress Relay::pump(RelayTools& tools) {
  std::uint64_t stop_at = moved_ + kBytesPerTurn;
  for (int steps = 0;; ++steps) {
    if (steps == kStepsPerTurn || moved_ > stop_at) return Progress::kMore;
    bool up = step(tools, client, replica, upward_);
    bool down = step(tools, replica, client, downward_);
    if (!up && !down) break;
  }
  if (client.failed && replica.failed) return Progress::kBroken;
  if (client.failed && spent(upward_)) return Progress::kBroken;
  // A client that has the whole answer, or has it on its way, must not lose it to a reset.
  if (replica.failed && spent(downward_))
    return downward_.ended ? Progress::kFinished : Progress::kBroken;
  return upward_.ended && downward_.ended ? Progress::kFinished : Progress::kWaiting;
}

// What a failed side had said before is all delivered.
bool Relay::spent(const Flow& flow) { return flow.ended || (flow.cut && flow.in_pipe == 0); }

bool Relay::step(RelayTools& tools, Side& from, Side& to, Flow& flow) {
  if (flow.ended) return false;
  if (to.failed) {
    flow.pipe.reset();
    flow.in_pipe = 0;
    return false;
  }
  if (flow.in_pipe > 0) return to.writable && flush(tools, to, flow);
  if (flow.cut || !from.readable || !to.writable) return false;
  return flow.streaming ? fill(tools, from, to, flow) : copy(tools, from, to, flow);
}

bool Relay::copy(RelayTools& tools, Side& from, Side& to, Flow& flow) {
  bool look_only = !tools.has_pipe();
  ssize_t got =
      ::recv(from.fd.get(), tools.scratch(), RelayTools::kScratch, look_only ? MSG_PEEK : 0);
  if (got <= 0) return source_ended(got, from, to, flow);
  auto size = static_cast<std::size_t>(got);
  asked_last_ = &flow == &upward_;
  bool full = size == RelayTools::kScratch;
  flow.streaming = full && !look_only;
  ssize_t put = ::send(to.fd.get(), tools.scratch(), size, MSG_NOSIGNAL);
  if (put < 0 && !would_block()) return target_failed(to);
  std::size_t sent = put < 0 ? 0 : static_cast<std::size_t>(put);
  moved_ += sent;
  if (look_only && sent > 0) ::recv(from.fd.get(), nullptr, sent, MSG_TRUNC);
  // A short read emptied the socket; what comes later is a new edge.
  if (!full && !from.hung_up && !(look_only && sent < size)) from.readable = false;
  if (sent == size) return true;
  to.writable = false;
  if (look_only) return false;
  flow.pipe = tools.take_pipe();
  flow.in_pipe = size - sent;
  ssize_t kept = ::write(flow.pipe->write.get(), tools.scratch() + sent, flow.in_pipe);
  if (kept != static_cast<ssize_t>(flow.in_pipe))
    throw_errno("keep bytes of a connection in", "a pipe");  // it is empty, and has room for them
  return false;
}

bool Relay::fill(RelayTools& tools, Side& from, Side& to, Flow& flow) {
  if (!tools.has_pipe()) {
    flow.streaming = false;
    return copy(tools, from, to, flow);
  }
  flow.pipe = tools.take_pipe();
  ssize_t got = ::splice(from.fd.get(), nullptr, flow.pipe->write.get(), nullptr,
                         RelayTools::kPipeBytes, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
  if (got <= 0) {
    int cause = errno;
    tools.give_back(std::move(*flow.pipe));
    flow.pipe.reset();
    errno = cause;
    return source_ended(got, from, to, flow);
  }
  flow.in_pipe = static_cast<std::size_t>(got);
  asked_last_ = &flow == &upward_;
  flow.streaming = flow.in_pipe >= kStreamBytes;
  return flush(tools, to, flow);
}

bool Relay::flush(RelayTools& tools, Side& to, Flow& flow) {
  // Never SPLICE_F_MORE: it corks the last bytes.
  ssize_t put = ::splice(flow.pipe->read.get(), nullptr, to.fd.get(), nullptr, flow.in_pipe,
                         SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
  if (put < 0 && would_block()) {
    to.writable = false;
    return false;
  }
  if (put <= 0) return target_failed(to);
  moved_ += static_cast<std::uint64_t>(put);
  flow.in_pipe -= static_cast<std::size_t>(put);
  if (flow.in_pipe == 0) {
    tools.give_back(std::move(*flow.pipe));
    flow.pipe.reset();
  }
  return true;
}

bool Relay::source_ended(ssize_t got, Side& from, Side& to, Flow& flow) {
  if (got < 0 && errno == EINTR) return true;
  if (got < 0 && would_block() && !from.failed) {
    from.readable = false;
    return false;
  }
  from.readable = false;
  if (got == 0 && !from.failed) {
    // An error here means that the other side is gone, which its own event says. With the second
    // end both are closed, which tells it, too.
    bool last = half_closed();
    flow.ended = true;
    if (!last) ::shutdown(to.fd.get(), SHUT_WR);
  } else {
    from.failed = flow.cut = true;
  }
  return true;
}

bool Relay::target_failed(Side& to) {
  // What it sent before it failed may still be unread.
  to.failed = to.hung_up = to.readable = true;
  return true;
}

}  // namespace thaw::gateway
