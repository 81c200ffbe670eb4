#include "gateway/link_listener.h"

#include <arpa/inet.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <cerrno>

#include "network/links.h"

namespace thaw::gateway {
namespace {

constexpr int kAcceptsPerEvent = 64;
constexpr std::int64_t kPauseUs = 100'000;

std::string text_of(const in_addr& address) {
  char text[INET_ADDRSTRLEN] = "";
  ::inet_ntop(AF_INET, &address, text, sizeof text);
  return text;
}

}  // namespace

LinkListener::LinkListener(Router& router, Fd listener, Gateway::FindLink find)
    : router_(router), listener_(std::move(listener)), find_(std::move(find)) {
  router_.loop.watch(listener_.get(), *this, 0, EPOLLIN);
}

LinkListener::~LinkListener() {
  router_.loop.unwatch(listener_.get());
  router_.loop.clear_timer(*this);
}

void LinkListener::on_events(int, std::uint32_t) {
  for (int i = 0; i < kAcceptsPerEvent; ++i) {
    sockaddr_storage address{};
    socklen_t size = sizeof address;
    Fd client(::accept4(listener_.get(), reinterpret_cast<sockaddr*>(&address), &size,
                        SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (client) {
      admit(std::move(client), address);
      continue;
    }
    int cause = errno;
    if (cause == EMFILE || cause == ENFILE) cause = router_.reserve.shed(listener_);
    if (cause == EAGAIN) return;
    if (cause == EMFILE || cause == ENFILE || cause == ENOBUFS || cause == ENOMEM) {
      // What cannot be accepted now would keep the listener readable and the thread spinning.
      router_.loop.rewatch(listener_.get(), *this, 0, 0);
      router_.loop.set_timer(*this, router_.loop.now_us() + kPauseUs);
      return;
    }
  }
}

void LinkListener::on_timer() { router_.loop.rewatch(listener_.get(), *this, 0, EPOLLIN); }

void LinkListener::admit(Fd client, const sockaddr_storage& address) {
  sockaddr_in wanted{};
  if (!network::original_destination(client.get(), wanted)) return reset_socket(client);
  std::string from = text_of(reinterpret_cast<const sockaddr_in&>(address).sin_addr);
  auto pod = find_(from, text_of(wanted.sin_addr));
  if (!pod) return reset_socket(client);
  router_.accepted_link(*pod, ntohs(wanted.sin_port), std::move(client), address);
}

}  // namespace thaw::gateway
