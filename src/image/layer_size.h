// What an image's layers take when they are unpacked, told from their tar headers before anything
// is: a small archive can hold more than any disk.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

namespace thaw::image {

// Of all layers together.
struct UnpackLimits {
  std::uint64_t bytes = 64ull << 30;   // decompressed, and with what sparse files stand for
  std::string bound = "--image-size";  // what sets that
  std::uint64_t files = 4'000'000;
  std::size_t depth = 256;  // folders below each other
};

[[noreturn]] void refuse_size(const UnpackLimits& limits, const std::string& object,
                              const std::string& what);

// Reads a tar as it comes, in pieces of any size. Error kExhausted as soon as a limit is passed,
// kCorrupt for what no tar holds. Of what can be written in several ways the largest counts.
class TarSize {
 public:
  TarSize(const UnpackLimits& limits, std::string object)
      : limits_(limits), object_(std::move(object)) {}

  void begin();  // another layer
  void read(std::string_view piece);
  std::uint64_t bytes() const { return bytes_; }
  std::uint64_t files() const { return files_; }

 private:
  void header();
  void extension();
  void take(std::uint64_t bytes);
  void check_depth(std::string_view name) const;
  [[noreturn]] void refuse(const std::string& cause) const;
  std::uint64_t number(std::size_t at, std::size_t length) const;

  UnpackLimits limits_;
  std::string object_;
  std::uint64_t bytes_ = 0, files_ = 0;
  std::string block_;         // of a header, until it is whole
  std::string extension_;     // of what says more about the next entry
  std::uint64_t wanted_ = 0;  // bytes of the extension that are still to come
  std::uint64_t skip_ = 0;    // bytes of contents and padding that are still to come
  char kind_ = 0;             // of the extension
  std::uint64_t size_ = 0;    // of the next entry, from an extension
  std::uint64_t sparse_size_ = 0;
  bool has_size_ = false;
  std::optional<bool> folder_;  // whether the longer name of the next entry ends with a slash
  bool map_goes_on_ = false;    // the next block is more of a sparse file's map
};

// Reads one layer's blob: plain, gzip or zstd, told by its first bytes. `between` is called now and
// then, and may throw.
void measure_layer(const std::string& blob, TarSize& size, const std::function<void()>& between);

}  // namespace thaw::image
