#include "checkpoint/images.h"

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "checkpoint/page_index.h"
#include "util/file.h"

namespace thaw::checkpoint {

Image read_image(const std::string& path) {
  std::string bytes = read_file(path, 1u << 30);
  if (bytes.size() < 8) throw Error(Code::kCorrupt, "read image", path, "it is too short");
  Image image{bytes.substr(0, 8), {}};
  for (std::size_t at = 8; at < bytes.size();) {
    std::uint32_t length;
    if (bytes.size() - at < sizeof length)
      throw Error(Code::kCorrupt, "read image", path, "it ends within an entry");
    std::memcpy(&length, bytes.data() + at, sizeof length);
    at += sizeof length;
    if (length > bytes.size() - at)
      throw Error(Code::kCorrupt, "read image", path, "it ends within an entry");
    image.entries.push_back(bytes.substr(at, length));
    at += length;
  }
  return image;
}

std::vector<std::string> names_like(const std::string& directory, std::string_view prefix) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(directory))
    if (entry.path().filename().native().starts_with(prefix))
      names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

std::string image_bytes(const Image& image) {
  std::string bytes = image.magic;
  for (const std::string& entry : image.entries) {
    std::uint32_t length = static_cast<std::uint32_t>(entry.size());
    bytes.append(reinterpret_cast<const char*>(&length), sizeof length);
    bytes += entry;
  }
  return bytes;
}

std::uint64_t pages_of(const rpc::PagemapEntry& entry, const std::string& path) {
  std::uint64_t pages = entry.has_nr_pages() ? entry.nr_pages() : entry.compat_nr_pages();
  if (pages > (1ull << 36) || entry.vaddr() % kPageSize || (entry.flags() & kInParent))
    throw Error(Code::kCorrupt, "read image", path, "a run of pages makes no sense");
  return pages;
}

}  // namespace thaw::checkpoint
