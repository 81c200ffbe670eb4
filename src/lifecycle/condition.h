// Conditions: what must hold before a replica counts as warm, and the probe that a restored replica
// must pass. Everything runs from outside, by entering the replica's namespaces; no probe process
// or connection is left when a call returns.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "state/spec.h"
#include "util/clock.h"
#include "util/fd.h"
#include "util/process.h"

namespace thaw::lifecycle {

// What a condition needs of a replica. Implemented over the replica's shim; by a small real process
// tree in tests.
class ProbeTarget {
 public:
  virtual ~ProbeTarget() = default;
  virtual int netns_fd() const = 0;          // the replica's network namespace
  virtual Fd open_root() const = 0;          // the container's root directory as seen inside
                                             // (O_PATH|O_DIRECTORY of /proc/PID/root)
  virtual std::string thaw_dir() const = 0;  // host path of what the container sees as /run/thaw
  virtual std::string log_path()
      const = 0;  // CRI log lines: "<RFC3339> <stdout|stderr> <F|P> <text>"
  virtual std::string notify_path()
      const = 0;  // file that the shim appends each datagram of NOTIFY_SOCKET to
  virtual std::string python() const = 0;  // the pod's interpreter: argv[0] of its command when
                                           // that is a Python, else python3
  // Runs argv in the container (its user, environment, working directory, cgroup) to its end;
  // killed at the deadline or when cancel_fd is readable (then Error kCancelled). `input` on stdin.
  virtual RunResult exec(const std::vector<std::string>& argv, Deadline deadline,
                         const std::string& input, int cancel_fd) = 0;
};

enum class WaitResult { kHolds, kTimedOut };

struct WaitOutcome {
  WaitResult result = WaitResult::kTimedOut;
  std::string last;  // the last thing seen, for people: "http :8000/health: connection refused"
};

// Waits until the condition holds or the deadline passes. Error kCancelled when cancel_fd becomes
// readable (stop asked for, replica ended). `note` (may be empty, called from any thread) gets
// lines worth an event: an exception of a python condition, a probe that cannot be run. http and
// tcp: connect inside the namespace to 10.77.0.2, then 127.0.0.1, each attempt bounded by 1 s,
// retried after 5 ms growing to 100 ms (the kernel has no event for "listening"). file, log,
// notify, workers: inotify. after: timerfd. exec: again 100 ms after a failure, growing to 1 s.
// python: one process that calls the function until it returns true; an exception is reported
// through `note` and tried again after 100 ms growing to 1 s. workers: N distinct entries in
// /run/thaw/workers, or READY=1 datagrams of N distinct processes. all, any: the children side by
// side.
WaitOutcome wait_condition(const state::Condition& condition, ProbeTarget& target,
                           Deadline deadline, int cancel_fd,
                           const std::function<void(const std::string&)>& note = {});

// The part of a condition that can be asked again of a restored replica: http, tcp, exec, file,
// python as they are; log, notify, workers and after told of the past and are gone. nullopt when
// nothing is left (then being alive is enough); all/any of what is left.
std::optional<state::Condition> readiness_probe(const state::Condition& condition);

}  // namespace thaw::lifecycle
