#include "gateway/link_listener.h"

#include <arpa/inet.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>

#include "network/links.h"
#include "util/error.h"
#include "util/log.h"

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
  thread_ = std::thread([this] { look_up(); });
}

LinkListener::~LinkListener() {
  router_.loop.unwatch(listener_.get());
  router_.loop.clear_timer(*this);
  {
    std::lock_guard lock(mutex_);
    closing_ = true;
  }
  changed_.notify_all();
  thread_.join();
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
  auto caller = std::make_shared<Caller>(Caller{std::move(client), address, {}});
  if (!network::original_destination(caller->socket.get(), caller->wanted))
    return reset_socket(caller->socket);
  {
    std::lock_guard lock(mutex_);
    callers_.push_back(std::move(caller));
  }
  changed_.notify_one();
}

void LinkListener::look_up() {
  sigset_t all;
  sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, nullptr);
  ::pthread_setname_np(::pthread_self(), "links");
  for (;;) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return closing_ || !callers_.empty(); });
    if (closing_) return;
    auto caller = std::move(callers_.front());
    callers_.pop_front();
    lock.unlock();
    answer(caller);
  }
}

void LinkListener::answer(const std::shared_ptr<Caller>& caller) {
  std::optional<std::string> pod;
  try {
    pod = find_(text_of(reinterpret_cast<const sockaddr_in&>(caller->from).sin_addr),
                text_of(caller->wanted.sin_addr));
  } catch (const std::exception& error) {
    log::warn("a link could not be looked up", {{"error", describe(error)}});
  }
  if (!pod) return reset_socket(caller->socket);
  router_.loop.post([&router = router_, caller, pod = std::move(*pod)] {
    router.accepted_link(pod, ntohs(caller->wanted.sin_port), std::move(caller->socket),
                         caller->from);
  });
}

}  // namespace thaw::gateway
