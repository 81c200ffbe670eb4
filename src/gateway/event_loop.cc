#include "gateway/event_loop.h"

#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <future>

#include "util/clock.h"
#include "util/error.h"
#include "util/log.h"

namespace thaw::gateway {
namespace {

constexpr int kBatch = 256;
// Handlers are aligned to 8, so the tag fits below the pointer. Our own two descriptors carry no
// pointer.
constexpr std::uint64_t kTagMask = 3;
constexpr std::uint64_t kWakeTag = 1;
constexpr std::uint64_t kClockTag = 2;

// One connection's trouble must not end the thread that carries all of them.
template <typename Work>
void guarded(const char* kind, const Work& work) {
  try {
    work();
  } catch (const std::exception& error) {
    log::error("the gateway could not handle an event",
               {{"kind", kind}, {"error", describe(error)}});
  }
}

}  // namespace

EventLoop::EventLoop()
    : epoll_(check(::epoll_create1(EPOLL_CLOEXEC), "make epoll descriptor")),
      wake_(Fd::event()),
      clock_(check(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK), "make timerfd")),
      now_us_(monotonic_us()) {
  epoll_event wake{.events = EPOLLIN, .data = {.u64 = kWakeTag}};
  check(::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, wake_.get(), &wake), "watch eventfd");
  epoll_event clock{.events = EPOLLIN, .data = {.u64 = kClockTag}};
  check(::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, clock_.get(), &clock), "watch timerfd");
}

void EventLoop::run() {
  // splice(2) into a socket whose peer is gone raises SIGPIPE and has no flag against it.
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, nullptr);
  thread_ = std::this_thread::get_id();

  epoll_event events[kBatch];
  while (!stopping_) {
    int count = ::epoll_wait(epoll_.get(), events, kBatch, turns_.empty() ? -1 : 0);
    if (count < 0 && errno != EINTR) throw_errno("wait for events of", "the gateway");
    now_us_ = monotonic_us();
    bool woken = false, clock_rang = false;
    for (int i = 0; i < count; ++i) {
      std::uint64_t data = events[i].data.u64;
      auto* handler = reinterpret_cast<Handler*>(data & ~kTagMask);
      int tag = static_cast<int>(data & kTagMask);
      if (!handler) {
        (data == kWakeTag ? woken : clock_rang) = true;
      } else if (!handler->retired_) {
        guarded("event", [&] { handler->on_events(tag, events[i].events); });
      }
    }
    if (woken) run_tasks();
    if (clock_rang) run_timers();
    run_turns();
    retired_.clear();
  }
  run_tasks();
  retired_.clear();
}

void EventLoop::stop() {
  stopping_ = true;
  signal_event(wake_);
}

void EventLoop::call(const std::function<void()>& task) {
  if (thread_.load() == std::this_thread::get_id()) return task();
  // Shared: the loop is still inside set_value() when the waiter here wakes up.
  auto done = std::make_shared<std::promise<void>>();
  std::future<void> result = done->get_future();
  {
    std::lock_guard lock(mutex_);
    tasks_.push_back([done, &task] {
      try {
        task();
        done->set_value();
      } catch (...) {
        done->set_exception(std::current_exception());
      }
    });
  }
  signal_event(wake_);
  result.get();
}

void EventLoop::post(std::function<void()> task) {
  {
    std::lock_guard lock(mutex_);
    tasks_.push_back(std::move(task));
  }
  signal_event(wake_);
}

void EventLoop::add(int operation, int fd, Handler& handler, int tag, std::uint32_t events) {
  epoll_event event{
      .events = events,
      .data = {.u64 = reinterpret_cast<std::uint64_t>(&handler) | static_cast<std::uint64_t>(tag)}};
  check(::epoll_ctl(epoll_.get(), operation, fd, &event), "watch descriptor", std::to_string(fd));
}

void EventLoop::watch(int fd, Handler& handler, int tag, std::uint32_t events) {
  add(EPOLL_CTL_ADD, fd, handler, tag, events);
}

void EventLoop::rewatch(int fd, Handler& handler, int tag, std::uint32_t events) {
  add(EPOLL_CTL_MOD, fd, handler, tag, events);
}

void EventLoop::unwatch(int fd) { ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr); }

void EventLoop::set_timer(Handler& handler, std::int64_t at_us) {
  if (handler.timer_at_ == at_us) return;
  clear_timer(handler);
  handler.timer_at_ = at_us;
  timers_.emplace(at_us, &handler);
  // Only an earlier first timer touches the kernel; a clock that rings for a timer long cleared
  // finds nothing and re-arms.
  if (at_us < clock_at_) arm_clock();
}

void EventLoop::clear_timer(Handler& handler) {
  if (handler.timer_at_ == kNoTimer) return;
  timers_.erase({handler.timer_at_, &handler});
  handler.timer_at_ = kNoTimer;
}

void EventLoop::arm_clock() {
  clock_at_ = timers_.empty() ? kNoTimer : timers_.begin()->first;
  if (clock_at_ == kNoTimer) return;
  std::int64_t at = std::max<std::int64_t>(clock_at_, 1);  // 0 would disarm it
  itimerspec when{.it_interval = {},
                  .it_value = {.tv_sec = at / 1'000'000, .tv_nsec = at % 1'000'000 * 1000}};
  check(::timerfd_settime(clock_.get(), TFD_TIMER_ABSTIME, &when, nullptr), "arm timerfd");
}

void EventLoop::again(Handler& handler) {
  if (handler.has_turn_ || handler.retired_) return;
  handler.has_turn_ = true;
  turns_.push_back(&handler);
}

void EventLoop::retire(std::unique_ptr<Handler> handler) {
  clear_timer(*handler);
  if (handler->has_turn_) std::erase(turns_, handler.get());
  handler->has_turn_ = false;
  handler->retired_ = true;
  retired_.push_back(std::move(handler));
}

void EventLoop::run_tasks() {
  clear_event(wake_);
  std::vector<std::function<void()>> tasks;
  {
    std::lock_guard lock(mutex_);
    tasks.swap(tasks_);
  }
  for (auto& task : tasks) task();
}

void EventLoop::run_timers() {
  clear_event(clock_);
  while (!timers_.empty() && timers_.begin()->first <= now_us_) {
    Handler* handler = timers_.begin()->second;
    clear_timer(*handler);
    guarded("timer", [&] { handler->on_timer(); });
  }
  arm_clock();
}

void EventLoop::run_turns() {
  // Turns asked for from now on wait for the next batch, so new events come in between. Taken one
  // by one, because a turn may retire a handler whose turn is still to come.
  for (std::size_t left = turns_.size(); left > 0 && !turns_.empty(); --left) {
    Handler* handler = turns_.front();
    turns_.pop_front();
    handler->has_turn_ = false;
    guarded("turn", [&] { handler->on_turn(); });
  }
}

}  // namespace thaw::gateway
