#include "api/frames.h"

#include "util/error.h"

namespace thaw::api {
namespace {
constexpr std::size_t kHeader = 5;
}

std::string encode_frame(FrameType type, std::string_view payload) {
  auto size = static_cast<std::uint32_t>(payload.size());
  std::string frame;
  frame.reserve(kHeader + payload.size());
  frame += static_cast<char>(type);
  for (int shift = 24; shift >= 0; shift -= 8) frame += static_cast<char>((size >> shift) & 0xff);
  frame += payload;
  return frame;
}

std::optional<Frame> FrameReader::next() {
  if (buffer_.size() < kHeader) return std::nullopt;
  auto byte = [&](std::size_t index) { return static_cast<std::uint8_t>(buffer_[index]); };
  std::size_t size = 0;
  for (std::size_t index = 1; index < kHeader; ++index) size = size << 8 | byte(index);
  if (byte(0) < 1 || byte(0) > static_cast<int>(FrameType::kError)) {
    throw Error(Code::kInvalid, "read the exec stream", {},
                "frame type " + std::to_string(byte(0)) + " is unknown", "see docs/api.md");
  }
  if (size > kMaxFrame) {
    throw Error(Code::kInvalid, "read the exec stream", {},
                "a frame of " + std::to_string(size) + " bytes is above the limit of 1 MiB",
                "send smaller frames");
  }
  if (buffer_.size() < kHeader + size) return std::nullopt;
  Frame frame{static_cast<FrameType>(byte(0)), buffer_.substr(kHeader, size)};
  buffer_.erase(0, kHeader + size);
  return frame;
}

}  // namespace thaw::api
