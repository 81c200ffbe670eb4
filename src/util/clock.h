// Time: a monotonic clock for durations and deadlines, wall-clock time only for people.
#pragma once

#include <cstdint>
#include <string>

namespace thaw {

// CLOCK_MONOTONIC in microseconds: the same for every process on the host, so phases of daemon and
// shim compare.
std::int64_t monotonic_us();
// Wall clock, microseconds since 1970.
std::int64_t wall_us();
// 2026-11-23T17:34:46.123456Z
std::string format_wall(std::int64_t wall_us);

// A point in monotonic time after which an operation is given up.
class Deadline {
 public:
  static Deadline after_us(std::int64_t microseconds) {
    return Deadline(monotonic_us() + microseconds);
  }
  static Deadline after_ms(std::int64_t milliseconds) { return after_us(milliseconds * 1000); }
  static Deadline never() { return Deadline(INT64_MAX); }

  bool passed() const { return at_us_ != INT64_MAX && monotonic_us() >= at_us_; }
  std::int64_t left_us() const;  // never negative
  int poll_ms() const;           // for poll(2): rounded up, -1 for never
  std::int64_t at_us() const { return at_us_; }

 private:
  explicit Deadline(std::int64_t at) : at_us_(at) {}
  std::int64_t at_us_;
};

// The pause after so many failures in a row (from 1): `first_us`, twice as long each time, at most
// `longest_us`.
std::int64_t back_off_us(std::int64_t first_us, std::int64_t longest_us, std::int64_t failures);

}  // namespace thaw
