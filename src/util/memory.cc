#include "util/memory.h"

#include <sstream>
#include <string>

#include "util/file.h"

namespace thaw {
namespace {

std::uint64_t meminfo(const std::string& wanted) {
  std::istringstream lines(read_file("/proc/meminfo"));
  std::string key, rest;
  for (std::uint64_t kib; lines >> key >> kib; std::getline(lines, rest))
    if (key == wanted) return kib << 10;
  return 0;
}

}  // namespace

std::uint64_t total_memory() { return meminfo("MemTotal:"); }

std::uint64_t available_memory() { return meminfo("MemAvailable:"); }

}  // namespace thaw
