#include "store/seekable.h"

#include <endian.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zstd.h>

#include <cerrno>
#include <cstring>

#include "store/tree.h"
#include "util/error.h"

namespace thaw::store {
namespace {

constexpr std::uint32_t kSkippableMagic = 0x184D2A5E, kSeekableMagic = 0x8F92EAB1;
constexpr std::uint8_t kChecksums = 1 << 7, kReserved = 0x7c;  // of the table's descriptor
constexpr std::size_t kHeader = 8, kFooter = 9;
// The library's default: what is left out above it is little, and it is twice as fast as level 5.
constexpr int kLevel = 3;

void put_u32(std::string& text, std::uint32_t value) {
  value = ::htole32(value);
  text.append(reinterpret_cast<const char*>(&value), sizeof value);
}

std::uint32_t u32_at(const char* bytes) {
  std::uint32_t value;
  std::memcpy(&value, bytes, sizeof value);
  return ::le32toh(value);
}

[[noreturn]] void broken(const std::string& path, const std::string& why) {
  throw Error(Code::kCorrupt, "read compressed file", path, why);
}

// All of `size` bytes, or less at the end of the file.
std::size_t read_some(const Fd& file, char* to, std::size_t size, const std::string& path) {
  std::size_t got = 0;
  while (got < size) {
    ssize_t n = ::read(file.get(), to + got, size - got);
    if (n < 0 && errno == EINTR) continue;
    check(n, "read", path);
    if (n == 0) break;
    got += static_cast<std::size_t>(n);
  }
  return got;
}

void read_at(const Fd& file, char* to, std::size_t size, std::uint64_t offset,
             const std::string& path) {
  while (size > 0) {
    ssize_t n = ::pread(file.get(), to, size, static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    check(n, "read", path);
    if (n == 0) broken(path, "it is cut short");
    to += n;
    size -= static_cast<std::size_t>(n);
    offset += static_cast<std::uint64_t>(n);
  }
}

}  // namespace

std::uint64_t compress_seekable(const Fd& from, const Fd& to, const std::string& path,
                                const FrameProgress& between) {
  std::unique_ptr<ZSTD_CCtx, std::size_t (*)(ZSTD_CCtx*)> context(::ZSTD_createCCtx(),
                                                                  ::ZSTD_freeCCtx);
  if (!context) throw Error(Code::kExhausted, "compress", path, "there is no memory for it");
  ::ZSTD_CCtx_setParameter(context.get(), ZSTD_c_compressionLevel, kLevel);
  ::ZSTD_CCtx_setParameter(context.get(), ZSTD_c_checksumFlag, 1);
  std::string piece(kFrameBytes, '\0'), out(::ZSTD_compressBound(kFrameBytes), '\0'), table;
  std::uint64_t read = 0, written = 0;
  std::uint32_t frames = 0;
  while (std::size_t size = read_some(from, piece.data(), piece.size(), path)) {
    std::size_t stored =
        ::ZSTD_compress2(context.get(), out.data(), out.size(), piece.data(), size);
    if (::ZSTD_isError(stored))
      throw Error(Code::kInternal, "compress", path, ::ZSTD_getErrorName(stored));
    write_all(to, std::string_view(out).substr(0, stored), path);
    put_u32(table, static_cast<std::uint32_t>(stored));
    put_u32(table, static_cast<std::uint32_t>(size));
    ++frames;
    read += size;
    written += stored;
    if (between) between(read, written);
    if (size < piece.size()) break;
  }
  std::string tail;
  put_u32(tail, kSkippableMagic);
  put_u32(tail, static_cast<std::uint32_t>(table.size() + kFooter));
  tail += table;
  put_u32(tail, frames);
  tail += '\0';  // no checksums in the table
  put_u32(tail, kSeekableMagic);
  write_all(to, tail, path);
  return written + tail.size();
}

SeekableFile::SeekableFile(const std::string& path)
    : path_(path), file_(Fd::open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK)) {
  struct stat info;
  check(::fstat(file_.get(), &info), "stat", path);
  if (!S_ISREG(info.st_mode)) broken(path, "it is not a regular file");
  stored_ = static_cast<std::uint64_t>(info.st_size);
  if (stored_ < kHeader + kFooter) broken(path, "it is too short");
  char footer[kFooter];
  read_at(file_, footer, kFooter, stored_ - kFooter, path);
  if (u32_at(footer + 5) != kSeekableMagic) broken(path, "it does not end with a seek table");
  auto descriptor = static_cast<std::uint8_t>(footer[4]);
  if (descriptor & kReserved) broken(path, "its seek table is of an unknown kind");
  std::size_t entry = descriptor & kChecksums ? 12 : 8;
  std::uint64_t count = u32_at(footer);
  std::uint64_t size = count * entry + kHeader + kFooter;
  if (size > stored_) broken(path, "its seek table is longer than the file");
  std::string table(static_cast<std::size_t>(size), '\0');
  read_at(file_, table.data(), table.size(), stored_ - size, path);
  if (u32_at(table.data()) != kSkippableMagic ||
      u32_at(table.data() + 4) != static_cast<std::uint32_t>(size - kHeader))
    broken(path, "its seek table does not begin where it should");
  std::uint64_t at = 0;
  frames_.reserve(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < count; ++i) {
    const char* bytes = table.data() + kHeader + i * entry;
    Frame frame{size_, at, u32_at(bytes + 4), u32_at(bytes)};
    if (frame.size == 0 || frame.size > kFrameBytes ||
        frame.stored > ::ZSTD_compressBound(kFrameBytes))
      broken(path, fmt::format("frame {} makes no sense", i));
    size_ += frame.size;
    at += frame.stored;
    frames_.push_back(frame);
  }
  if (at != stored_ - size) broken(path, "its frames and its seek table do not fit together");
}

FrameReader::FrameReader(const SeekableFile& file)
    : file_(file),
      context_(::ZSTD_createDCtx(), ::ZSTD_freeDCtx),
      stored_(::ZSTD_compressBound(kFrameBytes), '\0'),
      contents_(kFrameBytes, '\0') {
  if (!context_)
    throw Error(Code::kExhausted, "read compressed file", file.path(), "there is no memory for it");
}

std::string_view FrameReader::read(std::size_t number) {
  const SeekableFile::Frame& frame = file_.frames_.at(number);
  read_at(file_.file_, stored_.data(), frame.stored, frame.stored_at, file_.path_);
  std::size_t size = ::ZSTD_decompressDCtx(context_.get(), contents_.data(), contents_.size(),
                                           stored_.data(), frame.stored);
  if (::ZSTD_isError(size))
    broken(file_.path_, fmt::format("frame {}: {}", number, ::ZSTD_getErrorName(size)));
  if (size != frame.size)
    broken(file_.path_,
           fmt::format("frame {} has {} bytes instead of {}", number, size, frame.size));
  return std::string_view(contents_).substr(0, size);
}

std::string digest_seekable(const SeekableFile& file, const std::function<void()>& between) {
  FrameReader reader(file);
  std::size_t frame = 0;
  return digest_pieces([&]() -> std::string_view {
    if (between && frame > 0) between();
    return frame < file.frames() ? reader.read(frame++) : std::string_view();
  });
}

}  // namespace thaw::store
