#include "front/departures.h"

#include <sys/epoll.h>

#include "util/error.h"

namespace thaw::front {

Departures::Departures(asio::io_context& io)
    : epoll_(check(::epoll_create1(EPOLL_CLOEXEC), "make epoll descriptor")),
      readable_(io, epoll_.duplicate().release()) {
  wait();
}

void Departures::close() {
  error_code ignored;
  readable_.cancel(ignored);
}

Departures::Watch::Watch(Departures& owner, int fd, std::function<void()> left)
    : owner_(owner), fd_(fd), number_(++owner.last_) {
  // By number, not by descriptor: what is reported late is of nobody then.
  epoll_event event{.events = EPOLLRDHUP | EPOLLONESHOT, .data = {.u64 = number_}};
  check(::epoll_ctl(owner_.epoll_.get(), EPOLL_CTL_ADD, fd_, &event), "watch", "client");
  owner_.watched_.emplace(number_, std::move(left));
}

Departures::Watch::~Watch() {
  owner_.watched_.erase(number_);
  ::epoll_ctl(owner_.epoll_.get(), EPOLL_CTL_DEL, fd_, nullptr);
}

void Departures::wait() {
  readable_.async_wait(asio::posix::stream_descriptor::wait_read, [this](error_code error) {
    if (error) return;
    tell();
    wait();
  });
}

void Departures::tell() {
  epoll_event events[64];
  int count = ::epoll_wait(epoll_.get(), events, 64, 0);
  for (int i = 0; i < count; ++i) {
    auto found = watched_.find(events[i].data.u64);
    if (found == watched_.end()) continue;
    auto left = found->second;  // it may end the watch
    left();
  }
}

}  // namespace thaw::front
