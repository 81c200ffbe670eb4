// Shared anonymous memory of a checkpoint. To CRIU 4.2 it is a memfd named /dev/zero; at a restore
// it makes a new one, maps it and reads the contents into the mapping, with a page fault for each
// page. Thaw hands it memfds instead, which processes of Thaw's fill beside it, by writing: half
// the processor time, and CRIU goes on meanwhile.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint/page_index.h"
#include "util/clock.h"
#include "util/fd.h"
#include "util/process.h"

namespace thaw::checkpoint {

// So many segments at most; CRIU restores the others.
inline constexpr std::size_t kMostShared = 4;

struct SharedSegment {
  std::size_t number = 0;  // below kMostShared
  std::uint64_t size = 0;  // bytes
  std::uint32_t uid = 0, gid = 0, mode = 0;
  std::string pages_file;     // below the images folder
  std::vector<Piece> pieces;  // addresses count from the segment's start
};

// Gives the largest segments names of their own in memfd.img, by which CRIU can be told to inherit
// them. Only such as are mapped and nothing else: of no two descriptors the position is the same.
// Returns how many; none the second time. Error kCorrupt when the images make no sense.
int name_shared_memory(const std::string& images_dir);

// The segments that were named. Error kCorrupt, also when pages lie beyond the segment's end or the
// pages image's.
std::vector<SharedSegment> read_shared_memory(const std::string& images_dir);

// What CRIU calls a segment of that number.
std::string shared_key(std::size_t number);

// An empty one.
Fd make_shared_file();

// The processes that fill segments.
class SharedFill {
 public:
  // Gives each segment's file, files[number], its size and owner, and starts the processes, in the
  // groups whose cgroup.procs files are given: who writes a page is charged for it.
  SharedFill(const std::string& images_dir, const std::vector<SharedSegment>& segments,
             const std::vector<Fd>& files, const std::vector<std::string>& procs_files);
  // Until all is written. Errors: kTimeout, kUnavailable when a process was killed, else its errno.
  void wait(Deadline deadline);

 private:
  std::vector<Process> writers_;
};

}  // namespace thaw::checkpoint
