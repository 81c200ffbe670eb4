// What the fuzz targets share. Each target is one file with LLVMFuzzerTestOneInput; an Error is
// what a parser may answer with, everything else that escapes is a find.
#pragma once

#include <stdlib.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "util/error.h"
#include "util/file.h"

namespace fuzz {

// A folder in memory, for parsers that read files. Left behind: libFuzzer ends without a word.
inline const std::string& folder() {
  static const std::string path = [] {
    const char* base = getenv("FUZZ_DIR");
    return std::string(base ? base : "/dev/shm");
  }();
  return path;
}

// The input cut into `count` parts: before each but the last stand four bytes of its length.
inline std::vector<std::string> parts(const std::uint8_t* data, std::size_t size,
                                      std::size_t count) {
  std::string_view rest(reinterpret_cast<const char*>(data), size);
  std::vector<std::string> result;
  while (result.size() + 1 < count) {
    std::uint32_t length = 0;
    if (rest.size() >= sizeof length) {
      std::memcpy(&length, rest.data(), sizeof length);
      rest.remove_prefix(sizeof length);
    }
    length = static_cast<std::uint32_t>(std::min<std::size_t>(length, rest.size()));
    result.emplace_back(rest.substr(0, length));
    rest.remove_prefix(length);
  }
  result.emplace_back(rest);
  return result;
}

template <typename Work>
int run(Work work) {
  try {
    work();
  } catch (const thaw::Error&) {
    // Refused, in words.
  }
  return 0;
}

}  // namespace fuzz
