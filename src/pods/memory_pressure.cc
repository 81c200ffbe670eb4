#include "pods/memory_pressure.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>

#include "util/clock.h"
#include "util/memory.h"

namespace thaw::pods {
namespace {

// 100 ms of a second in which some task waited for memory (Documentation/accounting/psi.rst).
constexpr char kTrigger[] = "some 100000 1000000";
constexpr std::int64_t kCalmUs = 10'000'000;
constexpr std::uint64_t kLeastShare = 20;  // available memory below one part in so many is short

}  // namespace

MemoryPressure::MemoryPressure() {
  int fd = ::open("/proc/pressure/memory", O_RDWR | O_NONBLOCK | O_CLOEXEC);
  if (fd < 0) return;
  trigger_ = Fd(fd);
  if (::write(fd, kTrigger, sizeof kTrigger) < 0) trigger_.reset();
}

void MemoryPressure::noticed() { until_us_ = monotonic_us() + kCalmUs; }

bool MemoryPressure::is_short(std::int64_t& next_us) {
  if (available_memory() < total_memory() / kLeastShare) noticed();
  bool now = monotonic_us() < until_us_;
  if (now) next_us = std::min(next_us, until_us_);
  return now;
}

}  // namespace thaw::pods
