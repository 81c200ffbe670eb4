// CRIU's images of shared memory, as they are corrected after a dump and read at a restore.
#include "checkpoint/shared_memory.h"
#include "fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  constexpr std::uint64_t kSize = 2 << 20;
  auto parts = fuzz::parts(data, size, 5);
  for (int id : {0, 1, 2}) {
    std::string pages = fuzz::folder() + "/pages-" + std::to_string(id) + ".img";
    if (!thaw::exists(pages)) thaw::write_file(pages, std::string(kSize, 'x'));
  }
  const char* names[] = {"/pagemap-shmem-1.img", "/memfd.img", "/mm-1.img", "/fdinfo-1.img",
                         "/files.img"};
  for (std::size_t i = 0; i < 5; ++i) thaw::write_file(fuzz::folder() + names[i], parts[i]);
  auto read = [] {
    for (const auto& segment : thaw::checkpoint::read_shared_memory(fuzz::folder()))
      for (const auto& piece : segment.pieces)
        if (piece.length > kSize || piece.offset > kSize - piece.length ||
            piece.length > segment.size || piece.address > segment.size - piece.length)
          abort();
  };
  fuzz::run(read);
  return fuzz::run([&] {
    thaw::checkpoint::name_shared_memory(fuzz::folder());
    if (thaw::checkpoint::name_shared_memory(fuzz::folder()) != 0) abort();
    read();
  });
}
