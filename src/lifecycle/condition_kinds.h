// Inside of condition.h: one wait for one condition, and the kinds that it may be of. Not for other
// files.
#pragma once

#include <poll.h>

#include <functional>
#include <string>
#include <vector>

#include "lifecycle/condition.h"

namespace thaw::lifecycle {

// What one wait is made of. Used by one thread; conditions inside all and any have one each.
struct Wait {
  const state::Condition& condition;
  ProbeTarget& target;
  Deadline deadline;
  int cancel_fd;
  const std::function<void(const std::string&)>& note;
  std::string last{};  // WaitOutcome::last
  std::string told{};  // what note got last: the same line is not said twice in a row

  void see(const std::string& text);   // sets last
  void tell(const std::string& text);  // an event for people
  Deadline at_most(
      std::int64_t microseconds) const;  // that far from now, or our deadline when it is earlier
  // Waits until one of the descriptors (negative ones are passed over) is ready. False at `until`.
  // Throws kCancelled.
  bool ready(std::vector<pollfd> descriptors, Deadline until) const;
  // Sleeps, but not past the deadline. False when the deadline has passed. Throws kCancelled.
  bool pause(std::int64_t microseconds) const;
};

// Pauses between two tries: doubling.
class Backoff {
 public:
  Backoff(std::int64_t first_us, std::int64_t most_us) : next_(first_us), most_(most_us) {}
  std::int64_t next() { return std::exchange(next_, std::min(next_ * 2, most_)); }

 private:
  std::int64_t next_, most_;
};

// "http :8000/health", for messages.
std::string condition_text(const state::Condition& condition);
// The last line of a text that is not empty, at most 300 bytes of it.
std::string last_line(std::string_view text);

// Each waits until its condition holds (true) or the deadline passes (false).
bool wait_http(Wait& wait);
bool wait_tcp(Wait& wait);
bool wait_exec(Wait& wait);
bool wait_python(Wait& wait);
bool wait_file(Wait& wait);
bool wait_log(Wait& wait);
bool wait_notify(Wait& wait);
bool wait_workers(Wait& wait);
bool wait_after(Wait& wait);

}  // namespace thaw::lifecycle
