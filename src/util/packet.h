// Short texts, each with a descriptor or none, over a SEQPACKET unix socket.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "util/fd.h"

namespace thaw {

struct Packet {
  std::string text;
  Fd descriptor;
};

// 4 KiB of text at most. False when the other side is gone, or does not listen within the socket's
// own time limit; errno says why. `descriptor` -1: none. May be called between fork and exec.
bool send_packet(int socket, std::string_view text, int descriptor = -1);
inline bool send_packet(const Fd& socket, std::string_view text, int descriptor = -1) {
  return send_packet(socket.get(), text, descriptor);
}
// nullopt as above.
std::optional<Packet> receive_packet(const Fd& socket);

// A socket at a path, for root alone; the folder is made with mode 0700. A file that is there is
// replaced.
Fd listen_private(const std::string& path);
// Empty when nobody answers. What is sent or awaited on it fails after `limit_us`.
Fd connect_private(const std::string& path, std::int64_t limit_us);
// The next that has connected, if its user is root or ours; empty otherwise.
Fd accept_private(const Fd& listener, std::int64_t limit_us);

}  // namespace thaw
