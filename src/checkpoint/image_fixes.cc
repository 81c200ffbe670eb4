#include "checkpoint/image_fixes.h"

#include <cstring>

#include "checkpoint/rpc.pb.h"
#include "util/error.h"
#include "util/file.h"

namespace thaw::checkpoint {

int rearm_expired_timers(const std::string& images_dir) {
  std::string path = images_dir + "/files.img";
  if (!exists(path)) return 0;
  std::string bytes = read_file(path, 1u << 30),
              out = bytes.substr(0, std::min<std::size_t>(8, bytes.size()));
  int rearmed = 0;
  for (std::size_t at = 8; at < bytes.size();) {
    std::uint32_t length = 0;
    if (bytes.size() - at >= sizeof length) std::memcpy(&length, bytes.data() + at, sizeof length);
    at += sizeof length;
    rpc::FileEntry entry;
    if (at > bytes.size() || length > bytes.size() - at ||
        !entry.ParseFromArray(bytes.data() + at, static_cast<int>(length)))
      throw Error(Code::kCorrupt, "read image", path, "an entry cannot be decoded");
    std::string text = bytes.substr(at, length);
    at += length;
    if (entry.has_tfd()) {
      rpc::Timerfd& timer = *entry.mutable_tfd();
      bool periodic = timer.isec() || timer.insec();
      if (periodic && !timer.vsec() && !timer.vnsec()) {
        timer.set_vnsec(1);
        text = entry.SerializeAsString();
        ++rearmed;
      }
    }
    std::uint32_t size = static_cast<std::uint32_t>(text.size());
    out.append(reinterpret_cast<const char*>(&size), sizeof size);
    out += text;
  }
  if (rearmed) write_file_atomic(path, out);
  return rearmed;
}

}  // namespace thaw::checkpoint
