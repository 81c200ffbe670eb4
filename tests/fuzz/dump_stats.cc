// What CRIU leaves of a dump's times.
#include "checkpoint/criu.h"
#include "fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  thaw::write_file(fuzz::folder() + "/stats-dump",
                   std::string_view(reinterpret_cast<const char*>(data), size));
  return fuzz::run([] { thaw::checkpoint::read_dump_stats(fuzz::folder()); });
}
