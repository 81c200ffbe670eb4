// A client of a published port and its replica: bytes move with splice(2). A client that cannot be
// served is reset; on an HTTP port it gets a 503 that says why.
#pragma once

#include "gateway/connection.h"
#include "gateway/relay.h"

namespace thaw::gateway {

class Tunnel final : public Connection {
 public:
  Tunnel(Router& router, Pod& pod, Hold& hold, Way way, const PublishedPort& port, Fd client);
  ~Tunnel() override;

  void start();  // watches the client, and dials or holds when it is the replica's turn
  void start_refused(Refusal why);
  void replica_leaves() override;
  std::optional<std::int64_t> at_rest_since() const override;

 private:
  void on_client(std::uint32_t events) override;
  bool client_left() override;
  std::int64_t waiting_bytes() override;
  sockaddr_storage server_address() const override;
  void connected(std::uint32_t events) override;
  void on_upstream(std::uint32_t events) override;
  void on_own_timer() override;
  void on_own_turn() override;
  void refuse(Refusal why) override;
  void abort() override;
  void dropped() override;
  void look_again() override;
  void end_at_rest() override { end(End::kClose); }

  enum class End { kClose, kReset };
  void end(End how);
  void pump();
  void begin();
  bool answer_is_over() const;
  std::int64_t over_at() const;
  void look_later();
  bool speaks_http(std::string& method) const;
  void hear_out();

  const Protocol protocol_;
  Relay relay_;
  bool watched_ = false;
  const std::int64_t idle_us_;  // 0: no limit
  bool half_closed_ = false;
  bool asked_kernel_ = false;   // whether a replica that ended its stream is there at all
  std::int64_t active_us_ = 0;  // when bytes moved last
  bool leaving_ = false;        // the replica is to leave
  bool counted_ = false;        // among those that are being told why
  std::size_t heard_ = 0;       // bytes thrown away after the refusal
};

}  // namespace thaw::gateway
