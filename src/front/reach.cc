#include "front/reach.h"

#include <sys/socket.h>

#include <boost/asio/post.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>

namespace thaw::front {

// Of the front's thread; the gateway's thread only hands over a reference to it.
struct Reach::Pending {
  explicit Pending(asio::io_context& io) : settled(io, asio::steady_timer::time_point::max()) {}
  asio::steady_timer settled;  // never rings: cancelling it wakes whoever waits
  std::optional<gateway::CallAnswer> answer;
  bool client_left = false, over = false;
  std::function<void()> on_dropped;
};

Reach::~Reach() {
  if (!pending_) return;
  pending_->over = true;
  error_code ignored;
  if (upstream_) upstream_->close(ignored);
  gateway_.end_call(number_);
}

void Reach::client_left() {
  if (!pending_) return;
  pending_->client_left = true;
  pending_->settled.cancel();
}

Task<Reach::End> Reach::connect(gateway::CallTarget target, std::function<void()> on_dropped) {
  pending_ = std::make_shared<Pending>(io_);
  pending_->on_dropped = std::move(on_dropped);
  auto pending = pending_;
  gateway::CallEvents events;
  events.answered = [pending, &io = io_](gateway::CallAnswer answer) {
    asio::post(io, [pending, answer = std::move(answer)]() mutable {
      pending->answer = std::move(answer);
      pending->settled.cancel();
    });
  };
  events.dropped = [pending, &io = io_] {
    asio::post(io, [pending] {
      if (!pending->over && pending->on_dropped) pending->on_dropped();
    });
  };
  number_ = gateway_.call(std::move(target), std::move(events));

  while (!pending->answer && !pending->client_left) {
    error_code cancelled;
    co_await pending->settled.async_wait(asio::redirect_error(asio::use_awaitable, cancelled));
  }
  error_code ignored;
  if (!pending->answer) co_return End::kClientLeft;
  if (auto* why = std::get_if<gateway::Refused>(&*pending->answer)) {
    why_ = *why;
    co_return End::kRefused;
  }
  auto& reached = std::get<gateway::Reached>(*pending->answer);
  replica_ = reached.replica;
  held_ = reached.held;
  restored_ = reached.restored;
  sockaddr_storage peer{};
  socklen_t size = sizeof peer;
  ::getpeername(reached.socket.get(), reinterpret_cast<sockaddr*>(&peer), &size);
  upstream_.emplace(io_);
  upstream_->assign(peer.ss_family == AF_INET6 ? asio::ip::tcp::v6() : asio::ip::tcp::v4(),
                    reached.socket.release(), ignored);
  if (ignored) co_return End::kRefused;
  upstream_->native_non_blocking(true, ignored);
  co_return End::kReached;
}

}  // namespace thaw::front
