#include <sys/epoll.h>

#include <cerrno>
#include <cstring>

#include "gateway/router.h"

namespace thaw::gateway {
Port::Port(Router& router, Pod& pod, PublishedPort where, Fd listener)
    : router(router), pod(pod), where(std::move(where)), listener(std::move(listener)) {}

void Port::listen() { router.loop.watch(listener.get(), *this, 0, EPOLLIN); }

void Port::stop() {
  if (!listener) return;
  router.loop.unwatch(listener.get());
  router.loop.clear_timer(*this);
  stop_listening(listener, where.address, router.holder);
}

void Port::on_events(int, std::uint32_t) {
  int cause = accept_waiting(
      listener, router.reserve,
      [this](Fd client, const sockaddr_storage& address) {
        router.accepted(*this, std::move(client), address);
      },
      [this] {
        router.complain("a connection was reset", pod, where.container, "no descriptors are left");
      });
  if (cause == 0) return;
  if (cause == ENOBUFS || cause == ENOMEM)
    router.complain("no connection can be accepted", pod, where.container, std::strerror(cause));
  router.loop.rewatch(listener.get(), *this, 0, 0);
  router.loop.set_timer(*this, router.loop.now_us() + kAcceptPauseUs);
}

void Port::on_timer() { router.loop.rewatch(listener.get(), *this, 0, EPOLLIN); }

}  // namespace thaw::gateway
