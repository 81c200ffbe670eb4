#include "checkpoint/rest.h"

#include <gmock/gmock.h>
#include <sys/stat.h>
#include <unistd.h>

#include <random>

#include "util/error.h"
#include "util/file.h"

namespace thaw::checkpoint {
namespace {

class RestTest : public ::testing::Test {
 protected:
  RestTest() {
    make_directories(at("images"));
    write_file(at("images/core-1.img"), "core");
    write_file(at("images/pages-1.img"), memory(3 << 20));
    write_file(at("images/pages-2.img"), memory(1 << 20));
    write_file(at("images/pages-3.img"), "small");
    ::truncate(at("images/pages-1.img").c_str(), 5 << 20);  // a hole
    manifest_.id = "c0ffee";
    seal(manifest_, directory_, key_);
  }
  ~RestTest() override { remove_tree(directory_); }

  static std::string memory(std::size_t size) {
    std::string text(size, '\0');
    std::mt19937_64 random(size);
    for (std::size_t i = 0; i < size; i += 16) text[i] = static_cast<char>(random());
    return text;
  }
  std::string at(const std::string& name) const { return directory_ + "/" + name; }
  void rest() {
    Compressed made = compress_memory(manifest_, directory_, [] {});
    ASSERT_EQ(made.files.size(), 2u);
    ASSERT_TRUE(settle_memory(made, directory_));
    tidy_rest(directory_);
  }
  std::string verify() const {
    try {
      Verifier(key_).verify_anew(directory_, [] {});
      return "";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::kCorrupt) << error.what();
      return error.what();
    }
  }
  void flip(const std::string& name, std::size_t byte) const {
    std::string bytes = read_file(at(name));
    bytes.at(byte) = static_cast<char>(bytes[byte] ^ 0x10);
    write_file(at(name), bytes);
  }

  std::string directory_ = "/tmp/thaw-rest-" + random_hex(12), key_ = std::string(32, 'k');
  Manifest manifest_;
};

TEST_F(RestTest, ThereAndBack) {
  std::string before = read_file(at("images/pages-1.img"));
  EXPECT_EQ(resting_memory(directory_), std::nullopt);
  rest();
  EXPECT_FALSE(exists(at("images/pages-1.img")));
  EXPECT_TRUE(exists(at("images/pages-3.img")));
  EXPECT_EQ(resting_memory(directory_), std::filesystem::file_size(at("rest/pages-1.img.zst")) +
                                            std::filesystem::file_size(at("rest/pages-2.img.zst")) +
                                            5);
  EXPECT_EQ(verify(), "");
  auto [more, passing] = inflated_bytes(manifest_, directory_);
  EXPECT_EQ(more + passing, 6u << 20);

  inflate_memory(manifest_, directory_);
  EXPECT_TRUE(read_file(at("images/pages-1.img")) == before);
  EXPECT_FALSE(exists(at("rest")));
  EXPECT_FALSE(at_rest(directory_));
  EXPECT_EQ(verify(), "");
  struct stat info;
  ASSERT_EQ(::stat(at("images/pages-1.img").c_str(), &info), 0);
  EXPECT_LE(info.st_blocks * 512, 4 << 20) << "the hole is filled";
}

TEST_F(RestTest, DamageOfACompressedFileIsFoundAtRestAndWhenItIsInflated) {
  rest();
  std::size_t size = std::filesystem::file_size(at("rest/pages-1.img.zst"));
  for (std::size_t byte : {std::size_t{0}, size / 3, size / 2, size - 1}) {
    flip("rest/pages-1.img.zst", byte);
    EXPECT_NE(verify(), "") << byte;
    EXPECT_THROW(inflate_memory(manifest_, directory_), Error) << byte;
    EXPECT_FALSE(exists(at("images/pages-1.img")));
    flip("rest/pages-1.img.zst", byte);
  }
  EXPECT_EQ(verify(), "");
}

// Good frames of something else: only the manifest's digest can tell.
TEST_F(RestTest, AnothersContentsOfTheSameSize) {
  rest();
  std::string other = directory_ + "-other";
  make_directories(other + "/images");
  std::string contents = memory(5 << 20);
  write_file(other + "/images/pages-1.img", contents);
  Manifest manifest;
  manifest.id = "other";
  seal(manifest, other, key_);
  compress_memory(manifest, other, [] {});
  std::filesystem::rename(other + "/rest/pages-1.img.zst", at("rest/pages-1.img.zst"));
  remove_tree(other);
  EXPECT_THAT(verify(), ::testing::HasSubstr("sha256"));
  inflate_memory(manifest_, directory_);
  EXPECT_THAT(verify(), ::testing::HasSubstr("sha256"));
}

TEST_F(RestTest, AnotherSizeIsRefusedBeforeAnythingIsWritten) {
  rest();
  std::filesystem::rename(at("rest/pages-2.img.zst"), at("rest/pages-1.img.zst"));
  EXPECT_THAT(verify(), ::testing::HasSubstr("bytes instead of"));
  EXPECT_THROW(inflate_memory(manifest_, directory_), Error);
}

TEST_F(RestTest, WhatIsNotAsItWasSealedIsNotCompressed) {
  flip("images/pages-1.img", 77);
  EXPECT_THROW(compress_memory(manifest_, directory_, [] {}), Error);
  EXPECT_TRUE(exists(at("images/pages-1.img")));
  tidy_rest(directory_);
  EXPECT_FALSE(exists(at("rest")));
}

TEST_F(RestTest, HalfDoneInEitherDirection) {
  // Compressed, and the plain files not removed.
  Compressed made = compress_memory(manifest_, directory_, [] {});
  EXPECT_FALSE(at_rest(directory_));
  EXPECT_EQ(verify(), "");
  // One of them removed: each is at rest by itself.
  std::filesystem::remove(at("images/pages-1.img"));
  EXPECT_TRUE(at_rest(directory_));
  EXPECT_EQ(verify(), "");
  write_file(at("rest/pages-1.img.half"), "half");
  tidy_rest(directory_);
  EXPECT_FALSE(exists(at("rest/pages-1.img.half")));
  EXPECT_FALSE(exists(at("rest/pages-2.img.zst")));
  EXPECT_EQ(verify(), "");
  // What was made is gone: nothing plain may go.
  EXPECT_FALSE(settle_memory(made, directory_));
  EXPECT_TRUE(exists(at("images/pages-2.img")));
  inflate_memory(manifest_, directory_);
  EXPECT_EQ(verify(), "");
}

TEST_F(RestTest, MemoryThatHardlyGetsSmallerStaysAsItIs) {
  std::mt19937_64 random(3);
  for (const char* name : {"images/pages-1.img", "images/pages-2.img"}) {
    std::string noise(1 << 20, '\0');
    for (char& byte : noise) byte = static_cast<char>(random());
    write_file(at(name), noise);
  }
  seal(manifest_, directory_, key_);
  EXPECT_TRUE(compress_memory(manifest_, directory_, [] {}).files.empty());
  EXPECT_FALSE(exists(at("rest")));
}

TEST_F(RestTest, ALinkIsNoImage) {
  rest();
  std::filesystem::rename(at("rest/pages-1.img.zst"), at("elsewhere"));
  std::filesystem::create_symlink("../elsewhere", at("rest/pages-1.img.zst"));
  EXPECT_NE(verify(), "");
  EXPECT_THROW(inflate_memory(manifest_, directory_), Error);
}

}  // namespace
}  // namespace thaw::checkpoint
