// A connection that another part of the daemon asked for (the HTTP front): reached like any other,
// then handed over, and counted as in flight until it is given back.
#pragma once

#include "gateway/connection.h"

namespace thaw::gateway {

class Call final : public Connection {
 public:
  Call(Router& router, Pod& pod, Hold& hold, Way way, const CallTarget& target,
       std::uint64_t number, CallEvents events);
  std::uint64_t number() const { return number_; }
  void end();  // the caller does not want it any more
  std::optional<std::int64_t> at_rest_since() const override;

 private:
  void on_client(std::uint32_t) override {}
  bool client_left() override { return false; }
  std::int64_t waiting_bytes() override { return bytes_; }
  void connected(std::uint32_t events) override;
  void refuse(Refusal why) override;
  void abort() override;
  void dropped() override;
  void end_at_rest() override { dropped(); }

  const std::int64_t bytes_;
  const std::shared_ptr<const std::atomic<std::int64_t>> moved_us_;
  const std::uint64_t number_;
  CallEvents events_;
};

}  // namespace thaw::gateway
