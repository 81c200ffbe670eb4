// Which memory of a checkpointed process lies where in the page images, and what of it has not been
// read yet.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace thaw::checkpoint {

inline constexpr std::uint64_t kPageSize = 4096;

// A run of pages that is still to be read. Adjacent runs that can be copied in one go are one
// piece; a piece never crosses a VMA's end.
struct Piece {
  std::uint64_t address = 0, length = 0;  // bytes
  std::uint64_t offset = 0;               // in the pages image
};

// The unread memory of one address space. Copied when the process forks.
class PageIndex {
 public:
  void add(const Piece& piece);  // in place of what was there
  // The part of the piece around `address` that lies in [address - before, address + after);
  // nullopt when nothing unread is there.
  std::optional<Piece> around(std::uint64_t address, std::uint64_t before,
                              std::uint64_t after) const;
  // The first unread piece inside [address, end), clipped.
  std::optional<Piece> next(std::uint64_t address, std::uint64_t end) const;
  // Unread pieces inside the range, clipped.
  std::vector<Piece> inside(std::uint64_t address, std::uint64_t length) const;
  std::optional<Piece> first() const;
  void remove(std::uint64_t address,
              std::uint64_t length);  // read, or unmapped, or given up by the program
  void move(std::uint64_t from, std::uint64_t to, std::uint64_t length);  // mremap
  bool empty() const { return pieces_.empty(); }
  std::uint64_t bytes() const { return bytes_; }

 private:
  struct Rest {
    std::uint64_t length, offset;
  };
  std::map<std::uint64_t, Rest> pieces_;  // by address
  std::uint64_t bytes_ = 0;               // of all pieces
};

struct ProcessMemory {
  PageIndex lazy;          // what CRIU leaves to a page service
  std::string pages_file;  // below the images folder
  // Where the command line and the environment lie, [start, end), whole pages. The kernel reads
  // them for /proc/PID/cmdline and environ without waiting for a page service: what is missing then
  // reads as empty.
  std::uint64_t arguments_start = 0, arguments_end = 0;
};

// Reads pagemap-PID.img and mm-PID.img. Checks every run against the pages image's size. Error
// kCorrupt.
ProcessMemory read_process_memory(const std::string& images_dir, int pid);

}  // namespace thaw::checkpoint
