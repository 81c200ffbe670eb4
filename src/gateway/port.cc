#include <sys/epoll.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>

#include "gateway/router.h"

namespace thaw::gateway {
namespace {

constexpr int kAcceptsPerEvent =
    64;  // then the connections there are have their turn; the listener is level-triggered
constexpr std::int64_t kPauseUs = 100'000;

}  // namespace

Port::Port(Router& router, Pod& pod, PublishedPort where, Fd listener)
    : router(router), pod(pod), where(std::move(where)), listener(std::move(listener)) {}

void Port::listen() { router.loop.watch(listener.get(), *this, 0, EPOLLIN); }

void Port::stop() {
  if (!listener) return;
  router.loop.unwatch(listener.get());
  router.loop.clear_timer(*this);
  listener.reset();
}

void Port::on_events(int, std::uint32_t) {
  for (int i = 0; i < kAcceptsPerEvent && listener; ++i) {
    sockaddr_storage address;
    socklen_t size = sizeof address;
    Fd client(::accept4(listener.get(), reinterpret_cast<sockaddr*>(&address), &size,
                        SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (client) {
      router.accepted(*this, std::move(client), address);
      continue;
    }
    switch (errno) {
      case EAGAIN:
        return;
      case EMFILE:
      case ENFILE:
        switch (router.reserve.shed(listener)) {
          case 0:
            router.complain("a connection was reset", pod, where.container,
                            "no descriptors are left");
            continue;
          case EAGAIN:
            return;
          default:
            return pause();
        }
      case ENOBUFS:
      case ENOMEM:
        router.complain("no connection can be accepted", pod, where.container,
                        std::strerror(errno));
        return pause();
      default:
        break;  // of that one client (accept(2)): the next may be well
    }
  }
}

// What cannot be accepted now would keep the listener readable and the thread spinning.
void Port::pause() {
  router.loop.rewatch(listener.get(), *this, 0, 0);
  router.loop.set_timer(*this, router.loop.now_us() + kPauseUs);
}

void Port::on_timer() { router.loop.rewatch(listener.get(), *this, 0, EPOLLIN); }

}  // namespace thaw::gateway
