// Which addresses of an instance are in use. Not thread-safe: its owner locks.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <set>
#include <vector>

namespace thaw::network {

// An address goes round: taken, then resting (its old interface may still be dying), then free.
// Free ones are taken in turn, so that the one given back last is taken last.
class AddressPool {
 public:
  explicit AddressPool(int size) : size_(size) {}

  std::optional<int>
  take();  // nullopt when all are taken; a resting one is taken only when no other is free
  void adopt(int index);                        // taken, whatever it was
  void rest(int index, std::int64_t until_us);  // from taken; ignored when it was not taken
  void free(int index);                         // from taken

  bool is_free(int index) const { return !taken_.contains(index) && !is_resting(index); }
  // The first one whose rest is over by `now_us`, taken again so that nobody else has it.
  std::optional<int> take_rested(std::int64_t now_us);
  // When the next rest is over; nullopt when none rests.
  std::optional<std::int64_t> next_rested_us() const;

 private:
  struct Resting {
    int index;
    std::int64_t until_us;
  };
  bool is_resting(int index) const;

  int size_;
  int cursor_ = 0;  // the index taken last
  std::set<int> taken_;
  std::deque<Resting> resting_;  // oldest first
};

}  // namespace thaw::network
