// One client's connection: held until a replica is ready, dialled, relayed, ended. Loop thread
// only; owned by the Router.
#pragma once

#include <cstdint>
#include <list>
#include <vector>

#include "gateway/event_loop.h"
#include "gateway/relay.h"

namespace thaw::gateway {

struct Pod;
struct Replica;
class Port;
class Router;

class Connection final : public EventLoop::Handler {
 public:
  enum class End { kClose, kReset };

  Connection(Router& router, Port& port, Fd client);

  void start();     // watches the client, then dials or holds
  void dispatch();  // a replica may be ready: tries to reach one
  void replica_dropped();
  void port_closed();  // resets it when it is held
  void finish(End how);

  const Port* port() const { return port_; }
  const Replica* replica() const { return replica_; }
  Pod& pod() const { return pod_; }

  void on_events(int tag, std::uint32_t events) override;
  void on_timer() override;
  void on_turn() override;

 private:
  enum class Phase { kNew, kHeld, kDialing, kRelaying, kDone };
  static constexpr int kClientTag = 0, kReplicaTag = 1;

  template <typename Work>
  void guarded(const Work& work);
  void hold();
  void leave_hold();
  void dial();
  bool attempt_address();
  void attempt_failed(int cause);
  void none_reached();
  void release_replica();
  void close_attempt();
  bool client_left() const;
  void relay();
  void pump();

  Router& router_;
  Pod& pod_;
  Port* port_;  // nullptr once it is closed
  const std::uint16_t container_port_;
  Phase phase_ = Phase::kNew;
  Relay relay_;
  std::int64_t accepted_us_;
  bool lingering_ = false;      // the replica ended its stream, the client did not
  std::int64_t active_us_ = 0;  // when bytes moved last

  Replica* replica_ = nullptr;  // counted in its in_flight
  std::list<Connection*>::iterator held_at_{};
  std::int64_t dialing_since_us_ = 0;  // 0: no attempt yet since a replica was ready
  std::int64_t backoff_us_ = 0;  // held only for a moment, because every ready replica refused
  int first_address_ = 0, addresses_tried_ = 0;
  int last_error_ = 0;
  std::vector<std::uint64_t> tried_;  // replicas of this round
};

}  // namespace thaw::gateway
