#include "gateway/connection.h"

#include <sys/epoll.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>

#include "gateway/router.h"
#include "util/error.h"
#include "util/log.h"

namespace thaw::gateway {
namespace {

constexpr std::uint32_t kEvents = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;
constexpr std::int64_t kLingerUs = 5'000'000;
constexpr std::int64_t kFirstBackoffUs = 2'000;
constexpr std::int64_t kLastBackoffUs = 100'000;

}  // namespace

Connection::Connection(Router& router, Port& port, Fd client)
    : router_(router),
      pod_(port.pod),
      port_(&port),
      container_port_(port.where.container),
      accepted_us_(router.loop.now_us()) {
  relay_.client.fd = std::move(client);
}

template <typename Work>
void Connection::guarded(const Work& work) {
  try {
    work();
  } catch (const std::exception& error) {
    router_.complain("a connection failed", pod_, container_port_, describe(error));
    finish(End::kReset);
  }
}

void Connection::start() {
  guarded([&] {
    router_.loop.watch(relay_.client.fd.get(), *this, kClientTag, kEvents);
    dispatch();
  });
}

void Connection::dispatch() {
  guarded([&] {
    leave_hold();
    if (dialing_since_us_ == 0) dialing_since_us_ = router_.loop.now_us();
    dial();
  });
}

void Connection::on_events(int tag, std::uint32_t events) {
  guarded([&] {
    (tag == kClientTag ? relay_.client : relay_.replica).note(events);
    switch (phase_) {
      case Phase::kHeld:
        if (client_left()) finish(End::kReset);
        break;
      case Phase::kDialing:
        if (tag == kClientTag) {
          if (client_left()) finish(End::kReset);
        } else {
          int error = Dialer::result(relay_.replica.fd);
          if (error == 0)
            relay();
          else if (error != EINPROGRESS)
            attempt_failed(error);
        }
        break;
      case Phase::kRelaying:
        pump();
        break;
      case Phase::kNew:
      case Phase::kDone:
        break;
    }
  });
}

void Connection::on_turn() {
  guarded([&] {
    if (phase_ == Phase::kRelaying) pump();
  });
}

void Connection::on_timer() {
  guarded([&] {
    std::int64_t now = router_.loop.now_us();
    switch (phase_) {
      case Phase::kHeld:
        if (backoff_us_ > 0) return dispatch();
        router_.complain("a held connection was given up", pod_, container_port_,
                         "no replica became ready in time");
        finish(End::kReset);
        break;
      case Phase::kDialing:
        attempt_failed(ETIMEDOUT);
        break;
      case Phase::kRelaying:
        // A replica that ended its stream may wait for a long upload still, or be closed for good,
        // which would hold up a drain: the kernel finds out which. (Clients have it from the
        // start.)
        if (lingering_) keep_alive(relay_.replica.fd);
        // Activity does not touch the timer; it finds out here.
        if (now - active_us_ >= router_.limits.idle_timeout_us)
          finish(End::kReset);
        else
          router_.loop.set_timer(*this, active_us_ + router_.limits.idle_timeout_us);
        break;
      case Phase::kNew:
      case Phase::kDone:
        break;
    }
  });
}

// ---- held ----

void Connection::hold() {
  if (!port_) return finish(End::kReset);
  phase_ = Phase::kHeld;
  ++pod_.traffic.held;
  // One that comes back from a replica that left is older than those behind it.
  auto& held = port_->held;
  auto place = held.end();
  if (!held.empty() && held.back()->accepted_us_ > accepted_us_)
    place = std::find_if(held.begin(), held.end(),
                         [&](auto* other) { return other->accepted_us_ > accepted_us_; });
  held_at_ = held.insert(place, this);
  router_.traffic_changed(pod_);
  router_.loop.set_timer(*this, backoff_us_ > 0 ? router_.loop.now_us() + backoff_us_
                                                : accepted_us_ + router_.limits.held_timeout_us);
}

void Connection::leave_hold() {
  if (phase_ != Phase::kHeld) return;
  port_->held.erase(held_at_);
  --pod_.traffic.held;
  phase_ = Phase::kNew;
  router_.loop.clear_timer(*this);
}

bool Connection::client_left() const {
  if (relay_.client.failed) return true;
  if (!relay_.client.hung_up) return false;
  // An end of stream behind a request may be a half-close: such a client still waits for its
  // answer. Keep-alive finds out when it does not. Without a request nobody is there to answer to.
  char byte;
  ssize_t got = ::recv(relay_.client.fd.get(), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
  return got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR);
}

void Connection::port_closed() {
  if (phase_ == Phase::kHeld) finish(End::kReset);
  port_ = nullptr;
}

// ---- dialled ----

void Connection::dial() {
  for (;;) {
    if (!replica_) {
      replica_ = router_.pick(pod_, tried_);
      if (!replica_) return none_reached();
      ++replica_->in_flight;
      ++pod_.traffic.active;
      router_.traffic_changed(pod_);
      phase_ = Phase::kDialing;
      addresses_tried_ = 0;
      // A program that binds loopback only would otherwise refuse each connection once.
      auto known = replica_->answered_at.find(container_port_);
      first_address_ = known == replica_->answered_at.end() ? 0 : known->second;
    }
    while (addresses_tried_ < kReplicaAddresses)
      if (attempt_address()) return;
    tried_.push_back(replica_->serial);
    release_replica();
  }
}

// True when it is connected or may become so.
bool Connection::attempt_address() {
  int address = (first_address_ + addresses_tried_) % kReplicaAddresses;
  Dialer::Attempt attempt = router_.dialer.connect(replica_->netns, address, container_port_);
  if (!attempt.socket) {
    last_error_ = attempt.error;
    ++addresses_tried_;
    return false;
  }
  relay_.replica.fd = std::move(attempt.socket);
  router_.loop.watch(relay_.replica.fd.get(), *this, kReplicaTag, kEvents);
  if (attempt.connected())
    relay();
  else
    router_.loop.set_timer(*this, router_.loop.now_us() + router_.limits.connect_timeout_us);
  return true;
}

void Connection::attempt_failed(int cause) {
  last_error_ = cause;
  close_attempt();
  ++addresses_tried_;
  dial();
}

void Connection::none_reached() {
  tried_.clear();
  if (pod_.ready.empty()) {
    dialing_since_us_ = backoff_us_ = 0;
    return hold();
  }
  if (router_.loop.now_us() - dialing_since_us_ >= router_.limits.connect_timeout_us) {
    router_.complain("a connection was reset: no ready replica accepts it", pod_, container_port_,
                     std::strerror(last_error_));
    return finish(End::kReset);
  }
  backoff_us_ = std::clamp(backoff_us_ * 2, kFirstBackoffUs, kLastBackoffUs);
  hold();
}

void Connection::replica_dropped() {
  // Nothing was sent to it yet: another one can serve this client.
  guarded([&] {
    if (phase_ != Phase::kDialing) return finish(End::kReset);
    close_attempt();
    release_replica();
    dial();
  });
}

void Connection::release_replica() {
  if (!replica_) return;
  --pod_.traffic.active;
  router_.release(*std::exchange(replica_, nullptr));
}

void Connection::close_attempt() {
  router_.loop.clear_timer(*this);
  if (relay_.replica.fd) router_.loop.unwatch(relay_.replica.fd.get());
  relay_.replica = {};
}

// ---- relayed ----

void Connection::relay() {
  phase_ = Phase::kRelaying;
  replica_->answered_at[container_port_] = (first_address_ + addresses_tried_) % kReplicaAddresses;
  tried_ = {};
  // The request is mostly there already; if not, one call finds that out.
  relay_.client.readable = relay_.client.writable = relay_.replica.writable = true;
  active_us_ = router_.loop.now_us();
  router_.loop.set_timer(*this, active_us_ + router_.limits.idle_timeout_us);
  pump();
}

void Connection::pump() {
  std::uint64_t before = relay_.moved();
  Relay::Progress progress = relay_.pump(router_.tools);
  if (relay_.moved() != before) active_us_ = router_.loop.now_us();
  switch (progress) {
    case Relay::Progress::kWaiting:
      if (relay_.replica_ended() && !lingering_) {
        lingering_ = true;
        router_.loop.set_timer(
            *this, std::min(active_us_ + kLingerUs, active_us_ + router_.limits.idle_timeout_us));
      }
      break;
    case Relay::Progress::kMore:
      router_.loop.again(*this);
      break;
    case Relay::Progress::kFinished:
      finish(End::kClose);
      break;
    case Relay::Progress::kNoPipe:
      router_.complain("a connection was reset", pod_, container_port_,
                       "no descriptors are left for its pipe");
      [[fallthrough]];
    case Relay::Progress::kBroken:
      finish(End::kReset);
      break;
  }
}

void Connection::finish(End how) {
  if (phase_ == Phase::kDone) return;
  leave_hold();
  phase_ = Phase::kDone;
  for (Relay::Side* side : {&relay_.client, &relay_.replica}) {
    if (!side->fd) continue;
    router_.loop.unwatch(side->fd.get());
    if (how == End::kReset)
      reset_socket(side->fd);
    else
      side->fd.reset();
  }
  release_replica();
  router_.traffic_changed(pod_);
  router_.forget(*this);
}

}  // namespace thaw::gateway
