// Somebody's way to a replica: held until one is ready, dialled, with a replica, ended. Kinds
// differ in what stands at the near end: Tunnel (a client's socket) and Call (another part of the
// daemon). Loop thread only; owned by the Router.
#pragma once

#include <netinet/in.h>
#include <sys/epoll.h>

#include <cstdint>
#include <exception>
#include <list>
#include <optional>
#include <string>
#include <vector>

#include "gateway/event_loop.h"
#include "gateway/gateway.h"

namespace thaw::gateway {

struct Pod;
struct Replica;
class Connection;
class Router;

// Connections that wait, oldest first, and what they have sent meanwhile.
struct Hold {
  std::list<Connection*> waiting;
  std::int64_t bytes = 0;
};

// Where to, and how the replica is to see it.
struct Way {
  // Of the container, and how it sees its client, by the pod's newest version; a replica of another
  // one may offer the same elsewhere (Replica::target).
  std::uint16_t port = 0;
  ClientAddress client_address = ClientAddress::kGateway;
  std::string route;    // of a call
  std::string address;  // of the published port; with host 0 it came another way
  std::uint16_t host = 0;
  sockaddr_storage client{}, server{};  // the client's connection, `server` of a call; AF_UNSPEC:
                                        // unknown
};

class Connection : public EventLoop::Handler {
 public:
  // `hold` may end before the connection: hold_closed says so.
  Connection(Router& router, Pod& pod, Hold& hold, Way way);
  ~Connection() override;

  void dispatch();  // a replica may be ready: tries to reach one
  void replica_dropped();
  virtual void replica_leaves() {}  // no new connections go to it
  void hold_closed();               // refuses it when it is held, or ends it
  // When a byte moved last; nullopt unless it is with a replica and nothing is asked of that.
  virtual std::optional<std::int64_t> at_rest_since() const { return std::nullopt; }
  void end_if_at_rest(std::int64_t since_us);  // since then or longer

  const Hold* hold() const { return hold_; }
  std::int64_t accepted_us() const { return accepted_us_; }
  const Replica* replica() const { return replica_; }
  Pod& pod() const { return pod_; }
  bool was_held() const { return was_held_; }  // while no replica was ready

  void on_events(int tag, std::uint32_t events) final;
  void on_timer() final;
  void on_turn() final;

 protected:
  enum class Phase { kNew, kHeld, kDialing, kConnected, kRefused, kDone };
  static constexpr std::uint32_t kEvents = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;
  static constexpr int kClientTag = 0, kReplicaTag = 1;

  template <typename Work>
  void guarded(const Work& work) {
    try {
      work();
    } catch (const std::exception& error) {
      failed(error);
    }
  }
  // Gives back the replica and leaves every list; the object lives until the loop's batch is over.
  void finish();

  // --- what the kinds do ---
  virtual void on_client(std::uint32_t events) = 0;   // events of the near end, in every phase
  virtual bool client_left() = 0;                     // asked after such, until it is connected
  virtual std::int64_t waiting_bytes() { return 0; }  // that it has sent and nobody has read
  virtual sockaddr_storage server_address() const { return way_.server; }
  virtual void connected(std::uint32_t events) = 0;  // upstream_ is watched, with events so far
  virtual void on_upstream(std::uint32_t) {}         // while connected
  virtual void on_own_timer() {}                     // while connected or refused
  virtual void on_own_turn() {}                      // while connected
  virtual void refuse(Refusal why) = 0;              // tells it, and finishes it
  virtual void abort() = 0;                          // the other end must see that it broke
  virtual void dropped() = 0;                        // the replica goes while it is connected
  virtual void look_again() {}                       // what has come meanwhile may be unread
  virtual void end_at_rest() = 0;

  Router& router_;
  Pod& pod_;
  const Way way_;
  Phase phase_ = Phase::kNew;
  Fd upstream_;

 private:
  void failed(const std::exception& error);
  void put_on_hold();
  void leave_hold();
  void count_bytes();
  void give_up(Refusal why);
  void dial();
  bool attempt_address();
  void attempt_failed(int cause);
  void reached(std::uint32_t events);
  void none_reached();
  void release_replica();
  void close_attempt();
  void settle_attempt();
  bool may_be_starting() const;

  Hold* hold_;  // nullptr once it is closed
  const std::int64_t accepted_us_;
  Replica* replica_ = nullptr;  // counted in its in_flight
  std::list<Connection*>::iterator held_at_{};
  bool wants_replica_ = false;  // or has had one
  bool was_held_ = false;
  std::int64_t held_bytes_ = 0;        // its part of hold_->bytes
  std::int64_t dialing_since_us_ = 0;  // 0: no attempt yet since a replica was ready
  std::int64_t backoff_us_ = 0;  // held only for a moment, because every ready replica refused
  std::uint32_t address_key(std::uint16_t port, ClientAddress how) const;
  bool offered() const;

  int first_address_ = 0, addresses_tried_ = 0;
  int last_error_ = 0;
  bool pending_ = false;    // counted in the replica's pending
  std::uint16_t port_ = 0;  // of the replica in hand
  ClientAddress client_address_ = ClientAddress::kGateway;
  bool busy_ = false;                 // a replica of this round takes no more for now
  bool full_ = false;                 // one has as many as it may: there will be room
  std::vector<std::uint64_t> tried_;  // replicas of this round
};

}  // namespace thaw::gateway
