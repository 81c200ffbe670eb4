// CRIU's files.img and mm-PID.img, which are corrected before a checkpoint is sealed.
#include "checkpoint/image_fixes.h"
#include "fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  for (const char* name : {"/files.img", "/mm-1.img"})
    thaw::write_file(fuzz::folder() + name, {reinterpret_cast<const char*>(data), size});
  // What was corrected once needs no correction.
  auto settles = [](auto correct) {
    return fuzz::run([&] {
      correct(fuzz::folder());
      if (correct(fuzz::folder()) != 0) abort();
    });
  };
  settles(thaw::checkpoint::rearm_expired_timers);
  return settles(thaw::checkpoint::join_mappings);
}
