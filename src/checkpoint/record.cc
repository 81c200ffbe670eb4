#include "checkpoint/record.h"

#include <sys/stat.h>

#include <algorithm>
#include <cstring>

#include "checkpoint/manifest.h"
#include "checkpoint/page_index.h"
#include "util/error.h"
#include "util/file.h"

namespace thaw::checkpoint {
namespace {

constexpr std::uint64_t kGap = 4 * kPageSize;
constexpr std::size_t kMostBytes = 16 << 20;
constexpr std::size_t kMacDigits = 64;
constexpr const char* kName = "/record";
// The MAC is about this, too: the record of another checkpoint is none.
std::string subject(const std::string& id) { return "record of " + id + " "; }

// After the MAC: which kind of file this is, whether service was seen, and how many bytes the first
// part has.
struct Head {
  char kind[8] = {'t', 'h', 'a', 'w', 'r', 'e', 'c', '1'};
  std::uint64_t served = 0, start_bytes = 0;
};

TouchRecord parse(std::string_view bytes, const std::string& path) {
  Head head;
  if (bytes.size() < sizeof head || std::memcmp(bytes.data(), head.kind, sizeof head.kind) != 0)
    throw Error(Code::kCorrupt, "read record", path, "it is not one");
  std::memcpy(&head, bytes.data(), sizeof head);
  bytes.remove_prefix(sizeof head);
  if (head.start_bytes > bytes.size())
    throw Error(Code::kCorrupt, "read record", path, "it is cut short");
  TouchRecord record;
  record.served = head.served != 0;
  record.start = decode_ranges(bytes.substr(0, head.start_bytes));
  record.serving = decode_ranges(bytes.substr(head.start_bytes));
  return record;
}

}  // namespace

std::vector<TouchedRange> merge_ranges(std::vector<TouchedRange> ranges, std::size_t most) {
  std::sort(ranges.begin(), ranges.end(), [](const TouchedRange& a, const TouchedRange& b) {
    return a.pid != b.pid ? a.pid < b.pid : a.address < b.address;
  });
  constexpr std::uint64_t kWidest = 1ull << 46;  // then only the processes are apart
  for (std::uint64_t gap = kGap;; gap *= 2) {
    std::vector<TouchedRange> merged;
    for (const TouchedRange& range : ranges) {
      if (!merged.empty() && merged.back().pid == range.pid &&
          range.address <= merged.back().address + merged.back().length + gap) {
        TouchedRange& last = merged.back();
        last.length = std::max(last.length, range.address + range.length - last.address);
      } else {
        merged.push_back(range);
      }
    }
    if (merged.size() <= most || gap > kWidest) return merged;
    ranges = std::move(merged);
  }
}

std::string encode_ranges(const std::vector<TouchedRange>& ranges) {
  std::string bytes;
  bytes.reserve(ranges.size() * 3 * sizeof(std::uint64_t));
  for (const TouchedRange& range : ranges) {
    std::uint64_t words[3] = {static_cast<std::uint64_t>(range.pid), range.address, range.length};
    bytes.append(reinterpret_cast<const char*>(words), sizeof words);
  }
  return bytes;
}

std::vector<TouchedRange> decode_ranges(std::string_view bytes) {
  std::uint64_t words[3];
  if (bytes.size() % sizeof words != 0)
    throw Error(Code::kCorrupt, "read ranges of memory", fmt::format("{} bytes", bytes.size()),
                "they are cut short");
  std::vector<TouchedRange> ranges;
  for (std::size_t at = 0; at < bytes.size(); at += sizeof words) {
    std::memcpy(words, bytes.data() + at, sizeof words);
    ranges.push_back({static_cast<int>(words[0]), words[1], words[2]});
  }
  return ranges;
}

std::optional<TouchRecord> read_record(const std::string& directory, const std::string& id,
                                       const std::string& key) {
  std::string path = directory + kName;
  struct stat info;
  if (::lstat(path.c_str(), &info) != 0 || !S_ISREG(info.st_mode)) return std::nullopt;
  std::string bytes = read_file(path, kMostBytes);
  if (bytes.size() < kMacDigits) return std::nullopt;
  std::string body = bytes.substr(kMacDigits);
  if (!mac_fits(bytes.substr(0, kMacDigits), subject(id) + body, key)) return std::nullopt;
  return parse(body, path);
}

void write_record(const std::string& directory, const std::string& id, const TouchRecord& record,
                  const std::string& key) {
  std::string start = encode_ranges(record.start);
  Head head;
  head.served = record.served;
  head.start_bytes = start.size();
  std::string body(reinterpret_cast<const char*>(&head), sizeof head);
  body += start + encode_ranges(record.serving);
  write_file_atomic(directory + kName, mac_of(subject(id) + body, key) + body);
}

std::vector<TouchedRange> read_working_set(const std::string& directory) {
  std::string path = directory + kName;
  if (!exists(path)) return {};
  std::string bytes = read_file(path, kMostBytes);
  if (bytes.size() < kMacDigits) throw Error(Code::kCorrupt, "read record", path, "it is not one");
  TouchRecord record = parse(std::string_view(bytes).substr(kMacDigits), path);
  std::vector<TouchedRange> ranges = std::move(record.start);
  ranges.insert(ranges.end(), record.serving.begin(), record.serving.end());
  return ranges;
}

}  // namespace thaw::checkpoint
