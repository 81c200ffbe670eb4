#include "store/seekable.h"

#include <fcntl.h>
#include <gmock/gmock.h>

#include <random>

#include "util/error.h"
#include "util/file.h"
#include "util/process.h"

namespace thaw::store {
namespace {

class SeekableTest : public ::testing::Test {
 protected:
  SeekableTest() { make_directories(directory_); }
  ~SeekableTest() override { remove_tree(directory_); }

  std::string at(const std::string& name) const { return directory_ + "/" + name; }
  std::uint64_t compress(const std::string& contents) {
    write_file(at("plain"), contents);
    Fd to = Fd::open(at("small"), O_WRONLY | O_CREAT | O_TRUNC);
    return compress_seekable(Fd::open(at("plain"), O_RDONLY), to, at("small"));
  }
  // Two full frames and a part of one; half of each is random.
  static std::string mixed() {
    std::string text(2 * kFrameBytes + 12345, 'x');
    std::mt19937_64 random(1);
    for (std::size_t i = 0; i < text.size(); i += 2) text[i] = static_cast<char>(random());
    return text;
  }
  std::string why_not(const std::string& bytes) {
    write_file(at("small"), bytes);
    try {
      digest_seekable(SeekableFile(at("small")));
      return "";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::kCorrupt) << error.what();
      return error.what();
    }
  }

  std::string directory_ = "/tmp/thaw-seekable-" + random_hex(12);
};

TEST_F(SeekableTest, EachFrameIsReadByItself) {
  std::string contents = mixed();
  std::uint64_t written = compress(contents);
  EXPECT_EQ(written, std::filesystem::file_size(at("small")));
  SeekableFile file(at("small"));
  ASSERT_EQ(file.frames(), 3u);
  EXPECT_EQ(file.size(), contents.size());
  FrameReader reader(file);
  for (std::size_t frame : {2u, 0u, 1u, 2u})
    EXPECT_TRUE(reader.read(frame) == contents.substr(file.offset(frame), kFrameBytes)) << frame;
  EXPECT_EQ(digest_seekable(file), sha256_hex(contents));
}

// The format is zstd's own: its program, which knows nothing of us, reads all of it.
TEST_F(SeekableTest, ZstdReadsIt) {
  std::string contents = mixed();
  compress(contents);
  RunResult result =
      run({"zstd", "-q", "-d", "-f", at("small"), "-o", at("again")}, Deadline::after_ms(30'000));
  ASSERT_TRUE(result.ok()) << result.why();
  EXPECT_TRUE(read_file(at("again")) == contents);
}

TEST_F(SeekableTest, Lengths) {
  for (std::size_t size : {std::size_t{0}, std::size_t{1}, kFrameBytes - 1, kFrameBytes,
                           kFrameBytes + 1, 3 * kFrameBytes}) {
    std::string contents(size, 'y');
    compress(contents);
    SeekableFile file(at("small"));
    EXPECT_EQ(file.size(), size);
    EXPECT_EQ(file.frames(), (size + kFrameBytes - 1) / kFrameBytes);
    EXPECT_EQ(digest_seekable(file), sha256_hex(contents));
  }
}

TEST_F(SeekableTest, EveryByteCounts) {
  std::string contents(3 * 4096, '\0');
  std::mt19937_64 random(2);
  for (std::size_t i = 0; i < 4096; ++i) contents[i] = static_cast<char>(random() % 4);
  compress(contents);
  std::string whole = read_file(at("small")), right = sha256_hex(contents);
  for (std::size_t i = 0; i < whole.size(); ++i) {
    std::string bytes = whole;
    bytes[i] = static_cast<char>(bytes[i] ^ 0x41);
    write_file(at("small"), bytes);
    try {
      // A bit that nothing depends on may be another one; the contents may not.
      EXPECT_EQ(digest_seekable(SeekableFile(at("small"))), right) << "byte " << i;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::kCorrupt) << error.what();
    }
  }
}

TEST_F(SeekableTest, CutShortOrLonger) {
  compress(std::string(100'000, 'z'));
  std::string whole = read_file(at("small"));
  for (std::size_t size = 0; size < whole.size(); ++size)
    EXPECT_NE(why_not(whole.substr(0, size)), "") << size;
  EXPECT_NE(why_not(whole + "x"), "");
  EXPECT_NE(why_not("x" + whole), "");
}

// A table that promises more than there is is refused before anything is made as large.
TEST_F(SeekableTest, TablesThatLie) {
  compress(std::string(100'000, 'z'));
  std::string whole = read_file(at("small"));
  std::size_t table = whole.size() - 9 - 8;
  auto with = [&](std::size_t at, std::uint32_t value) {
    std::string bytes = whole;
    std::memcpy(bytes.data() + at, &value, sizeof value);
    return bytes;
  };
  EXPECT_THAT(why_not(with(whole.size() - 9, 0xffffffff)), ::testing::HasSubstr("longer"));
  EXPECT_THAT(why_not(with(table + 4, 0xffffffff)), ::testing::HasSubstr("no sense"));
  EXPECT_THAT(why_not(with(table + 4, 0)), ::testing::HasSubstr("no sense"));
  EXPECT_THAT(why_not(with(table + 4, 99'999)), ::testing::HasSubstr("frame 0"));
  EXPECT_THAT(why_not(with(table, 1)), ::testing::HasSubstr("fit together"));
}

}  // namespace
}  // namespace thaw::store
