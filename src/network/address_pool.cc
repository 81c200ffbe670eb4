#include "network/address_pool.h"

#include <algorithm>

namespace thaw::network {

bool AddressPool::is_resting(int index) const {
  return std::any_of(resting_.begin(), resting_.end(),
                     [&](const Resting& each) { return each.index == index; });
}

std::optional<int> AddressPool::take() {
  if (static_cast<int>(taken_.size() + resting_.size()) < size_) {
    do {
      cursor_ = cursor_ % size_ + 1;
    } while (!is_free(cursor_));
    taken_.insert(cursor_);
    return cursor_;
  }
  if (resting_.empty()) return std::nullopt;
  int index = resting_.front().index;
  resting_.pop_front();
  taken_.insert(index);
  return index;
}

void AddressPool::adopt(int index) {
  std::erase_if(resting_, [&](const Resting& each) { return each.index == index; });
  taken_.insert(index);
}

void AddressPool::rest(int index, std::int64_t until_us) {
  if (taken_.erase(index) == 1) resting_.push_back({index, until_us});
}

void AddressPool::free(int index) { taken_.erase(index); }

std::optional<int> AddressPool::take_rested(std::int64_t now_us) {
  if (resting_.empty() || resting_.front().until_us > now_us) return std::nullopt;
  int index = resting_.front().index;
  resting_.pop_front();
  taken_.insert(index);
  return index;
}

std::optional<std::int64_t> AddressPool::next_rested_us() const {
  if (resting_.empty()) return std::nullopt;
  return resting_.front().until_us;
}

}  // namespace thaw::network
