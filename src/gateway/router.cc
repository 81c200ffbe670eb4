#include "gateway/router.h"

#include <sys/socket.h>

#include <algorithm>

#include <fmt/format.h>

#include "gateway/tunnel.h"
#include "util/error.h"
#include "util/log.h"

namespace thaw::gateway {
namespace {

constexpr std::int64_t kComplaintEveryUs = 1'000'000;
// More at a full backlog would only fill the namespace with handshakes that come to nothing.
constexpr int kPendingDials = 8;

bool same_place(const PublishedPort& a, const PublishedPort& b) {
  return a.address == b.address && a.host == b.host;
}

ClientAddress client_address_of(const std::vector<PublishedPort>& ports, std::uint16_t container) {
  for (const PublishedPort& port : ports)
    if (port.container == container) return port.client_address;
  return ClientAddress::kGateway;
}

std::vector<PublishedPort> checked(const std::string& pod, std::vector<PublishedPort> ports) {
  for (std::size_t i = 0; i < ports.size(); ++i) {
    ports[i].address = normal_address(ports[i].address);
    std::string where = endpoint_text(ports[i].address, ports[i].host);
    if (ports[i].container == 0)
      throw Error(Code::kInvalid, "publish port", fmt::format("{} of pod {}", where, pod),
                  "the container's port is 0", "name the port that the program listens on");
    for (std::size_t j = 0; j < i; ++j)
      if (ports[i].host != 0 && same_place(ports[i], ports[j]))
        throw Error(Code::kInvalid, "publish port", fmt::format("{} of pod {}", where, pod),
                    "it is listed twice");
  }
  return ports;
}

}  // namespace

std::string refusal_text(Refusal why, const std::string& pod) {
  switch (why) {
    case Refusal::kNotPublished:
      return fmt::format("pod {} is not there", pod);
    case Refusal::kTooMany:
      return fmt::format("pod {} has no replica for more clients, and as many as may wait do so",
                         pod);
    case Refusal::kTooManyBytes:
      return fmt::format("pod {} has no ready replica, and waiting clients have sent too much",
                         pod);
    case Refusal::kTooLong:
      return fmt::format("no replica of pod {} became ready in time", pod);
    case Refusal::kNoRoom:
      return fmt::format("no replica of pod {} had room in time", pod);
    case Refusal::kExhausted:
      return fmt::format("pod {} cannot be reached: too many clients are connected", pod);
    case Refusal::kUnreachable:
      return fmt::format("no replica of pod {} accepts connections", pod);
    case Refusal::kFailed:
      break;
  }
  return fmt::format("pod {} cannot be reached", pod);
}

// Soon when it is a matter of luck, later when the pod seems to have a trouble of its own.
int retry_after_s(Refusal why) { return why == Refusal::kTooLong ? 10 : 2; }

std::optional<Replica::Target> Replica::target(const Way& way) const {
  if (!offer) return Target{way.port, way.client_address};
  if (!way.route.empty()) {
    auto found = offer->routes.find(way.route);
    if (found == offer->routes.end()) return std::nullopt;
    return Target{found->second, client_address_of(offer->ports, found->second)};
  }
  for (const PublishedPort& port : offer->ports)
    if (way.host ? port.host == way.host && normal_address(port.address) == way.address
                 : port.container == way.port)
      return Target{port.container, port.client_address};
  return std::nullopt;
}

// ---- ports ----

std::vector<PublishedPort> Router::publish(const std::string& name,
                                           const std::vector<PublishedPort>& requested,
                                           Share share) {
  std::vector<PublishedPort> ports = checked(name, requested);
  Pod& pod = pod_named(name);

  // Which of the listeners that the pod has go on; exact numbers choose first, then "any".
  std::vector<Port*> chosen(ports.size(), nullptr);
  auto keep = [&](std::size_t i, auto matches) {
    for (auto& port : pod.ports)
      if (!chosen[i] && std::ranges::find(chosen, port.get()) == chosen.end() &&
          matches(port->where))
        chosen[i] = port.get();
  };
  for (std::size_t i = 0; i < ports.size(); ++i)
    if (ports[i].host != 0)
      keep(i, [&](const PublishedPort& has) { return same_place(has, ports[i]); });
  for (std::size_t i = 0; i < ports.size(); ++i)
    if (ports[i].host == 0)
      keep(i, [&](const PublishedPort& has) {
        return has.address == ports[i].address && has.container == ports[i].container;
      });

  // Everything that can fail comes before anything that is given up, but for a listener of ours
  // that stands in the way of its own successor (127.0.0.1:80 becomes 0.0.0.0:80): that one listens
  // again if the rest fails.
  std::vector<std::unique_ptr<Port>> fresh;
  std::vector<Port*> moved_aside;
  try {
    for (std::size_t i = 0; i < ports.size(); ++i) {
      if (chosen[i]) continue;
      for (auto& port : pod.ports)
        if (ports[i].host == port->where.host &&
            addresses_overlap(ports[i].address, port->where.address) && port->listener &&
            std::ranges::find(chosen, port.get()) == chosen.end()) {
          port->stop();
          moved_aside.push_back(port.get());
        }
      fresh.push_back(std::make_unique<Port>(*this, pod, ports[i], listen_for(ports[i])));
      fresh.back()->where.host = port_of(fresh.back()->listener);
      fresh.back()->listen();
      chosen[i] = fresh.back().get();
    }
  } catch (...) {
    for (auto& port : fresh) close_port(std::move(port));
    for (Port* port : moved_aside) {
      port->listener = listen_on(port->where.address, port->where.host, holder);
      port->listen();
    }
    let_go(pod);
    throw;
  }

  std::vector<std::unique_ptr<Port>> before = std::exchange(pod.ports, std::move(fresh));
  for (auto& port : before) {
    auto at = std::ranges::find(chosen, port.get());
    if (at == chosen.end()) {
      close_port(std::move(port));
    } else {
      const PublishedPort& wanted = ports[static_cast<std::size_t>(at - chosen.begin())];
      port->where.container = wanted.container;
      port->where.protocol = wanted.protocol;
      port->where.client_address = wanted.client_address;
      port->where.idle_timeout_us = wanted.idle_timeout_us;
      pod.ports.push_back(std::move(port));
    }
  }
  for (std::size_t i = 0; i < ports.size(); ++i) ports[i].host = chosen[i]->where.host;
  pod.share = {std::max(share.concurrency, 1), share.hard};
  if (!pod.ready.empty()) has_room(pod);
  pod.published = true;
  let_go(pod);
  return ports;
}

Fd Router::listen_for(const PublishedPort& port) const {
  try {
    return listen_on(port.address, port.host, holder);
  } catch (const Error& error) {
    if (error.code() != Code::kConflict) throw;
    for (auto& [name, pod] : pods_)
      for (auto& other : pod.ports)
        if (other->where.host == port.host && addresses_overlap(other->where.address, port.address))
          throw Error(Code::kConflict, "listen on", endpoint_text(port.address, port.host),
                      fmt::format("pod {} publishes it", name),
                      "choose another port, or remove that pod");
    throw;
  }
}

void Router::set_trouble(const std::string& name, const std::string& why) {
  if (auto found = pods_.find(name); found != pods_.end()) found->second.trouble = why;
}

std::string Router::refusal(Refusal why, const Pod& pod) {
  bool helps = (why == Refusal::kTooLong || why == Refusal::kTooMany) && !pod.trouble.empty();
  return refusal_text(why, pod.name) + (helps ? ": " + pod.trouble : "");
}

void Router::unpublish(const std::string& name) {
  if (!pods_.contains(name)) return;
  Pod& pod = pod_named(name);
  for (auto& port : std::exchange(pod.ports, {})) close_port(std::move(port));
  pod.published = false;
  close_hold(pod.calls);
  let_go(pod);
}

void Router::close_port(std::unique_ptr<Port> port) {
  port->stop();
  close_hold(port->hold);
  loop.retire(std::move(port));
}

void Router::close_hold(const Hold& hold) {
  for (Connection* connection : connections_where([&](auto& c) { return c.hold() == &hold; }))
    connection->hold_closed();
}

// ---- gates ----

void Router::open_gate(const std::string& pod_name, const std::string& id, Fd netns,
                       std::optional<Offer> offer) {
  auto known = replicas_.find(id);
  if (known != replicas_.end() && known->second.open)
    throw Error(Code::kInternal, "open the gate of replica", id, "it is open already");
  if (known != replicas_.end() && known->second.pod.name != pod_name)
    throw Error(Code::kInternal, "open the gate of replica", id,
                fmt::format("it belongs to pod {}, not to {}", known->second.pod.name, pod_name));
  dialer.prepare(netns, id);
  Pod& pod = pod_named(pod_name);
  Replica& replica = replica_named(id, pod);
  pod.leaving -= replica.in_flight;
  replica.serial = ++serial_;
  replica.netns = {std::move(netns)};
  replica.restored = offer && offer->restored;
  replica.offer = std::move(offer);
  replica.answered_at.clear();
  replica.open = true;
  pod.ready.push_back(&replica);

  for (Connection* connection : held(pod)) connection->dispatch();
}

std::vector<Connection*> Router::held(const Pod& pod) {
  std::vector<Connection*> held(pod.calls.waiting.begin(), pod.calls.waiting.end());
  for (auto& port : pod.ports)
    held.insert(held.end(), port->hold.waiting.begin(), port->hold.waiting.end());
  std::ranges::stable_sort(held, {}, &Connection::accepted_us);
  return held;
}

void Router::has_room(const Pod& pod) {
  if (!pod.share.hard || pod.traffic.held == 0) return;
  with_room_.insert(pod.name);
  loop.again(*this);
}

void Router::on_turn() {
  for (const std::string& name : std::exchange(with_room_, {})) {
    auto found = pods_.find(name);
    if (found == pods_.end()) continue;
    Pod& pod = found->second;
    for (Connection* connection : held(pod)) {
      if (std::ranges::all_of(pod.ready, [&](auto* replica) { return pod.fills(*replica); })) break;
      connection->dispatch();
    }
  }
}

// Takes over one use of the pod.
Replica& Router::replica_named(const std::string& id, Pod& pod) {
  auto [at, made] = replicas_.try_emplace(id, Replica{.id = id, .pod = pod, .serial = 0});
  if (!made) let_go(pod);  // the replica is its user already
  return at->second;
}

bool Router::gate_is_open(const std::string& id) const {
  auto found = replicas_.find(id);
  return found != replicas_.end() && found->second.open;
}

void Router::close_gate(const std::string& pod, const std::string& id) {
  auto found = replicas_.find(id);
  if (found != replicas_.end() && found->second.pod.name == pod) close_gate(found->second);
}

void Router::close_gate(Replica& replica) {
  if (!replica.open) return;
  replica.open = false;
  replica.pod.leaving += replica.in_flight;
  replica.netns.sockets.clear();
  std::erase(replica.pod.ready, &replica);
  for (Connection* connection : connections_where([&](auto& c) { return c.replica() == &replica; }))
    connection->replica_leaves();
  replica.pod.peak = replica.pod.need_of(replica.pod.demanding());
  forget_if_done(replica);
}

void Router::drop(const std::string& id) {
  auto found = replicas_.find(id);
  if (found == replicas_.end()) return;
  Replica* replica = &found->second;
  auto connections = connections_where([&](auto& c) { return c.replica() == replica; });
  close_gate(
      *replica);  // with no connection left it is gone now; with the last of them it goes below
  for (Connection* connection : connections) connection->replica_dropped();
}

void Router::end_quiet(const std::string& id, std::int64_t quiet_us) {
  for (Connection* connection :
       connections_where([&](auto& c) { return c.replica() && c.replica()->id == id; }))
    connection->end_if_at_rest(loop.now_us() - quiet_us);
}

void Router::tell_drained(const std::string& id, Fd event) {
  auto found = replicas_.find(id);
  if (found == replicas_.end() || found->second.in_flight == 0)
    signal_event(event);
  else
    found->second.waiters.push_back(std::move(event));
}

Replica* Router::pick(Pod& pod, const Way& way, const std::vector<std::uint64_t>& tried, bool& busy,
                      bool& full) {
  Replica* best = nullptr;
  for (Replica* replica : pod.ready) {
    if (std::ranges::find(tried, replica->serial) != tried.end()) continue;
    if (!replica->target(way)) continue;
    if (pod.fills(*replica)) {
      full = true;
      continue;
    }
    if (replica->pending >= kPendingDials) {
      busy = true;
      continue;
    }
    if (!best ||
        std::pair(replica->in_flight, replica->picked) < std::pair(best->in_flight, best->picked))
      best = replica;
  }
  if (best) best->picked = ++picks_;
  return best;
}

void Router::release(Replica& replica) {
  if (!replica.open) --replica.pod.leaving;
  --replica.in_flight;
  if (replica.open) has_room(replica.pod);
  tell_if_drained(replica);
}

void Router::tell_if_drained(Replica& replica) {
  if (replica.in_flight > 0) return;
  for (const Fd& event : std::exchange(replica.waiters, {})) signal_event(event);
  forget_if_done(replica);
}

// ---- connections ----

void Router::accepted(Port& port, Fd client, const sockaddr_storage& address) {
  accept(port.pod, port.hold, port.where, std::move(client), address);
}

void Router::accept(Pod& pod, Hold& hold, const PublishedPort& port, Fd client,
                    const sockaddr_storage& address) {
  bool exhausted = reserve.reached_by(client);
  if (exhausted)
    complain("a connection was refused", pod, port.container,
             "no descriptors are left for clients");
  if (port.protocol == Protocol::kTcp && (exhausted || is_full(pod, &hold, port.container)))
    return reset_socket(client);
  Way way{.port = port.container,
          .client_address = port.client_address,
          .address = port.address,
          .host = port.host,
          .client = address};
  auto owned = std::make_unique<Tunnel>(*this, pod, hold, way, port, std::move(client));
  Tunnel& tunnel = *owned;
  add(std::move(owned));
  if (exhausted) return tunnel.start_refused(Refusal::kExhausted);
  tunnel.start();
}

bool Router::is_full(const Pod& pod, const Hold* hold, std::uint16_t port) {
  if (!hold || std::ssize(hold->waiting) < limits.held_per_port) return false;
  complain("a client was refused: too many are held", pod, port,
           pod.ready.empty() ? "no replica is ready" : "the replicas take no more");
  return true;
}

void Router::accepted_link(const std::string& name, std::uint16_t number, Fd client,
                           const sockaddr_storage& address) {
  auto found = pods_.find(name);
  if (found == pods_.end()) return reset_socket(client);
  Pod& pod = found->second;
  PublishedPort wanted{.container = number};
  auto published = std::ranges::find_if(
      pod.ports, [&](auto& candidate) { return candidate->where.container == number; });
  if (published != pod.ports.end())
    wanted = (*published)->where;
  else if (std::ranges::none_of(pod.ready, [&](const Replica* replica) {
             return replica->offer && replica->target({.port = number});
           }))
    return reset_socket(client);
  wanted.host = 0;  // whichever port of the host it is published on
  accept(pod, pod.calls, wanted, std::move(client), address);
}

void Router::call(std::uint64_t number, const CallTarget& target, CallEvents events) {
  auto found = pods_.find(target.pod);
  if (found == pods_.end() || !found->second.published)
    return events.answered(
        Refused{Refusal::kNotPublished, refusal_text(Refusal::kNotPublished, target.pod)});
  Pod& pod = found->second;
  if (is_full(pod, &pod.calls, target.port))
    return events.answered(Refused{Refusal::kTooMany, refusal(Refusal::kTooMany, pod)});
  Way way{
      .port = target.port, .route = target.route, .client = target.client, .server = target.server};
  for (auto& port : pod.ports)
    if (port->where.container == target.port) way.client_address = port->where.client_address;
  auto owned =
      std::make_unique<Call>(*this, pod, pod.calls, way, target, number, std::move(events));
  Call& call = *owned;
  add(std::move(owned));
  calls_.emplace(number, &call);
  ++pod.traffic.total;
  call.dispatch();
}

void Router::end_call(std::uint64_t number) {
  auto found = calls_.find(number);
  if (found == calls_.end()) return;  // it was refused
  Call* call = found->second;
  calls_.erase(found);
  call->end();
}

void Router::add(std::unique_ptr<Connection> connection) {
  ++connection->pod().users;
  Connection* key = connection.get();
  connections_.emplace(key, std::move(connection));
}

void Router::traffic_changed(Pod& pod) {
  if (leaving()) signal_event(changed_);
  std::int64_t connections = pod.demanding();
  if (connections == 0) pod.idle_since_us = loop.now_us();
  int now = pod.need_of(connections);
  pod.peak = std::max(pod.peak, now);
  if (now > pod.announced && now > std::ssize(pod.ready)) {
    pod.announced = now;
    if (on_need_) on_need_(pod.name);
  }
  pod.announced = std::min(pod.announced, now);
}

Need Router::need(const std::string& name, std::int64_t quiet_us) {
  auto found = pods_.find(name);
  if (found == pods_.end()) return {};
  Pod& pod = found->second;
  Need need;
  std::int64_t at_rest = 0, moved_us = pod.idle_since_us;
  // Those of replicas that leave are not among the demanding already.
  for (Connection* connection : connections_where(
           [&](auto& c) { return &c.pod() == &pod && c.replica() && c.replica()->open; }))
    if (auto since = connection->at_rest_since(); since && *since <= loop.now_us() - quiet_us) {
      ++at_rest;
      moved_us = std::max(moved_us, *since);
    }
  need.now = pod.need_of(pod.demanding() - at_rest);
  need.held = pod.need_of(pod.traffic.held);
  need.peak = std::max(std::exchange(pod.peak, need.now), need.now);
  need.idle_since_us = moved_us;
  pod.announced = 0;
  return need;
}

void Router::forget(Connection& connection) {
  auto found = connections_.find(&connection);
  Pod& pod = connection.pod();
  if (auto* call = dynamic_cast<Call*>(&connection)) calls_.erase(call->number());
  loop.retire(std::move(found->second));
  connections_.erase(found);
  let_go(pod);
}

std::vector<Connection*> Router::connections_where(
    const std::function<bool(const Connection&)>& matches) const {
  std::vector<Connection*> result;
  for (auto& [connection, owned] : connections_)
    if (matches(*connection)) result.push_back(connection);
  return result;
}

PodTraffic Router::traffic(const std::string& name) const {
  auto found = pods_.find(name);
  return found == pods_.end() ? PodTraffic{} : found->second.traffic;
}

std::int64_t Router::in_flight(const std::string& id) const {
  auto found = replicas_.find(id);
  return found == replicas_.end() ? 0 : found->second.in_flight;
}

void Router::complain(std::string_view message, const Pod& pod, std::uint16_t port,
                      std::string_view why) {
  ++unsaid_;
  if (loop.now_us() - complained_us_ < kComplaintEveryUs) return;
  log::warn(message, {{"pod", pod.name},
                      {"port", std::to_string(port)},
                      {"cause", std::string(why)},
                      {"such_events", std::to_string(unsaid_)}});
  complained_us_ = loop.now_us();
  unsaid_ = 0;
}

void Router::close_all() {
  std::vector<std::string> pods;
  for (auto& [name, pod] : pods_) pods.push_back(name);
  for (auto& name : pods) unpublish(name);
  std::vector<std::string> replicas;
  for (auto& [id, replica] : replicas_) replicas.push_back(id);
  for (auto& id : replicas) drop(id);
}

// ---- other processes ----

// Held connections, and requests on connections of the shared port, go on to the replicas.
void Router::hand_over(Fd changed) {
  changed_ = std::move(changed);
  holder = nullptr;
  for (auto& [name, pod] : pods_)
    for (auto& port : pod.ports) port->stop();
  for (Connection* connection : connections_where([](auto&) { return true; }))
    connection->replica_leaves();
}

Elsewhere Router::connections() const {
  Elsewhere all{.total = std::ssize(connections_)};
  for (auto& [name, pod] : pods_)
    if (pod.traffic.held > 0) all.held.emplace(name, pod.traffic.held);
  for (auto& [id, replica] : replicas_)
    if (replica.in_flight > 0)
      all.active.emplace(id, std::pair(replica.pod.name, replica.in_flight));
  return all;
}

void Router::set_elsewhere(int source, Elsewhere connections) {
  Elsewhere& known = elsewhere_[source];
  add_elsewhere(connections, 1);  // first: nothing is to look idle in between
  add_elsewhere(std::exchange(known, std::move(connections)), -1);
}

void Router::add_elsewhere(const Elsewhere& connections, int sign) {
  for (auto& [name, count] : connections.held) {
    Pod& pod = pod_named(name);
    pod.users += sign * count;
    pod.traffic.held += sign * count;
    traffic_changed(pod);
    let_go(pod);
  }
  for (auto& [id, where] : connections.active) {
    auto& [name, count] = where;
    Pod& pod = pod_named(name);
    Replica& replica = replica_named(id, pod);
    pod.traffic.active += sign * count;
    if (!replica.open) pod.leaving += sign * count;
    replica.in_flight += sign * count;
    traffic_changed(pod);
    if (sign < 0 && replica.open) has_room(pod);
    tell_if_drained(replica);
  }
}

// ---- what lives how long ----

Pod& Router::pod_named(const std::string& name) {
  Pod& pod = pods_[name];
  pod.name = name;
  ++pod.users;
  return pod;
}

void Router::let_go(Pod& pod) {
  if (--pod.users == 0 && !pod.published) pods_.erase(std::string(pod.name));
}

void Router::forget_if_done(Replica& replica) {
  if (replica.open || replica.in_flight > 0) return;
  Pod& pod = replica.pod;
  replicas_.erase(std::string(replica.id));
  let_go(pod);
}

}  // namespace thaw::gateway
