#include "lifecycle/condition.h"

#include <poll.h>

#include <cerrno>
#include <exception>
#include <list>
#include <system_error>

#include "lifecycle/condition_kinds.h"
#include "util/error.h"
#include "util/file.h"
#include "util/units.h"

namespace thaw::lifecycle {
namespace {

using Kind = state::Condition::Kind;

WaitOutcome wait_one(const state::Condition& condition, ProbeTarget& target, Deadline deadline,
                     int cancel_fd, const std::function<void(const std::string&)>& note);

// The children of one all or any, each in a thread. The destructor stops and joins them, also when
// an exception flies.
class Children {
 public:
  Children(const std::vector<state::Condition>& conditions, ProbeTarget& target, Deadline deadline,
           const std::function<void(const std::string&)>& note)
      : stop_(Fd::event()), ended_(Fd::event()) {
    try {
      for (const state::Condition& condition : conditions) start(condition, target, deadline, note);
    } catch (const std::system_error& error) {
      join();
      throw Error(Code::kExhausted, "start a thread for", "condition", error.what(),
                  "raise the limit of processes");
    } catch (...) {
      join();
      throw;
    }
  }
  ~Children() { join(); }
  Children(const Children&) = delete;
  Children& operator=(const Children&) = delete;

  // nullopt while it is open. Throws what a child threw.
  std::optional<WaitOutcome> verdict(bool all) {
    clear_event(ended_);
    std::lock_guard lock(mutex_);
    std::size_t held = 0, timed_out = 0;
    std::string missing;
    for (Child& child : children_) {
      if (child.error) std::rethrow_exception(child.error);
      if (!child.outcome) continue;
      if (child.outcome->result == WaitResult::kHolds) {
        ++held;
        if (!all) return *child.outcome;
      } else {
        ++timed_out;
        missing += (missing.empty() ? "" : "; ") + child.outcome->last;
      }
    }
    if (held + timed_out < children_.size()) return std::nullopt;
    if (timed_out == 0) return WaitOutcome{WaitResult::kHolds, children_.back().outcome->last};
    return WaitOutcome{WaitResult::kTimedOut, missing};
  }
  const Fd& ended() const { return ended_; }

 private:
  struct Child {
    std::optional<WaitOutcome> outcome;
    std::exception_ptr error;
    std::thread thread;
  };

  void start(const state::Condition& condition, ProbeTarget& target, Deadline deadline,
             const std::function<void(const std::string&)>& note) {
    std::lock_guard lock(mutex_);
    Child& child = children_.emplace_back();
    child.thread = std::thread([this, &child, &condition, &target, deadline, &note] {
      std::optional<WaitOutcome> outcome;
      std::exception_ptr error;
      try {
        outcome = wait_one(condition, target, deadline, stop_.get(), note);
      } catch (...) {
        error = std::current_exception();
      }
      std::lock_guard lock_child(mutex_);
      child.outcome = std::move(outcome);
      child.error = std::move(error);
      signal_event(ended_);
    });
  }

  void join() {
    signal_event(stop_);
    for (Child& child : children_)
      if (child.thread.joinable()) child.thread.join();
  }

