#include "checkpoint/image_fixes.h"

#include <sys/mman.h>

#include <cstring>

#include "checkpoint/images.h"
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

namespace {

constexpr std::uint64_t kHugePage = 2 << 20;
constexpr std::uint64_t kAdvised = 1ull << MADV_HUGEPAGE;

bool advised(const rpc::Vma& vma) { return vma.madv() & kAdvised; }

// All of it but where it lies and that advice, also what is not declared here.
std::string kind_of(rpc::Vma vma) {
  vma.clear_start();
  vma.clear_end();
  vma.set_madv(vma.madv() & ~kAdvised);
  return vma.SerializePartialAsString();
}

bool can_join(const rpc::Vma& one, const rpc::Vma& next) {
  bool plain =
      one.status() == (kRegular | kAnonPrivate) && !(one.flags() & (MAP_HUGETLB | MAP_GROWSDOWN));
  auto small = [](const rpc::Vma& vma) { return vma.end() - vma.start() < kHugePage; };
  return plain && one.end() == next.start() && kind_of(one) == kind_of(next) &&
         (advised(one) == advised(next) || small(advised(one) ? next : one));
}

}  // namespace

int join_mappings(const std::string& images_dir) {
  int joined = 0;
  for (const std::string& name : names_like(images_dir, "mm-")) {
    std::string path = images_dir + "/" + name;
    Image image = read_image(path);
    if (image.entries.size() != 1)
      throw Error(Code::kCorrupt, "read image", path, "it has not one entry");
    rpc::Mm mm = parse_entry<rpc::Mm>(image.entries[0], path);
    auto& vmas = *mm.mutable_vmas();
    int kept = 0;
    for (int i = 1; i < vmas.size(); ++i) {
      rpc::Vma& last = vmas[kept];
      if (can_join(last, vmas[i])) {
        last.set_end(vmas[i].end());
        if (advised(vmas[i])) last.set_madv(vmas[i].madv());
      } else if (++kept != i) {
        vmas.SwapElements(kept, i);
      }
    }
    int fewer = vmas.size() - (kept + 1);
    if (vmas.empty() || fewer == 0) continue;
    vmas.DeleteSubrange(kept + 1, fewer);
    image.entries[0] = mm.SerializeAsString();
    write_file_atomic(path, image_bytes(image));
    joined += fewer;
  }
  return joined;
}

}  // namespace thaw::checkpoint
