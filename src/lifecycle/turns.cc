#include "lifecycle/turns.h"

namespace thaw::lifecycle {

Turns::Turn Turns::wait(bool urgent) {
  std::unique_lock lock(mutex_);
  std::pair<bool, std::uint64_t> place{!urgent, next_++};
  queue_.insert(place);
  changed_.wait(lock, [&] { return free_ > 0 && *queue_.begin() == place; });
  queue_.erase(place);
  --free_;
  // Another place may be free for the one that is first now.
  changed_.notify_all();
  return Turn(*this);
}

void Turns::give_back() {
  std::scoped_lock lock(mutex_);
  ++free_;
  changed_.notify_all();
}

}  // namespace thaw::lifecycle
