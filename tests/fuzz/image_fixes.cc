// CRIU's files.img, which is corrected before a checkpoint is sealed.
#include "checkpoint/image_fixes.h"
#include "fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  thaw::write_file(fuzz::folder() + "/files.img", {reinterpret_cast<const char*>(data), size});
  return fuzz::run([] {
    // What was corrected once needs no correction.
    thaw::checkpoint::rearm_expired_timers(fuzz::folder());
    if (thaw::checkpoint::rearm_expired_timers(fuzz::folder()) != 0) abort();
  });
}
