// What starts of a checkpoint touch, so that later ones read it ahead. A hint: without it a restore
// is right, too, and only slower.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace thaw::checkpoint {

// Memory of a process, in bytes. The process id is the image's.
struct TouchedRange {
  int pid = 0;
  std::uint64_t address = 0, length = 0;
};

// A record has no more ranges than this in a part, and this much in the part about service: a
// program that reads all its memory is not to make every start read it.
inline constexpr std::size_t kMostRanges = 50'000;
inline constexpr std::uint64_t kMostServing = 32 << 20;

// Sorted by process and address; ranges that overlap or lie up to four pages apart become one:
// copying a few pages too many costs less than a fault. Where more than `most` would be left, those
// that lie further apart become one, too.
std::vector<TouchedRange> merge_ranges(std::vector<TouchedRange> ranges,
                                       std::size_t most = kMostRanges);

// As bytes, to be passed on. Error kCorrupt when they make no sense.
std::string encode_ranges(const std::vector<TouchedRange>& ranges);
std::vector<TouchedRange> decode_ranges(std::string_view bytes);

struct TouchRecord {
  std::vector<TouchedRange> start;    // until the program was ready
  std::vector<TouchedRange> serving;  // in its first moments of service
  bool served = false;                // such moments were seen, whatever was touched in them
};

// It lies beside the manifest, as the file `record` with a MAC, and is of this checkpoint alone.
// nullopt when there is none, or it is not ours.
std::optional<TouchRecord> read_record(const std::string& directory, const std::string& id,
                                       const std::string& key);
void write_record(const std::string& directory, const std::string& id, const TouchRecord& record,
                  const std::string& key);
// Of one that was checked already: all it names, in the order in which it is needed. Nothing when
// there is none.
std::vector<TouchedRange> read_working_set(const std::string& directory);

}  // namespace thaw::checkpoint
