#include "image/layer_size.h"

#include <fcntl.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include <charconv>

#include "util/error.h"
#include "util/fd.h"
#include "util/file.h"

namespace thaw::image {
namespace {

constexpr std::size_t kBlock = 512;
// Of names and the like; Go's reader has the same.
constexpr std::uint64_t kMostExtension = 1 << 20;
constexpr std::size_t kPiece = 1 << 18;

std::string_view text_at(std::string_view block, std::size_t at, std::size_t length) {
  std::string_view field = block.substr(at, length);
  return field.substr(0, field.find('\0'));
}

bool has_contents(char kind) { return kind < '1' || kind > '6'; }

std::uint64_t padded(std::uint64_t size) { return (size + kBlock - 1) / kBlock * kBlock; }

[[noreturn]] void broken(const std::string& blob, const char* what) {
  throw Error(Code::kCorrupt, "read layer", blob, what, "import the image again");
}

// One stream after the other, as gzip(1) and umoci read them.
class Inflater {
 public:
  explicit Inflater(std::string blob) : blob_(std::move(blob)) {
    if (::inflateInit2(&stream_, 15 + 16) != Z_OK) broken(blob_, "zlib cannot be started");
  }
  Inflater(const Inflater&) = delete;
  Inflater& operator=(const Inflater&) = delete;
  ~Inflater() { ::inflateEnd(&stream_); }

  void read(std::string_view piece, TarSize& size) {
    // zlib does not write to what it reads.
    stream_.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(piece.data()));
    stream_.avail_in = static_cast<unsigned>(piece.size());
    while (stream_.avail_in || full_) {
      if (ended_ && ::inflateReset(&stream_) != Z_OK) broken(blob_, "zlib cannot be started");
      ended_ = false;
      stream_.next_out = reinterpret_cast<Bytef*>(out_.data());
      stream_.avail_out = static_cast<unsigned>(out_.size());
      int result = ::inflate(&stream_, Z_NO_FLUSH);
      size.read({out_.data(), out_.size() - stream_.avail_out});
      full_ = stream_.avail_out == 0;
      ended_ = result == Z_STREAM_END;
      if (result == Z_BUF_ERROR) full_ = false;  // nothing is left to be had from what there is
      if (result != Z_OK && result != Z_STREAM_END && result != Z_BUF_ERROR)
        broken(blob_, "it is no gzip");
      if (ended_) full_ = false;
    }
  }

 private:
  std::string blob_;
  z_stream stream_{};
  std::string out_ = std::string(kPiece, '\0');
  bool full_ = false, ended_ = false;
};

class Decompressor {
 public:
  explicit Decompressor(std::string blob)
      : blob_(std::move(blob)), stream_(::ZSTD_createDCtx(), ::ZSTD_freeDCtx) {
    if (!stream_) broken(blob_, "zstd cannot be started");
  }

  void read(std::string_view piece, TarSize& size) {
    ZSTD_inBuffer in{piece.data(), piece.size(), 0};
    for (bool full = true; in.pos < in.size || full;) {
      ZSTD_outBuffer out{out_.data(), out_.size(), 0};
      if (::ZSTD_isError(::ZSTD_decompressStream(stream_.get(), &out, &in)))
        broken(blob_, "it is no zstd");
      size.read({out_.data(), out.pos});
      full = out.pos == out.size;
    }
  }

 private:
  std::string blob_;
  std::unique_ptr<ZSTD_DCtx, std::size_t (*)(ZSTD_DCtx*)> stream_;
  std::string out_ = std::string(kPiece, '\0');
};

}  // namespace

void refuse_size(const UnpackLimits& limits, const std::string& object, const std::string& what) {
  throw Error(Code::kExhausted, "import image", object,
              fmt::format("{} is larger than {}, the limit by {}", what, format_bytes(limits.bytes),
                          limits.bound),
              "if it is meant to be that large, make room for it");
}

void TarSize::refuse(const std::string& cause) const {
  throw Error(Code::kExhausted, "import image", object_, cause, "import another image");
}

// Octal, or binary when its first bit is set (GNU's).
std::uint64_t TarSize::number(std::size_t at, std::size_t length) const {
  std::string_view field = std::string_view(block_).substr(at, length);
  auto wrong = [&] {
    throw Error(Code::kCorrupt, "import image", object_, "a size in a layer is no number",
                "build it with another tool");
  };
  std::uint64_t value = 0;
  if (static_cast<unsigned char>(field[0]) & 0x80) {
    if (static_cast<unsigned char>(field[0]) & 0x40) wrong();  // negative
    for (std::size_t i = 0; i < length; ++i) {
      if (value >> 55) wrong();
      value = value << 8 | (static_cast<unsigned char>(field[i]) & (i ? 0xff : 0x3f));
    }
    return value;
  }
  while (!field.empty() && (field.front() == ' ' || field.front() == '\0')) field.remove_prefix(1);
  field = field.substr(0, field.find_first_of(std::string_view(" \0", 2)));
  auto [end, error] = std::from_chars(field.data(), field.data() + field.size(), value, 8);
  if (!field.empty() && (error != std::errc() || end != field.data() + field.size())) wrong();
  return value;
}

void TarSize::take(std::uint64_t bytes) {
  if (bytes > limits_.bytes - bytes_) refuse_size(limits_, object_, "what its layers hold");
  bytes_ += bytes;
}

