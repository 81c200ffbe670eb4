// Restores in flight are limited to the cores of the host: more at once only make each of them
// slower. The others wait in order; those that a client waits for go before the rest. Thread-safe.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <set>
#include <utility>

namespace thaw::lifecycle {

class Turns {
 public:
  explicit Turns(int places) : free_(places) {}

  // A place, given back when it goes out of scope.
  class Turn {
   public:
    explicit Turn(Turns& turns) : turns_(&turns) {}
    Turn(Turn&& other) noexcept : turns_(std::exchange(other.turns_, nullptr)) {}
    Turn& operator=(Turn&&) = delete;
    ~Turn() {
      if (turns_) turns_->give_back();
    }

   private:
    Turns* turns_;
  };
  // Blocks until it is this caller's turn; a restore has a deadline, so that comes.
  Turn wait(bool urgent);

 private:
  void give_back();
  std::mutex mutex_;
  std::condition_variable changed_;
  int free_;
  std::uint64_t next_ = 0;
  std::set<std::pair<bool, std::uint64_t>> queue_;  // {not urgent, number}: the first is next
};

}  // namespace thaw::lifecycle
