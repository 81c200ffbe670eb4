// CRIU's pagemap and mm images, as the page service reads them.
#include "checkpoint/page_index.h"
#include "fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  auto parts = fuzz::parts(data, size, 2);
  thaw::write_file(fuzz::folder() + "/pagemap-1.img", parts[0]);
  thaw::write_file(fuzz::folder() + "/mm-1.img", parts[1]);
  for (int id : {0, 1, 2}) {
    std::string pages = fuzz::folder() + "/pages-" + std::to_string(id) + ".img";
    if (!thaw::exists(pages)) thaw::write_file(pages, std::string(1 << 20, 'x'));
  }
  return fuzz::run([] {
    thaw::checkpoint::ProcessMemory memory =
        thaw::checkpoint::read_process_memory(fuzz::folder(), 1);
    // What a fault, a fork and an mremap do with it; no piece may lead out of the file.
    thaw::checkpoint::PageIndex index = memory.lazy;
    while (auto piece = index.first()) {
      if (piece->offset + piece->length > (1 << 20)) abort();
      if (auto around = index.around(piece->address, 65536, 65536);
          !around || around->offset + around->length > (1 << 20))
        abort();
      index.move(piece->address, piece->address ^ 0x4000'0000'0000, 4096);
      index.remove(piece->address ^ 0x4000'0000'0000, 4096);
      index.remove(piece->address, piece->length);
    }
  });
}
