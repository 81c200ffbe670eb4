#include "gateway/call.h"

#include "gateway/router.h"

namespace thaw::gateway {

Call::Call(Router& router, Pod& pod, Hold& hold, Way way, const CallTarget& target,
           std::uint64_t number, CallEvents events)
    : Connection(router, pod, hold, way),
      bytes_(target.bytes),
      moved_us_(target.moved_us),
      number_(number),
      events_(std::move(events)) {}

void Call::connected(std::uint32_t) {
  router_.loop.unwatch(upstream_.get());
  std::exchange(events_.answered,
                {})(Reached{std::move(upstream_), replica()->id, was_held(), replica()->restored});
}

std::optional<std::int64_t> Call::at_rest_since() const {
  std::int64_t moved_us = moved_us_ ? moved_us_->load() : 0;
  return moved_us ? std::optional(moved_us) : std::nullopt;
}

void Call::refuse(Refusal why) {
  auto answered = std::exchange(events_.answered, {});
  Refused refused{why, Router::refusal(why, pod())};
  finish();
  if (answered) answered(std::move(refused));
}

void Call::abort() { refuse(Refusal::kFailed); }

// It ends when the caller has closed its socket and says so.
void Call::dropped() {
  if (events_.dropped) events_.dropped();
}

void Call::end() { finish(); }

}  // namespace thaw::gateway
