#include "gateway/tunnel.h"

#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

#include <fmt/format.h>

#include "gateway/router.h"

namespace thaw::gateway {
namespace {

// A client that is told why must be heard out: closing with its words unread would reset it, and
// the reset may overtake the answer.
constexpr std::int64_t kHearUs = 2'000'000;
constexpr std::size_t kHearBytes = 1 << 20;
constexpr int kRefusedAtOnce = 512;  // more are reset

}  // namespace

Tunnel::Tunnel(Router& router, Pod& pod, Hold& hold, Way way, Protocol protocol, Fd client)
    : Connection(router, pod, hold, way), protocol_(protocol) {
  relay_.client.fd = std::move(client);
}

Tunnel::~Tunnel() {
  if (counted_) --router_.being_refused;
}

void Tunnel::start() {
  guarded([&] {
    router_.loop.watch(relay_.client.fd.get(), *this, kClientTag, kEvents);
    watched_ = true;
  });
  if (phase_ == Phase::kNew) dispatch();
}

void Tunnel::start_refused(Refusal why) {
  phase_ = Phase::kRefused;
  guarded([&] { refuse(why); });
}

void Tunnel::on_client(std::uint32_t events) {
  relay_.client.note(events);
  if (phase_ == Phase::kConnected) pump();
  if (phase_ == Phase::kRefused) hear_out();
}

bool Tunnel::client_left() {
  if (relay_.client.failed) return true;
  if (!relay_.client.hung_up) return false;
  // An end of stream behind a request may be a half-close: such a client still waits for its
  // answer. Keep-alive finds out when it does not. Without a request nobody is there to answer to.
  char byte;
  ssize_t got = ::recv(relay_.client.fd.get(), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
  return got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR);
}

std::int64_t Tunnel::waiting_bytes() {
  int size = 0;
  return ::ioctl(relay_.client.fd.get(), FIONREAD, &size) == 0 ? size : 0;
}

// ---- relayed ----

void Tunnel::connected(std::uint32_t events) {
  relay_.replica.fd = std::move(upstream_);
  relay_.replica.note(events);
  // The request is mostly there already; if not, one call finds that out.
  relay_.client.readable = relay_.client.writable = relay_.replica.writable = true;
  active_us_ = router_.loop.now_us();
  router_.loop.set_timer(*this, active_us_ + router_.limits.idle_timeout_us);
  pump();
}

void Tunnel::on_upstream(std::uint32_t events) {
  relay_.replica.note(events);
  pump();
}

void Tunnel::on_own_turn() { pump(); }

void Tunnel::on_own_timer() {
  if (phase_ == Phase::kRefused) return end(End::kReset);
  std::int64_t now = router_.loop.now_us();
  if (relay_.client.failed || relay_.replica.failed) return wait_for_failed(now);
  // A replica that ended its stream may wait for a long upload still, or be closed for good, which
  // would hold up a drain: the kernel finds out which. (Clients have it from the start.)
  if (lingering_) keep_alive(relay_.replica.fd);
  // Activity does not touch the timer; it finds out here.
  if (now - active_us_ >= router_.limits.idle_timeout_us) return end(End::kReset);
  std::int64_t until = active_us_ + router_.limits.idle_timeout_us;
  if (leaving_) {
    std::int64_t quiet_at = active_us_ + router_.limits.quiet_us;
    if (relay_.answered() && now >= quiet_at) return end(End::kClose);
    until = std::min(until, std::max(quiet_at, now + router_.limits.quiet_us / 4));
  }
  router_.loop.set_timer(*this, until);
}

// A connection that is only kept for a next request would hold up the replica's end.
void Tunnel::replica_leaves() {
  if (phase_ != Phase::kConnected || protocol_ != Protocol::kHttp || leaving_) return;
  leaving_ = true;
  router_.loop.set_timer(*this,
                         std::max(active_us_ + router_.limits.quiet_us, router_.loop.now_us()));
}

std::optional<std::int64_t> Tunnel::at_rest_since() const {
  bool at_rest = phase_ == Phase::kConnected && relay_.answered();
  return at_rest ? std::optional(active_us_) : std::nullopt;
}

void Tunnel::look_again() {
  if (phase_ != Phase::kConnected) return;
  relay_.client.readable = relay_.replica.readable = true;
  pump();
}

// One end has failed, and the other does not take what it had said: nothing else would end this.
void Tunnel::wait_for_failed(std::int64_t now) {
  std::int64_t until = active_us_ + router_.limits.linger_us;
  if (now >= until)
    end(End::kReset);
  else
    router_.loop.set_timer(*this, until);
}

void Tunnel::pump() {
  std::uint64_t before = relay_.moved();
  Relay::Progress progress = relay_.pump(router_.tools);
  if (relay_.moved() != before) active_us_ = router_.loop.now_us();
  switch (progress) {
    case Relay::Progress::kWaiting:
      if (relay_.client.failed || relay_.replica.failed) {
        wait_for_failed(router_.loop.now_us());
      } else if (relay_.replica_ended() && !lingering_) {
        lingering_ = true;
        router_.loop.set_timer(
            *this, active_us_ + std::min(router_.limits.linger_us, router_.limits.idle_timeout_us));
      }
      break;
    case Relay::Progress::kMore:
      router_.loop.again(*this);
      break;
    case Relay::Progress::kFinished:
      end(End::kClose);
      break;
    case Relay::Progress::kNoPipe:
      router_.complain("a connection was reset", pod_, way_.port,
                       "no descriptors are left for its pipe");
      [[fallthrough]];
    case Relay::Progress::kBroken:
      end(End::kReset);
      break;
  }
}

void Tunnel::dropped() { end(End::kReset); }
void Tunnel::abort() { end(End::kReset); }

void Tunnel::end(End how) {
  if (phase_ == Phase::kDone) return;
  for (Relay::Side* side : {&relay_.client, &relay_.replica}) {
    if (!side->fd) continue;
    router_.loop.unwatch(side->fd.get());
    if (how == End::kReset)
      reset_socket(side->fd);
    else
      side->fd.reset();
  }
  finish();
}

// ---- refused ----

// Nothing sent yet may become anything. HTTP/2 with prior knowledge and TLS are no HTTP/1.
bool Tunnel::speaks_http(std::string& method) const {
  char start[8];
  ssize_t got = ::recv(relay_.client.fd.get(), start, sizeof start, MSG_PEEK | MSG_DONTWAIT);
  if (got < 0) return errno == EAGAIN;
  for (ssize_t i = 0; i < got && start[i] != ' '; ++i) {
    if (start[i] < 'A' || start[i] > 'Z') return false;
    method += start[i];
  }
  return method != "PRI";
}

void Tunnel::refuse(Refusal why) {
  std::string method;
  if (protocol_ != Protocol::kHttp || router_.being_refused >= kRefusedAtOnce ||
      !speaks_http(method))
    return end(End::kReset);
  counted_ = true;
  ++router_.being_refused;
  std::string reason = Router::refusal(why, pod_) + "\n";
  std::string answer = fmt::format(
      "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\n"
      "Content-Length: {}\r\nRetry-After: {}\r\nConnection: close\r\n\r\n{}",
      reason.size(), retry_after_s(why), method == "HEAD" ? "" : reason);
  // Fits: nothing was written to this socket yet.
  (void)::send(relay_.client.fd.get(), answer.data(), answer.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  ::shutdown(relay_.client.fd.get(), SHUT_WR);
  if (!watched_) {
    router_.loop.watch(relay_.client.fd.get(), *this, kClientTag, kEvents);
    watched_ = true;
  }
  router_.loop.set_timer(*this, router_.loop.now_us() + kHearUs);
  hear_out();
}

void Tunnel::hear_out() {
  for (;;) {
    ssize_t got = ::recv(relay_.client.fd.get(), router_.tools.scratch(), RelayTools::kScratch, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) return end(End::kClose);
    heard_ += static_cast<std::size_t>(got);
    if (heard_ > kHearBytes) return end(End::kReset);
  }
}

}  // namespace thaw::gateway
