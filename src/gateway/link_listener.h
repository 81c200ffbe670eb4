// Connections of replicas to the pods that their own names in `links`. The nft table turns them to
// one listener; what it knows of them is the replica's unique address and where it wanted to go.
#pragma once

#include "gateway/router.h"

namespace thaw::gateway {

class LinkListener final : public EventLoop::Handler {
 public:
  LinkListener(Router& router, Fd listener, Gateway::FindLink find);
  ~LinkListener() override;
  void on_events(int tag, std::uint32_t events) override;
  void on_timer() override;

 private:
  void admit(Fd client, const sockaddr_storage& address);

  Router& router_;
  Fd listener_;
  const Gateway::FindLink find_;
};

}  // namespace thaw::gateway
