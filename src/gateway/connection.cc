#include "gateway/connection.h"

#include <sys/epoll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "gateway/proxy_header.h"
#include "gateway/router.h"
#include "network/foreign_sources.h"
#include "util/error.h"
#include "util/log.h"

namespace thaw::gateway {
namespace {

constexpr std::int64_t kFirstBackoffUs = 2'000;
constexpr std::int64_t kLastBackoffUs = 100'000;
// Within one kernel a handshake is over at once, or the backlog is full and the kernel would try
// again after a second: we do so sooner.
constexpr std::int64_t kAttemptUs = 20'000;

}  // namespace

Connection::Connection(Router& router, Pod& pod, Hold& hold, Way way)
    : router_(router), pod_(pod), way_(way), hold_(&hold), accepted_us_(router.loop.now_us()) {}

Connection::~Connection() = default;

void Connection::failed(const std::exception& error) {
  router_.complain("a connection failed", pod_, way_.port, describe(error));
  if (phase_ != Phase::kDone) abort();
}

void Connection::dispatch() {
  guarded([&] {
    leave_hold();
    wants_replica_ = true;
    if (dialing_since_us_ == 0) dialing_since_us_ = router_.loop.now_us();
    dial();
  });
}

void Connection::on_events(int tag, std::uint32_t events) {
  guarded([&] {
    if (tag == kClientTag) {
      on_client(events);
      if (phase_ != Phase::kHeld && phase_ != Phase::kDialing) return;
      if (client_left()) return abort();
      if (phase_ == Phase::kHeld) count_bytes();
      return;
    }
    if (phase_ == Phase::kConnected) return on_upstream(events);
    if (phase_ != Phase::kDialing) return;
    int error = Dialer::result(upstream_);
    if (error == 0)
      reached(events);
    else if (error != EINPROGRESS)
      attempt_failed(error);
  });
}

void Connection::on_turn() {
  guarded([&] {
    if (phase_ == Phase::kConnected) on_own_turn();
  });
}

void Connection::on_timer() {
  guarded([&] {
    switch (phase_) {
      case Phase::kHeld:
        if (backoff_us_ > 0) return dispatch();
        router_.complain(
            "a held connection was given up", pod_, way_.port,
            offered() ? "no replica had room in time" : "no replica became ready in time");
        give_up(offered() ? Refusal::kNoRoom : Refusal::kTooLong);
        break;
      case Phase::kDialing:
        attempt_failed(ETIMEDOUT);
        break;
      case Phase::kNew:
      case Phase::kConnected:
      case Phase::kRefused:
        on_own_timer();
        break;
      case Phase::kDone:
        break;
    }
  });
}

// ---- held ----

void Connection::put_on_hold() {
  if (!hold_) return give_up(Refusal::kNotPublished);
  phase_ = Phase::kHeld;
  ++pod_.traffic.held;
  // One that comes back from a replica that left is older than those behind it.
  auto& held = hold_->waiting;
  auto place = held.end();
  if (!held.empty() && held.back()->accepted_us_ > accepted_us_)
    place = std::find_if(held.begin(), held.end(),
                         [&](auto* other) { return other->accepted_us_ > accepted_us_; });
  held_at_ = held.insert(place, this);
  router_.traffic_changed(pod_);
  router_.loop.set_timer(*this, backoff_us_ > 0 ? router_.loop.now_us() + backoff_us_
                                                : accepted_us_ + router_.limits.held_timeout_us);
  count_bytes();
}

void Connection::count_bytes() {
  std::int64_t now = waiting_bytes();
  hold_->bytes += now - std::exchange(held_bytes_, now);
  if (hold_->bytes <= router_.limits.held_bytes_per_port) return;
  router_.complain("a held connection was given up", pod_, way_.port,
                   "those held have sent more than may wait");
  give_up(Refusal::kTooManyBytes);
}

void Connection::leave_hold() {
  if (phase_ != Phase::kHeld) return;
  hold_->waiting.erase(held_at_);
  hold_->bytes -= std::exchange(held_bytes_, 0);
  --pod_.traffic.held;
  phase_ = Phase::kNew;
  router_.loop.clear_timer(*this);
}

void Connection::hold_closed() {
  guarded([&] {
    bool held = phase_ == Phase::kHeld;
    leave_hold();
    hold_ = nullptr;
    if (held) return give_up(Refusal::kNotPublished);
    if (phase_ == Phase::kNew) abort();
  });
}

void Connection::give_up(Refusal why) {
  leave_hold();
  phase_ = Phase::kRefused;
  refuse(why);
}

// ---- dialled ----

void Connection::dial() {
  for (;;) {
    if (!replica_) {
      replica_ = router_.pick(pod_, way_, tried_, busy_, full_);
      if (!replica_) return none_reached();
      ++replica_->in_flight;
      auto target = replica_->target(way_);
      port_ = target->port;
      client_address_ = target->client_address;
      ++pod_.traffic.active;
      router_.traffic_changed(pod_);
      phase_ = Phase::kDialing;
      addresses_tried_ = 0;
      // A program that binds loopback only would otherwise refuse each connection once.
      auto known = replica_->answered_at.find(address_key(port_, client_address_));
      first_address_ = known == replica_->answered_at.end() ? 0 : known->second;
    }
    while (addresses_tried_ < kReplicaAddresses)
      if (attempt_address()) return;
    tried_.push_back(replica_->serial);
    release_replica();
  }
}

// What is known of a port holds for one family.
std::uint32_t Connection::address_key(std::uint16_t port, ClientAddress how) const {
  bool v6 = how == ClientAddress::kKeep && way_.client.ss_family == AF_INET6;
  return port | (v6 ? 1u << 16 : 0);
}

// Whether a replica is ready that has what is wanted.
bool Connection::offered() const {
  return std::ranges::any_of(
      pod_.ready, [&](const Replica* replica) { return replica->target(way_).has_value(); });
}

// True when it is connected or may become so.
bool Connection::attempt_address() {
  int address = (first_address_ + addresses_tried_) % kReplicaAddresses;
  Dialer::Attempt attempt;
  if (client_address_ == ClientAddress::kKeep && Dialer::can_keep(way_.client)) {
    if (!std::exchange(replica_->admits_clients, true))
      network::admit_foreign_sources(replica_->netns.fd);
    attempt = router_.dialer.connect_as(replica_->netns, way_.client, address, port_);
  } else {
    attempt = router_.dialer.connect(replica_->netns, address, port_);
  }
  if (!attempt.socket) {
    last_error_ = attempt.error;
    // Others end, and give back descriptors.
    busy_ = busy_ || attempt.error == EMFILE || attempt.error == ENFILE;
    ++addresses_tried_;
    return false;
  }
  upstream_ = std::move(attempt.socket);
  router_.loop.watch(upstream_.get(), *this, kReplicaTag, kEvents);
  if (attempt.connected())
    reached(0);
  else {
    pending_ = true;
    ++replica_->pending;
    router_.loop.set_timer(*this, router_.loop.now_us() + kAttemptUs);
  }
  return true;
}

void Connection::attempt_failed(int cause) {
  last_error_ = cause;
  busy_ = busy_ || cause == ETIMEDOUT;
  close_attempt();
  ++addresses_tried_;
  dial();
}

void Connection::reached(std::uint32_t events) {
  phase_ = Phase::kConnected;
  router_.loop.clear_timer(*this);
  settle_attempt();
  replica_->answered_at[address_key(port_, client_address_)] =
      (first_address_ + addresses_tried_) % kReplicaAddresses;
  tried_ = {};
  if (client_address_ == ClientAddress::kProxy) {
    // Fits: nothing was written to this socket yet.
    std::string header = proxy_header(way_.client, server_address());
    (void)::send(upstream_.get(), header.data(), header.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  }
  connected(events);
}

void Connection::none_reached() {
  bool only_full = std::exchange(full_, false) && tried_.empty() && !busy_;
  tried_.clear();
  if (!offered() || only_full) {
    dialing_since_us_ = backoff_us_ = 0;
    busy_ = false;
    was_held_ = was_held_ || !only_full;
    return put_on_hold();
  }
  std::int64_t until = dialing_since_us_ + router_.limits.connect_timeout_us;
  if (std::exchange(busy_, false) || may_be_starting())
    until = accepted_us_ + router_.limits.held_timeout_us;
  if (router_.loop.now_us() >= until) {
    router_.complain("a connection was refused: no ready replica accepts it", pod_, way_.port,
                     std::strerror(last_error_));
    return give_up(last_error_ == EMFILE || last_error_ == ENFILE ? Refusal::kExhausted
                                                                  : Refusal::kUnreachable);
  }
  backoff_us_ = std::clamp(backoff_us_ * 2, kFirstBackoffUs, kLastBackoffUs);
  put_on_hold();
}

// A replica has not been reached on this port yet: its program may not listen so far.
bool Connection::may_be_starting() const {
  return std::ranges::any_of(pod_.ready, [&](const Replica* replica) {
    auto target = replica->target(way_);
    return target &&
           !replica->answered_at.contains(address_key(target->port, target->client_address));
  });
}

void Connection::replica_dropped() {
  guarded([&] {
    if (phase_ == Phase::kConnected) return dropped();
    if (phase_ != Phase::kDialing) return;
    // Nothing was sent to it yet: another one can serve this client.
    close_attempt();
    release_replica();
    dial();
  });
}

void Connection::end_if_at_rest(std::int64_t since_us) {
  guarded([&] {
    look_again();
    if (auto since = at_rest_since(); since && *since <= since_us) end_at_rest();
  });
}

void Connection::release_replica() {
  if (!replica_) return;
  --pod_.traffic.active;
  router_.release(*std::exchange(replica_, nullptr));
}

void Connection::settle_attempt() {
  if (std::exchange(pending_, false)) --replica_->pending;
}

void Connection::close_attempt() {
  router_.loop.clear_timer(*this);
  settle_attempt();
  if (upstream_) router_.loop.unwatch(upstream_.get());
  upstream_.reset();
}

void Connection::finish() {
  if (phase_ == Phase::kDone) return;
  leave_hold();
  phase_ = Phase::kDone;
  close_attempt();
  release_replica();
  if (wants_replica_) router_.traffic_changed(pod_);
  router_.forget(*this);
}

}  // namespace thaw::gateway
