// Pods, their published ports, their replicas' gates, and which connection goes where. Loop thread
// only; the Gateway posts to it.
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "gateway/call.h"
#include "gateway/connection.h"
#include "gateway/dial.h"
#include "gateway/event_loop.h"
#include "gateway/gateway.h"
#include "gateway/listener.h"
#include "gateway/relay.h"

namespace thaw::gateway {

struct Pod;
class Router;

// A listening port of a pod and the clients that wait behind it.
class Port final : public EventLoop::Handler {
 public:
  Port(Router& router, Pod& pod, PublishedPort where, Fd listener);

  void listen();  // starts watching the listener
  void stop();    // closes it
  void on_events(int tag, std::uint32_t events) override;
  void on_timer() override;

  Router& router;
  Pod& pod;
  PublishedPort where;
  Fd listener;
  Hold hold;

 private:
};

struct Replica {
  std::string id;
  Pod& pod;
  std::uint64_t serial;  // of this opening: a connection remembers whom it tried
  Namespace netns;
  bool open = false;
  std::int64_t in_flight = 0;
  int pending = 0;                           // connections that its backlog has no place for yet
  std::uint64_t picked = 0;                  // when last: equals take turns
  std::map<std::uint32_t, int> answered_at;  // container port -> the address that accepted last
  bool admits_clients = false;               // with their own addresses
  bool restored = false;                     // from a checkpoint
  std::optional<Offer> offer;
  std::vector<Fd> waiters;  // events of those who wait until nothing is in flight

  // Where a connection goes in this replica; nullopt: it does not offer that.
  struct Target {
    std::uint16_t port;
    ClientAddress client_address;
  };
  std::optional<Target> target(const Way& way) const;
};

struct Pod {
  std::string name;
  std::vector<std::unique_ptr<Port>> ports;
  Hold calls;                   // of other parts of the daemon
  bool published = false;       // from publish to unpublish
  std::vector<Replica*> ready;  // with the gate open
  std::string trouble;          // why there is none
  PodTraffic traffic;
  std::int64_t leaving = 0;  // of the active ones, with replicas that only finish what they have
  Share share;
  int announced = 0;  // the need that was told last
  int peak = 0;
  std::int64_t idle_since_us = 0;
  // What a replica that leaves has calls for no other one.
  std::int64_t demanding() const { return traffic.held + traffic.active - leaving; }
  int need_of(std::int64_t connections) const {
    return static_cast<int>((connections + share.concurrency - 1) / share.concurrency);
  }
  bool fills(const Replica& replica) const {
    return share.hard && replica.in_flight >= share.concurrency;
  }
  std::int64_t users =
      0;  // connections, replicas, functions at work: it lives as long as anything refers to it
};

class Router final : public EventLoop::Handler {
 public:
  // `holder`: of listeners; may be none.
  Router(EventLoop& loop, Limits limits, Gateway::OnNeed on_need, Holder* holder)
      : loop(loop), limits(limits), holder(holder), on_need_(std::move(on_need)) {}

  std::vector<PublishedPort> publish(const std::string& pod,
                                     const std::vector<PublishedPort>& ports, Share share);
  void set_trouble(const std::string& pod, const std::string& why);
  static std::string refusal(Refusal why, const Pod& pod);
  void unpublish(const std::string& pod);
  void open_gate(const std::string& pod, const std::string& replica, Fd netns,
                 std::optional<Offer> offer);
  bool gate_is_open(const std::string& replica) const;
  void close_gate(const std::string& pod, const std::string& replica);
  void drop(const std::string& replica);
  void end_quiet(const std::string& replica, std::int64_t quiet_us);
  void tell_drained(const std::string& replica, Fd event);
  void call(std::uint64_t number, const CallTarget& target, CallEvents events);
  void end_call(std::uint64_t number);
  PodTraffic traffic(const std::string& pod) const;
  Need need(const std::string& pod, std::int64_t quiet_us);
  std::int64_t in_flight(const std::string& replica) const;
  void close_all();
  void on_events(int, std::uint32_t) override {}
  void on_turn() override;  // pods whose replicas have room again
  void hand_over(Fd changed);
  bool leaving() const { return static_cast<bool>(changed_); }
  Elsewhere connections() const;
  void set_elsewhere(int source, Elsewhere connections);

  // For ports and connections.
  void accepted(Port& port, Fd client, const sockaddr_storage& address);
  // From a replica that may; reset when the pod has no such port.
  void accepted_link(const std::string& pod, std::uint16_t port, Fd client,
                     const sockaddr_storage& address);
  // The ready replica with the fewest connections in flight that offers what is wanted and is not
  // among `tried`; nullptr when there is none. `busy` is set when one was left out because enough
  // wait for its backlog, `full` when one has as many as it may: it tells when it has room.
  Replica* pick(Pod& pod, const Way& way, const std::vector<std::uint64_t>& tried, bool& busy,
                bool& full);
  // As many are held as may be. It complains.
  bool is_full(const Pod& pod, const Hold* hold, std::uint16_t port);
  void release(Replica& replica);  // one connection less
  void traffic_changed(Pod& pod);  // a connection came, moved on or went
  void forget(Connection& connection);
  // A warning, one a second at most: a flood of failing clients is not to become a flood of lines.
  void complain(std::string_view message, const Pod& pod, std::uint16_t port, std::string_view why);

  EventLoop& loop;
  const Limits limits;
  Holder* holder;
  DescriptorReserve reserve;
  Dialer dialer{reserve};
  RelayTools tools{reserve};
  int being_refused = 0;  // clients that are being told why

 private:
  Pod& pod_named(const std::string& name);
  void let_go(Pod& pod);  // one user less
  void has_room(const Pod& pod);
  void forget_if_done(Replica& replica);
  void close_gate(Replica& replica);
  void close_port(std::unique_ptr<Port> port);
  void close_hold(const Hold& hold);
  void add(std::unique_ptr<Connection> connection);
  void accept(Pod& pod, Hold& hold, const PublishedPort& port, Fd client,
              const sockaddr_storage& address);
  std::vector<Connection*> connections_where(
      const std::function<bool(const Connection&)>& matches) const;
  Fd listen_for(const PublishedPort& port) const;
  Replica& replica_named(const std::string& id, Pod& pod);
  void add_elsewhere(const Elsewhere& connections, int sign);
  void tell_if_drained(Replica& replica);

  static std::vector<Connection*> held(const Pod& pod);

  const Gateway::OnNeed on_need_;
  std::set<std::string> with_room_;
  std::map<std::string, Pod> pods_;
  std::map<std::string, Replica> replicas_;
  std::unordered_map<Connection*, std::unique_ptr<Connection>> connections_;
  std::unordered_map<std::uint64_t, Call*> calls_;
  std::map<int, Elsewhere> elsewhere_;  // by source
  Fd changed_;                          // once it has handed over: signalled with each change
  std::uint64_t serial_ = 0, picks_ = 0;
  std::int64_t complained_us_ = 0, unsaid_ = 0;
};

}  // namespace thaw::gateway
