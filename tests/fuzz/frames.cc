// What the API reads of a client that runs a program: frames, in pieces.
#include "api/frames.h"
#include "fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  auto parts = fuzz::parts(data, size, 2);
  return fuzz::run([&] {
    thaw::api::FrameReader reader;
    for (const std::string& part : parts) {
      reader.append(part);
      while (auto frame = reader.next())
        if (frame->payload.size() > thaw::api::kMaxFrame) abort();
    }
  });
}
