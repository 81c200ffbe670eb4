// The host's memory, in bytes, as /proc/meminfo has it.
#pragma once

#include <cstdint>

namespace thaw {

std::uint64_t total_memory();
// What programs can still be given without swapping: the kernel's estimate.
std::uint64_t available_memory();

}  // namespace thaw
