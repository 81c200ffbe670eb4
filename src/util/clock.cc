#include "util/clock.h"

#include <algorithm>
#include <ctime>

#include <fmt/format.h>

namespace thaw {
namespace {
std::int64_t read_clock(clockid_t id) {
  timespec now;
  ::clock_gettime(id, &now);
  return now.tv_sec * 1'000'000LL + now.tv_nsec / 1000;
}
}  // namespace

std::int64_t monotonic_us() { return read_clock(CLOCK_MONOTONIC); }
std::int64_t wall_us() { return read_clock(CLOCK_REALTIME); }

std::string format_wall(std::int64_t us) {
  std::time_t seconds = us / 1'000'000;
  std::tm parts{};
  ::gmtime_r(&seconds, &parts);
  return fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}Z", parts.tm_year + 1900,
                     parts.tm_mon + 1, parts.tm_mday, parts.tm_hour, parts.tm_min, parts.tm_sec,
                     us % 1'000'000);
}

std::int64_t Deadline::left_us() const {
  if (at_us_ == INT64_MAX) return INT64_MAX;
  return std::max<std::int64_t>(0, at_us_ - monotonic_us());
}

int Deadline::poll_ms() const {
  if (at_us_ == INT64_MAX) return -1;
  return static_cast<int>(std::min<std::int64_t>((left_us() + 999) / 1000, 1'000'000'000));
}

std::int64_t back_off_us(std::int64_t first_us, std::int64_t longest_us, std::int64_t failures) {
  return std::min(longest_us, first_us << std::clamp<std::int64_t>(failures - 1, 0, 20));
}

}  // namespace thaw
