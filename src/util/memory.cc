#include "util/memory.h"

#include <cstdlib>
#include <sstream>
#include <string>

#include "util/file.h"

namespace thaw {
namespace {

std::uint64_t meminfo(const std::string& wanted) {
  // A test can let memory be short without making it so.
  const char* file = std::getenv("THAW_MEMINFO");
  std::istringstream lines(read_file(file ? file : "/proc/meminfo"));
  std::string key, rest;
  for (std::uint64_t kib; lines >> key >> kib; std::getline(lines, rest))
    if (key == wanted) return kib << 10;
  return 0;
}

}  // namespace

std::uint64_t total_memory() { return meminfo("MemTotal:"); }

std::uint64_t available_memory() { return meminfo("MemAvailable:"); }

}  // namespace thaw
