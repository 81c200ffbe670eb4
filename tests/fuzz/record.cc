// The record of what starts touch, as the shim reads it and as it comes from the shim.
#include "checkpoint/record.h"
#include "fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::string_view text(reinterpret_cast<const char*>(data), size);
  thaw::write_file(fuzz::folder() + "/record", std::string(64, '0').append(text));
  fuzz::run([] { thaw::checkpoint::read_working_set(fuzz::folder()); });
  return fuzz::run([&] {
    auto ranges = thaw::checkpoint::decode_ranges(text);
    auto merged = thaw::checkpoint::merge_ranges(ranges, 16);
    if (merged.size() > ranges.size()) abort();
    if (thaw::checkpoint::read_record(fuzz::folder(), "id", std::string(32, 'k')))
      abort();  // a MAC was guessed
  });
}
