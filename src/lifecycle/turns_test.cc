#include "lifecycle/turns.h"

#include <gtest/gtest.h>

#include <atomic>
#include <optional>
#include <thread>
#include <vector>

namespace thaw::lifecycle {
namespace {

TEST(Turns, NoMoreThanThePlaces) {
  Turns turns(2);
  std::atomic<int> inside = 0, most = 0, done = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i)
    threads.emplace_back([&] {
      for (int round = 0; round < 200; ++round) {
        Turns::Turn turn = turns.wait(round % 2);
        int now = ++inside, before = most;
        while (now > before && !most.compare_exchange_weak(before, now)) {
        }
        std::this_thread::yield();
        --inside;
        ++done;
      }
    });
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(done, 1600);
  EXPECT_LE(most, 2);
}

TEST(Turns, InOrderAndTheUrgentOnesFirst) {
  Turns turns(1);
  std::optional<Turns::Turn> held(turns.wait(true));
  std::mutex mutex;
  std::vector<int> order;
  std::vector<std::thread> threads;
  auto queue = [&](int number, bool urgent) {
    threads.emplace_back([&, number, urgent] {
      Turns::Turn turn = turns.wait(urgent);
      std::scoped_lock lock(mutex);
      order.push_back(number);
    });
    // Until it stands in the queue.
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  };
  queue(1, false);
  queue(2, true);
  queue(3, true);
  queue(4, false);
  held.reset();
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(order, (std::vector<int>{2, 3, 1, 4}));
}

}  // namespace
}  // namespace thaw::lifecycle
