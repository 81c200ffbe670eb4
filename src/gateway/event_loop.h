// One epoll thread: descriptors, timers and tasks from other threads. Everything here but stop(),
// call() and post() belongs to the thread that is in run(). Handlers live until the batch of events
// in which they were retired has been worked off, so an event that is already in hand never meets a
// freed object.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "util/fd.h"

namespace thaw::gateway {

class EventLoop {
 public:
  // What a descriptor, a timer or a deferred turn calls. `tag` (0 to 3) tells a handler's
  // descriptors apart.
  class Handler {
   public:
    Handler() = default;
    Handler(const Handler&) = delete;
    Handler& operator=(const Handler&) = delete;
    virtual ~Handler() = default;
    virtual void on_events(int tag, std::uint32_t events) = 0;
    virtual void on_timer() {}
    virtual void on_turn() {}

   private:
    friend class EventLoop;
    std::int64_t timer_at_ = kNoTimer;
    bool retired_ = false;
    bool has_turn_ = false;
  };

  EventLoop();

  void run();   // until stop(); blocks every signal in its thread
  void stop();  // any thread
  // Runs the task on the loop's thread, waits for it, throws what it threw. Any thread, also the
  // loop's own.
  void call(const std::function<void()>& task);
  void post(std::function<void()> task);  // the same without waiting; it must not throw

  std::int64_t now_us() const { return now_us_; }  // monotonic, of this batch
  void watch(int fd, Handler& handler, int tag, std::uint32_t events);
  void rewatch(int fd, Handler& handler, int tag, std::uint32_t events);
  // Before every close: a child between fork and exec holds a copy of the descriptor and would keep
  // its events coming.
  void unwatch(int fd);
  void set_timer(Handler& handler, std::int64_t at_us);  // replaces the handler's timer
  void clear_timer(Handler& handler);
  void again(Handler& handler);  // on_turn after the events in hand, before the thread sleeps
  void retire(std::unique_ptr<Handler> handler);

 private:
  static constexpr std::int64_t kNoTimer = INT64_MAX;

  void add(int operation, int fd, Handler& handler, int tag, std::uint32_t events);
  void arm_clock();
  void run_tasks();
  void run_timers();
  void run_turns();

  Fd epoll_, wake_, clock_;
  std::int64_t now_us_ = 0;
  std::int64_t clock_at_ = kNoTimer;
  std::atomic<bool> stopping_{false};
  std::atomic<std::thread::id> thread_{};
  std::set<std::pair<std::int64_t, Handler*>> timers_;
  std::deque<Handler*> turns_;
  std::vector<std::unique_ptr<Handler>> retired_;

  std::mutex mutex_;
  std::vector<std::function<void()>> tasks_;  // guarded by mutex_
};

}  // namespace thaw::gateway
