#include "gateway/link_listener.h"

#include <arpa/inet.h>
#include <sys/epoll.h>

#include "network/links.h"

namespace thaw::gateway {
namespace {

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
  int cause = accept_waiting(
      listener_, router_.reserve,
      [this](Fd client, const sockaddr_storage& address) { admit(std::move(client), address); });
  if (cause == 0) return;
  router_.loop.rewatch(listener_.get(), *this, 0, 0);
  router_.loop.set_timer(*this, router_.loop.now_us() + kAcceptPauseUs);
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
