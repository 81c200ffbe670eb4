// CRIU's images: 8 bytes of magic, then messages with a 4-byte length before each
// (criu.org/Images).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/rpc.pb.h"
#include "util/error.h"

namespace thaw::checkpoint {

// Flags of a pagemap entry (CRIU's include/pagemap.h).
inline constexpr std::uint32_t kInParent = 1, kLazy = 2, kPresent = 4;

// Of a VMA's status (CRIU's include/image.h).
inline constexpr std::uint32_t kRegular = 1 << 0, kStack = 1 << 1, kHeap = 1 << 5,
                               kFilePrivate = 1 << 6, kFileShared = 1 << 7, kAnonPrivate = 1 << 9,
                               kMemfd = 1 << 14;

struct Image {
  std::string magic;
  std::vector<std::string> entries;
};

// Error kCorrupt when it is cut short.
Image read_image(const std::string& path);
std::string image_bytes(const Image& image);
// Names of the files below a folder that begin so, in order.
std::vector<std::string> names_like(const std::string& directory, std::string_view prefix);

template <typename Message>
Message parse_entry(const std::string& bytes, const std::string& path) {
  Message message;
  if (!message.ParseFromString(bytes))
    throw Error(Code::kCorrupt, "read image", path, "an entry cannot be decoded");
  return message;
}

// The pages of an entry, whichever field has them. Error kCorrupt when they make no sense.
std::uint64_t pages_of(const rpc::PagemapEntry& entry, const std::string& path);

}  // namespace thaw::checkpoint
