// Connections of replicas to the pods that their own names in `links`. The nft table turns them to
// one listener; what it knows of them is the replica's unique address and where it wanted to go.
#pragma once

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>

#include "gateway/router.h"

namespace thaw::gateway {

class LinkListener final : public EventLoop::Handler {
 public:
  LinkListener(Router& router, Fd listener, Gateway::FindLink find);
  ~LinkListener() override;
  void on_events(int tag, std::uint32_t events) override;
  void on_timer() override;

 private:
  struct Caller {
    Fd socket;
    sockaddr_storage from{};
    sockaddr_in wanted{};
  };
  void admit(Fd client, const sockaddr_storage& address);
  // On the thread that may wait for the database.
  void look_up();
  void answer(const std::shared_ptr<Caller>& caller);

  Router& router_;
  Fd listener_;
  const Gateway::FindLink find_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::shared_ptr<Caller>> callers_;  // guarded by mutex_
  bool closing_ = false;                         // guarded by mutex_
  std::thread thread_;
};

}  // namespace thaw::gateway
