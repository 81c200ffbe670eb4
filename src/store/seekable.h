// zstd's seekable format, version 0.1.0
// (contrib/seekable_format/zstd_seekable_compression_format.md of zstd): frames that can be
// decompressed each by itself, then a skippable frame with their sizes. `zstd -d` reads such a
// file, too. Ours have frames of kFrameBytes and, of what the format leaves open, a checksum within
// each frame and none in the table.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "util/fd.h"

struct ZSTD_DCtx_s;

namespace thaw::store {

// Contents of a frame; the last one may have less.
inline constexpr std::size_t kFrameBytes = 1u << 20;

// Called after each frame with the bytes read and written so far; it may throw.
using FrameProgress = std::function<void(std::uint64_t read, std::uint64_t written)>;

// Compresses `from`, from where it stands to its end, into `to`. How many bytes were written.
std::uint64_t compress_seekable(const Fd& from, const Fd& to, const std::string& path,
                                const FrameProgress& between = {});

// An open file in this format. Its table is read and checked against the file's size; nothing of
// the contents is. May be read by several threads, each with a FrameReader of its own.
class SeekableFile {
 public:
  // Error kCorrupt when it is not in this format, or has a frame of more than kFrameBytes.
  explicit SeekableFile(const std::string& path);
  const std::string& path() const { return path_; }
  std::uint64_t size() const { return size_; }  // of the contents
  std::uint64_t stored() const { return stored_; }
  std::size_t frames() const { return frames_.size(); }
  std::uint64_t offset(std::size_t frame) const { return frames_[frame].offset; }

 private:
  friend class FrameReader;
  struct Frame {
    std::uint64_t offset, stored_at;
    std::uint32_t size, stored;
  };
  std::string path_;
  Fd file_;
  std::vector<Frame> frames_;
  std::uint64_t size_ = 0, stored_ = 0;
};

class FrameReader {
 public:
  explicit FrameReader(const SeekableFile& file);
  // The contents of a frame, until the next call. Error kCorrupt when they are not what the table
  // says, or do not fit the frame's checksum.
  std::string_view read(std::size_t frame);

 private:
  const SeekableFile& file_;
  std::unique_ptr<ZSTD_DCtx_s, std::size_t (*)(ZSTD_DCtx_s*)> context_;
  std::string stored_, contents_;
};

// sha256 hex of all its contents, in order. `between`: called after each frame; it may throw.
std::string digest_seekable(const SeekableFile& file, const std::function<void()>& between = {});

}  // namespace thaw::store
