// A user of a specification, looked up in an image's /etc/passwd and /etc/group.
#include "fuzz.h"
#include "image/images.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  auto parts = fuzz::parts(data, size, 3);
  thaw::make_directories(fuzz::folder() + "/etc");
  thaw::write_file(fuzz::folder() + "/etc/passwd", parts[1]);
  thaw::write_file(fuzz::folder() + "/etc/group", parts[2]);
  return fuzz::run([&] {
    auto identity = thaw::image::resolve_user(fuzz::folder(), parts[0]);
    if (identity.uid == UINT32_MAX || identity.gid == UINT32_MAX) abort();  // nobody's number
  });
}
