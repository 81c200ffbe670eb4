// A layer of an image: a tar, plain or packed, whole and in pieces.
#include "image/layer_size.h"
#include "fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const thaw::image::UnpackLimits limits{.bytes = 1 << 20, .bound = "", .files = 64, .depth = 16};
  std::string_view text(reinterpret_cast<const char*>(data), size);
  thaw::write_file(fuzz::folder() + "/layer", text);
  auto measured = [&](const auto& work) {
    thaw::image::TarSize tar(limits, "fuzz");
    bool refused = true;
    fuzz::run([&] {
      work(tar);
      refused = false;
    });
    if (tar.bytes() > limits.bytes || tar.files() > limits.files + 1) abort();
    return std::tuple(refused, tar.bytes(), tar.files());
  };
  measured([](auto& tar) { thaw::image::measure_layer(fuzz::folder() + "/layer", tar, [] {}); });
  auto whole = measured([&](auto& tar) {
    tar.begin();
    tar.read(text);
  });
  auto pieces = measured([&](auto& tar) {
    tar.begin();
    for (std::size_t at = 0; at < text.size(); at += 100) tar.read(text.substr(at, 100));
  });
  if (std::get<0>(whole) != std::get<0>(pieces)) abort();
  if (!std::get<0>(whole) && whole != pieces) abort();
  return 0;
}