  Fd stop_, ended_;
  std::mutex mutex_;
  std::list<Child> children_;  // a list: threads hold references
};

WaitOutcome wait_group(const Wait& wait) {
  const state::Condition& condition = wait.condition;
  if (condition.children.empty())
    throw Error(Code::kInvalid, "wait for condition", condition_text(condition),
                "there are no conditions in it");
  Children children(condition.children, wait.target, wait.deadline, wait.note);
  for (;;) {
    if (auto outcome = children.verdict(condition.kind == Kind::kAll)) return *outcome;
    // Without the deadline: each child keeps it.
    wait.ready({{children.ended().get(), POLLIN, 0}}, Deadline::never());
  }
}

WaitOutcome wait_one(const state::Condition& condition, ProbeTarget& target, Deadline deadline,
                     int cancel_fd, const std::function<void(const std::string&)>& note) {
  Wait wait{condition, target, deadline, cancel_fd, note};
  wait.last = condition_text(condition) + ": not looked at yet";
  wait.pause(0);  // cancelled already
  auto leaf = [&](bool (*wait_for)(Wait&)) {
    bool holds = wait_for(wait);
    return WaitOutcome{holds ? WaitResult::kHolds : WaitResult::kTimedOut, wait.last};
  };
  switch (condition.kind) {
    case Kind::kHttp:
      return leaf(wait_http);
    case Kind::kTcp:
      return leaf(wait_tcp);
    case Kind::kExec:
      return leaf(wait_exec);
    case Kind::kFile:
      return leaf(wait_file);
    case Kind::kLog:
      return leaf(wait_log);
    case Kind::kPython:
      return leaf(wait_python);
    case Kind::kNotify:
      return leaf(wait_notify);
    case Kind::kWorkers:
      return leaf(wait_workers);
    case Kind::kAfter:
      return leaf(wait_after);
    case Kind::kAll:
    case Kind::kAny:
      return wait_group(wait);
  }
  throw Error(Code::kInternal, "wait for condition", "", "its kind is unknown");
}

std::string join(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : " ") + word;
  return text.size() > 100 ? text.substr(0, 100) + "..." : text;
}

}  // namespace

void Wait::see(const std::string& text) { last = condition_text(condition) + ": " + text; }

void Wait::tell(const std::string& text) {
  std::string line = condition_text(condition) + ": " + text;
  if (note && line != told) note(line);
  told = std::move(line);
}

Deadline Wait::at_most(std::int64_t microseconds) const {
  return deadline.left_us() < microseconds ? deadline : Deadline::after_us(microseconds);
}

bool Wait::ready(std::vector<pollfd> descriptors, Deadline until) const {
  descriptors.push_back({cancel_fd, POLLIN, 0});
  for (;;) {
    int count = ::poll(descriptors.data(), descriptors.size(), until.poll_ms());
    if (count < 0 && errno == EINTR) continue;
    check(count, "poll");
    if (descriptors.back().revents)
      throw Error(Code::kCancelled, "wait for condition", condition_text(condition),
                  "it was cancelled");
    if (count > 0) return true;
    if (until.passed()) return false;
  }
}

bool Wait::pause(std::int64_t microseconds) const {
  ready({}, at_most(microseconds));
  return !deadline.passed();
}

std::string condition_text(const state::Condition& condition) {
  switch (condition.kind) {
    case Kind::kHttp:
      return fmt::format("http :{}{}", condition.port, condition.path);
    case Kind::kTcp:
      return fmt::format("tcp :{}", condition.port);
    case Kind::kExec:
      return "exec " + join(condition.argv);
    case Kind::kFile:
      return "file " + condition.path;
    case Kind::kLog:
      return fmt::format("log /{}/", condition.pattern);
    case Kind::kPython:
      return "python " + condition.callable;
    case Kind::kNotify:
      return "notify";
    case Kind::kWorkers:
      return fmt::format("workers {}", condition.workers);
    case Kind::kAfter:
      return "after " + format_duration(condition.after_us);
    case Kind::kAll:
      return "all";
    case Kind::kAny:
      return "any";
  }
  return "condition";
}

std::string last_line(std::string_view text) {
  std::string trimmed = trim(text);
  if (auto newline = trimmed.rfind('\n'); newline != std::string::npos)
    trimmed = trim(trimmed.substr(newline));
  return trimmed.substr(0, 300);
}

bool wait_after(Wait& wait) {
  Fd timer = Fd::timer_after_us(wait.condition.after_us);
  wait.see("not long enough yet");
  if (!wait.ready({{timer.get(), POLLIN, 0}}, wait.deadline)) return false;
  wait.see("the time has passed");
  return true;
}

WaitOutcome wait_condition(const state::Condition& condition, ProbeTarget& target,
                           Deadline deadline, int cancel_fd,
                           const std::function<void(const std::string&)>& note) {
  return wait_one(condition, target, deadline, cancel_fd, note);
}

}  // namespace thaw::lifecycle
