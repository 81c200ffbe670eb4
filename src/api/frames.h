// The exec stream after "101 Switching Protocols": frames both ways. One byte type, four bytes
// big-endian length, payload.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace thaw::api {

enum class FrameType : std::uint8_t {
  kStdin = 1,     // to the daemon: bytes for the process
  kStdout = 2,    // from the daemon
  kStderr = 3,    // from the daemon; never with a terminal
  kStdinEof = 4,  // to the daemon: no more input
  kResize = 5,    // to the daemon: JSON {"rows", "columns"}
  kSignal = 6,    // to the daemon: JSON {"signal": number}
  kExit = 7,      // from the daemon, last: JSON {"exit_code", "signal": number or null}
  kError = 8,     // from the daemon, last: JSON {"error": {…}} as in any answer
};

struct Frame {
  FrameType type = FrameType::kStdin;
  std::string payload;
};

inline constexpr std::size_t kMaxFrame = 1 << 20;

std::string encode_frame(FrameType type, std::string_view payload);

// Cuts a byte stream into frames.
class FrameReader {
 public:
  void append(std::string_view data) { buffer_.append(data); }
  // kInvalid for an unknown type or a frame above kMaxFrame.
  std::optional<Frame> next();

 private:
  std::string buffer_;
};

}  // namespace thaw::api
