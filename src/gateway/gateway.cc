#include "gateway/gateway.h"

#include <atomic>
#include <future>
#include <thread>

#include "gateway/link_listener.h"
#include "gateway/router.h"

namespace thaw::gateway {

struct Gateway::Impl {
  Impl(Limits limits, OnNeed on_need, Holder* holder)
      : limits(limits), on_need(std::move(on_need)), holder(holder) {}

  EventLoop loop;
  const Limits limits;
  const OnNeed on_need;
  Holder* const holder;
  std::unique_ptr<Router> router;  // made, used and destroyed on the thread
  std::unique_ptr<LinkListener> links;
  std::thread thread;
  std::atomic<std::uint64_t> calls{0};
};

Gateway::Gateway(Limits limits, OnNeed on_need, Holder* holder)
    : impl_(std::make_unique<Impl>(limits, std::move(on_need), holder)) {
  std::promise<void> started;
  impl_->thread = std::thread([this, &started] {
    try {
      impl_->router =
          std::make_unique<Router>(impl_->loop, impl_->limits, impl_->on_need, impl_->holder);
    } catch (...) {
      started.set_exception(std::current_exception());
      return;
    }
    started.set_value();
    impl_->loop.run();
    impl_->links.reset();
    impl_->router.reset();
  });
  try {
    started.get_future().get();
  } catch (...) {
    impl_->thread.join();
    throw;
  }
}

Gateway::~Gateway() {
  impl_->loop.call([&] { impl_->router->close_all(); });
  impl_->loop.stop();
  impl_->thread.join();
}

std::vector<PublishedPort> Gateway::publish(const std::string& pod,
                                            const std::vector<PublishedPort>& ports, Share share) {
  std::vector<PublishedPort> chosen;
  impl_->loop.call([&] { chosen = impl_->router->publish(pod, ports, share); });
  return chosen;
}

void Gateway::unpublish(const std::string& pod) {
  impl_->loop.call([&] { impl_->router->unpublish(pod); });
}

void Gateway::set_trouble(const std::string& pod, const std::string& why) {
  impl_->loop.call([&] { impl_->router->set_trouble(pod, why); });
}

void Gateway::open_gate(const std::string& pod, const std::string& replica, const Fd& netns,
                        std::optional<Offer> offer) {
  Fd own = netns.duplicate();
  impl_->loop.call(
      [&] { impl_->router->open_gate(pod, replica, std::move(own), std::move(offer)); });
}

bool Gateway::gate_is_open(const std::string& replica) const {
  bool open = false;
  impl_->loop.call([&] { open = impl_->router->gate_is_open(replica); });
  return open;
}

void Gateway::close_gate(const std::string& pod, const std::string& replica) {
  impl_->loop.call([&] { impl_->router->close_gate(pod, replica); });
}

Fd Gateway::drained(const std::string& replica) {
  Fd event = Fd::event();
  impl_->loop.call([&] { impl_->router->tell_drained(replica, event.duplicate()); });
  return event;
}

void Gateway::drop(const std::string& replica) {
  impl_->loop.call([&] { impl_->router->drop(replica); });
}

void Gateway::end_quiet(const std::string& replica, std::int64_t quiet_us) {
  impl_->loop.call([&] { impl_->router->end_quiet(replica, quiet_us); });
}

void Gateway::listen_for_links(const std::string& address, std::uint16_t port, FindLink find) {
  impl_->loop.call([&] {
    impl_->links = std::make_unique<LinkListener>(
        *impl_->router, listen_on(address, port, impl_->holder), std::move(find));
  });
}

std::uint64_t Gateway::call(CallTarget target, CallEvents events) {
  std::uint64_t number = ++impl_->calls;
  impl_->loop.post(
      [this, number, target = std::move(target), events = std::move(events)]() mutable {
        impl_->router->call(number, target, std::move(events));
      });
  return number;
}

void Gateway::end_call(std::uint64_t number) {
  impl_->loop.post([this, number] { impl_->router->end_call(number); });
}

PodTraffic Gateway::traffic(const std::string& pod) const {
  PodTraffic result;
  impl_->loop.call([&] { result = impl_->router->traffic(pod); });
  return result;
}

Need Gateway::need(const std::string& pod, std::int64_t quiet_us) {
  Need result;
  impl_->loop.call([&] { result = impl_->router->need(pod, quiet_us); });
  return result;
}

std::int64_t Gateway::in_flight(const std::string& replica) const {
  std::int64_t result = 0;
  impl_->loop.call([&] { result = impl_->router->in_flight(replica); });
  return result;
}

void Gateway::hand_over(const Fd& changed) {
  Fd own = changed.duplicate();
  impl_->loop.call([&] {
    impl_->links.reset();
    impl_->router->hand_over(std::move(own));
  });
}

Elsewhere Gateway::connections() const {
  Elsewhere result;
  impl_->loop.call([&] { result = impl_->router->connections(); });
  return result;
}

void Gateway::set_elsewhere(int source, Elsewhere connections) {
  impl_->loop.call([&] { impl_->router->set_elsewhere(source, std::move(connections)); });
}

}  // namespace thaw::gateway
