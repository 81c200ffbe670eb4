// A file in zstd's seekable format, as a checkpoint's memory at rest is one.
#include "store/seekable.h"

#include "fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::string path = fuzz::folder() + "/file";
  thaw::write_file(path, std::string_view(reinterpret_cast<const char*>(data), size));
  return fuzz::run([&] {
    thaw::store::SeekableFile file(path);
    thaw::store::FrameReader reader(file);
    std::uint64_t bytes = 0;
    for (std::size_t i = 0; i < file.frames(); ++i) {
      if (file.offset(i) != bytes) abort();
      bytes += reader.read(i).size();
    }
    if (bytes != file.size()) abort();
  });
}
