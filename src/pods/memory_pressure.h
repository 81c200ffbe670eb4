// Tells when the host's memory is short: the kernel says so (pressure stall information), or hardly
// any is available. What was only made ahead of time is then given up. One thread.
#pragma once

#include <cstdint>

#include "util/fd.h"

namespace thaw::pods {

class MemoryPressure {
 public:
  // Without a kernel that can tell, only what is available counts.
  MemoryPressure();
  int fd() const { return trigger_.get(); }  // POLLPRI: call noticed(); -1 when there is none
  void noticed();
  // Short now, or a moment ago. `next_us` (monotonic) is lowered to when that may be over.
  bool is_short(std::int64_t& next_us);

 private:
  Fd trigger_;
  std::int64_t until_us_ = 0;
};

}  // namespace thaw::pods