void TarSize::check_depth(std::string_view name) const {
  std::size_t depth = 0;
  for (std::size_t at = 0; at < name.size();) {
    std::size_t end = std::min(name.find('/', at), name.size());
    depth += end > at;
    at = end + 1;
  }
  if (depth > limits_.depth)
    refuse(fmt::format("a file in it lies more than {} folders deep", limits_.depth));
}

void TarSize::begin() {
  block_.clear();
  extension_.clear();
  wanted_ = skip_ = size_ = sparse_size_ = 0;
  has_size_ = map_goes_on_ = false;
  folder_.reset();
}

void TarSize::read(std::string_view piece) {
  take(piece.size());
  while (!piece.empty()) {
    std::uint64_t& left = wanted_ ? wanted_ : skip_;
    if (left && !map_goes_on_) {
      auto count = static_cast<std::size_t>(std::min<std::uint64_t>(left, piece.size()));
      if (wanted_) extension_.append(piece.substr(0, count));
      bool whole = wanted_ && wanted_ == count;
      left -= count;
      piece.remove_prefix(count);
      if (whole) extension();
      continue;
    }
    std::size_t count = std::min(kBlock - block_.size(), piece.size());
    block_.append(piece.substr(0, count));
    piece.remove_prefix(count);
    if (block_.size() < kBlock) return;
    if (map_goes_on_)
      map_goes_on_ = block_[504] != 0;
    else if (block_.find_first_not_of('\0') != std::string::npos)
      header();
    block_.clear();
  }
}

void TarSize::header() {
  char kind = block_[156];
  std::uint64_t size = number(124, 12);
  if (kind == 'x' || kind == 'L' || kind == 'g' || kind == 'K') {
    if (size > kMostExtension)
      refuse("a name in it is longer than " + format_bytes(kMostExtension));
    kind_ = kind;
    extension_.clear();
    wanted_ = size;
    skip_ = padded(size) - size;
    return;
  }
  if (++files_ > limits_.files) refuse(fmt::format("it has more than {} files", limits_.files));
  check_depth(text_at(block_, 345, 155));
  check_depth(text_at(block_, 0, 100));
  if (has_size_) size = size_;
  if (size > (1ull << 60)) refuse("a file in it is larger than any disk");
  // What a sparse file stands for, beyond what is stored of it: the tool may write all of it.
  std::uint64_t whole = std::max(sparse_size_, kind == 'S' ? number(483, 12) : 0);
  if (whole > size) take(whole - size);
  // An old way to write a folder.
  bool folder = !kind && folder_.value_or(text_at(block_, 0, 100).ends_with('/'));
  if (has_contents(kind) && !folder) skip_ = padded(size);
  map_goes_on_ = kind == 'S' && block_[482];  // it stands before the contents
  size_ = sparse_size_ = 0;
  has_size_ = false;
  folder_.reset();
}

// Records of pax, "LENGTH KEY=VALUE\n", or GNU's long name.
void TarSize::extension() {
  auto name = [this](std::string_view text) {
    check_depth(text);
    folder_ = text.ends_with('/');
  };
  if (kind_ == 'L') name(text_at(extension_, 0, extension_.size()));
  if (kind_ != 'x') return;
  for (std::string_view left = extension_; !left.empty();) {
    std::size_t length = 0;
    auto [end, error] = std::from_chars(left.data(), left.data() + left.size(), length);
    auto digits = static_cast<std::size_t>(end - left.data());
    if (error != std::errc() || length <= digits || length > left.size()) return;  // umoci says so
    std::string_view record = left.substr(digits, length - digits);
    left.remove_prefix(length);
    if (record.starts_with(' ')) record.remove_prefix(1);
    if (record.ends_with('\n')) record.remove_suffix(1);
    std::size_t equals = record.find('=');
    if (equals == std::string_view::npos) continue;
    std::string_view key = record.substr(0, equals), value = record.substr(equals + 1);
    if (key == "path" || key == "GNU.sparse.name") name(value);
    bool sparse = key == "GNU.sparse.realsize" || key == "GNU.sparse.size";
    if (key != "size" && !sparse) continue;
    std::uint64_t number = 0;
    auto [last, wrong] = std::from_chars(value.data(), value.data() + value.size(), number);
    if (wrong != std::errc() || last != value.data() + value.size())
      refuse("a size in it is no number");
    if (sparse)
      sparse_size_ = std::max(sparse_size_, number);
    else
      size_ = number, has_size_ = true;
  }
}

void measure_layer(const std::string& blob, TarSize& size, const std::function<void()>& between) {
  Fd file = Fd::open(blob, O_RDONLY);
  std::string piece(kPiece, '\0');
  std::optional<Inflater> gzip;
  std::optional<Decompressor> zstd;
  size.begin();
  for (bool first = true;; first = false) {
    ssize_t count = check(::read(file.get(), piece.data(), piece.size()), "read", blob);
    if (count == 0) return;
    between();
    std::string_view data(piece.data(), static_cast<std::size_t>(count));
    if (first && data.starts_with("\x1f\x8b")) gzip.emplace(blob);
    if (first && data.starts_with("\x28\xb5\x2f\xfd")) zstd.emplace(blob);
    if (gzip)
      gzip->read(data, size);
    else if (zstd)
      zstd->read(data, size);
    else
      size.read(data);
  }
}

}  // namespace thaw::image
