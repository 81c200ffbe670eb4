#include "checkpoint/page_index.h"

#include <sys/stat.h>

#include "checkpoint/images.h"
#include "util/error.h"

namespace thaw::checkpoint {
void PageIndex::add(const Piece& piece) {
  remove(piece.address, piece.length);
  pieces_[piece.address] = {piece.length, piece.offset};
  bytes_ += piece.length;
}

std::optional<Piece> PageIndex::around(std::uint64_t address, std::uint64_t before,
                                       std::uint64_t after) const {
  auto next = pieces_.upper_bound(address);
  if (next == pieces_.begin()) return std::nullopt;
  auto [start, rest] = *std::prev(next);
  if (address >= start + rest.length) return std::nullopt;
  std::uint64_t from = address - start > before ? address - before : start;
  std::uint64_t to = std::min(start + rest.length, address + after);
  return Piece{from, to - from, rest.offset + (from - start)};
}

std::optional<Piece> PageIndex::next(std::uint64_t address, std::uint64_t end) const {
  auto at = pieces_.upper_bound(address);
  if (at != pieces_.begin()) --at;
  for (; at != pieces_.end() && at->first < end; ++at) {
    std::uint64_t from = std::max(at->first, address),
                  to = std::min(at->first + at->second.length, end);
    if (from < to) return Piece{from, to - from, at->second.offset + (from - at->first)};
  }
  return std::nullopt;
}

std::vector<Piece> PageIndex::inside(std::uint64_t address, std::uint64_t length) const {
  std::vector<Piece> found;
  std::uint64_t end = address + length;
  while (auto piece = next(address, end)) {
    found.push_back(*piece);
    address = piece->address + piece->length;
  }
  return found;
}

std::optional<Piece> PageIndex::first() const {
  if (pieces_.empty()) return std::nullopt;
  auto& [address, rest] = *pieces_.begin();
  return Piece{address, rest.length, rest.offset};
}

void PageIndex::remove(std::uint64_t address, std::uint64_t length) {
  std::uint64_t end = address + length;
  auto at = pieces_.upper_bound(address);
  if (at != pieces_.begin()) --at;
  while (at != pieces_.end() && at->first < end) {
    std::uint64_t start = at->first, stop = start + at->second.length, offset = at->second.offset;
    if (stop <= address) {
      ++at;
      continue;
    }
    at = pieces_.erase(at);
    bytes_ -= std::min(stop, end) - std::max(start, address);
    if (start < address) pieces_[start] = {address - start, offset};
    if (stop > end) {
      pieces_[end] = {stop - end, offset + (end - start)};
      return;
    }
  }
}

void PageIndex::move(std::uint64_t from, std::uint64_t to, std::uint64_t length) {
  std::vector<Piece> moved = inside(from, length);
  remove(from, length);
  remove(to, length);
  for (Piece& piece : moved) {
    piece.address = piece.address - from + to;
    add(piece);
  }
}

ProcessMemory read_process_memory(const std::string& images_dir, int pid) {
  std::string map_path = fmt::format("{}/pagemap-{}.img", images_dir, pid),
              mm_path = fmt::format("{}/mm-{}.img", images_dir, pid);
  std::vector<std::string> entries = read_image(map_path).entries,
                           mms = read_image(mm_path).entries;
  if (entries.empty() || mms.size() != 1)
    throw Error(Code::kCorrupt, "read image", map_path, "it has no head");
  ProcessMemory memory;
  memory.pages_file =
      fmt::format("pages-{}.img", parse_entry<rpc::PagemapHead>(entries[0], map_path).pages_id());
  struct stat info;
  check(::stat((images_dir + "/" + memory.pages_file).c_str(), &info), "stat",
        images_dir + "/" + memory.pages_file);

  rpc::Mm mm = parse_entry<rpc::Mm>(mms[0], mm_path);
  // Whole pages: nothing else can be copied.
  memory.arguments_start = mm.arg_start() & ~(kPageSize - 1);
  memory.arguments_end =
      (std::max(mm.arg_start(), mm.env_end()) + kPageSize - 1) & ~(kPageSize - 1);
  auto vma = mm.vmas().begin();
  std::uint64_t offset = 0;
  for (std::size_t i = 1; i < entries.size(); ++i) {
    rpc::PagemapEntry entry = parse_entry<rpc::PagemapEntry>(entries[i], map_path);
    std::uint64_t pages = pages_of(entry, map_path), address = entry.vaddr(),
                  end = address + pages * kPageSize;
    if (!(entry.flags() & kPresent)) continue;
    if (offset + pages * kPageSize > static_cast<std::uint64_t>(info.st_size))
      throw Error(Code::kCorrupt, "read image", map_path,
                  "it names pages beyond the end of " + memory.pages_file);
    // A run may span adjacent VMAs, a copy must not: it is split at their ends.
    while (address < end) {
      while (vma != mm.vmas().end() && vma->end() <= address) ++vma;
      if (vma == mm.vmas().end() || vma->start() > address)
        throw Error(Code::kCorrupt, "read image", map_path, "pages lie outside every mapping");
      std::uint64_t stop = std::min<std::uint64_t>(end, vma->end());
      if (entry.flags() & kLazy) memory.lazy.add({address, stop - address, offset});
      offset += stop - address;
      address = stop;
    }
  }
  return memory;
}

}  // namespace thaw::checkpoint
