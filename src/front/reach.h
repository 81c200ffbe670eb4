// A coroutine's way to a pod: asks the gateway for a connection and waits for the answer, or until
// it is told that the client has left. While it lives, the replica counts it as in flight.
#pragma once

#include "front/stream.h"
#include "gateway/gateway.h"

#include <boost/asio/io_context.hpp>
#include <functional>
#include <optional>

namespace thaw::front {

class Reach {
 public:
  Reach(gateway::Gateway& gateway, asio::io_context& io) : gateway_(gateway), io_(io) {}
  ~Reach();
  Reach(const Reach&) = delete;
  Reach& operator=(const Reach&) = delete;

  enum class End { kReached, kRefused, kClientLeft };
  // Afterwards upstream() is connected, or why() is set. `on_dropped` is called when the replica
  // goes.
  Task<End> connect(gateway::CallTarget target, std::function<void()> on_dropped);
  void client_left();  // connect ends
  Socket& upstream() { return *upstream_; }
  const gateway::Refused& why() const { return why_; }
  const std::string& replica() const { return replica_; }
  bool held() const { return held_; }
  bool restored() const { return restored_; }

 private:
  struct Pending;
  gateway::Gateway& gateway_;
  asio::io_context& io_;
  std::shared_ptr<Pending> pending_;
  std::uint64_t number_ = 0;
  std::optional<Socket> upstream_;
  gateway::Refused why_{gateway::Refusal::kFailed, "the pod cannot be reached"};
  std::string replica_;
  bool held_ = false, restored_ = false;
};

}  // namespace thaw::front
