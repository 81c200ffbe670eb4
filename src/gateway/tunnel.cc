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
constexpr std::int64_t kNever = INT64_MAX;

}  // namespace

Tunnel::Tunnel(Router& router, Pod& pod, Hold& hold, Way way, const PublishedPort& port, Fd client)
    : Connection(router, pod, hold, way),
      protocol_(port.protocol),
      idle_us_(port.idle_timeout_us.value_or(router.limits.idle_timeout_us)) {
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
  // An HTTP client speaks first. Until then there is nothing to serve: it needs no replica, and a
  // connection that is only kept ready costs one descriptor.
  if (protocol_ != Protocol::kHttp) return begin();
  if (idle_us_ > 0) router_.loop.set_timer(*this, router_.loop.now_us() + idle_us_);
}

void Tunnel::begin() {
  if (phase_ != Phase::kNew) return;
  router_.loop.clear_timer(*this);
  if (router_.is_full(pod_, hold(), way_.port)) return start_refused(Refusal::kTooMany);
  ++pod_.traffic.total;
  dispatch();
}

void Tunnel::start_refused(Refusal why) {
  phase_ = Phase::kRefused;
  guarded([&] { refuse(why); });
}

void Tunnel::on_client(std::uint32_t events) {
  relay_.client.note(events);
  if (phase_ == Phase::kNew && relay_.client.readable) {
    if (client_left()) return end(End::kClose);
    begin();
  }
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

sockaddr_storage Tunnel::server_address() const {
  sockaddr_storage server{};
  socklen_t size = sizeof server;
  ::getsockname(relay_.client.fd.get(), reinterpret_cast<sockaddr*>(&server), &size);
  return server;
}

// ---- relayed ----

void Tunnel::connected(std::uint32_t events) {
  relay_.replica.fd = std::move(upstream_);
  relay_.replica.note(events);
  // The request is mostly there already; if not, one call finds that out.
  relay_.client.readable = relay_.client.writable = relay_.replica.writable = true;
  active_us_ = router_.loop.now_us();
  look_later();
  pump();
  if (router_.leaving()) replica_leaves();
}

void Tunnel::on_upstream(std::uint32_t events) {
  relay_.replica.note(events);
  pump();
}

void Tunnel::on_own_turn() { pump(); }

void Tunnel::on_own_timer() {
  if (phase_ != Phase::kConnected) return end(End::kReset);
  std::int64_t now = router_.loop.now_us();
  bool failed = relay_.client.failed || relay_.replica.failed;
  if (now >= over_at()) return end(answer_is_over() && !failed ? End::kClose : End::kReset);
  // A replica that ended its stream may wait for a long upload still, or be closed for good, which
  // would hold up a drain: the kernel finds out which. (Clients have it from the start.)
  if (relay_.replica_ended() && now >= active_us_ + router_.limits.linger_us &&
      !std::exchange(asked_kernel_, true))
    keep_alive(relay_.replica.fd);
  look_later();
}

// It is only kept for a next request, or because the client has not ended it: that would hold up
// the end of a replica that is to leave.
bool Tunnel::answer_is_over() const {
  return leaving_ && relay_.answered() && (protocol_ == Protocol::kHttp || half_closed_);
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

// When, if no byte moves until then. Activity does not touch the timer, which asks again.
std::int64_t Tunnel::over_at() const {
  const Limits& limits = router_.limits;
  std::int64_t quiet_us = idle_us_ > 0 ? idle_us_ : kNever;
  if (half_closed_) quiet_us = std::min(quiet_us, limits.half_closed_us);
  if (answer_is_over()) quiet_us = std::min(quiet_us, limits.quiet_us);
  // One end has failed, and the other does not take what it had said: nothing else would end this.
  if (relay_.client.failed || relay_.replica.failed) quiet_us = limits.linger_us;
  return quiet_us == kNever ? kNever : active_us_ + quiet_us;
}

void Tunnel::look_later() {
  std::int64_t at = over_at();
  if (relay_.replica_ended() && !asked_kernel_)
    at = std::min(at, active_us_ + router_.limits.linger_us);
  if (at == kNever)
    router_.loop.clear_timer(*this);
  else
    router_.loop.set_timer(*this, at);
}

void Tunnel::replica_leaves() {
  if (phase_ != Phase::kConnected || std::exchange(leaving_, true)) return;
  look_later();
}

void Tunnel::pump() {
  std::uint64_t before = relay_.moved();
  Relay::Progress progress = relay_.pump(router_.tools);
  if (relay_.moved() != before) active_us_ = router_.loop.now_us();
  switch (progress) {
    case Relay::Progress::kWaiting:
      // What it waits for has changed, or may have.
      if (relay_.half_closed() != std::exchange(half_closed_, relay_.half_closed()) || leaving_ ||
          relay_.client.failed || relay_.replica.failed)
        look_later();
      break;
    case Relay::Progress::kMore:
      router_.loop.again(*this);
      break;
    case Relay::Progress::kFinished:
      end(End::kClose);
      break;
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
