#include "checkpoint/manifest.h"

#include <gmock/gmock.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <filesystem>

#include "util/error.h"
#include "util/file.h"

namespace thaw::checkpoint {
namespace {

// A sealed checkpoint, with something in each of its parts.
class ManifestTest : public ::testing::Test {
 protected:
  ManifestTest() {
    for (const char* folder : {"images", "fs.0/etc", "shm", "dev", "thaw"})
      make_directories(at(folder));
    for (const char* file :
         {"images/core-1.img", "images/pages-1.img", "fs.0/etc/layer", "shm/a", "dev/b", "thaw/c"})
      write_file(at(file), std::string("contents of ") + file);
    manifest_.id = "c0ffee";
    manifest_.fingerprint = "f1";
    manifest_.layers = {"fs.0"};
    seal(manifest_, directory_, key_);
  }
  ~ManifestTest() override { remove_tree(directory_); }

  std::string at(const std::string& name) const { return directory_ + "/" + name; }
  // What a new daemon says of it; "" when it is right.
  std::string verify() const {
    try {
      Verifier(key_).verify(directory_);
      return "";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::kCorrupt) << error.what();
      return error.what();
    }
  }
  // With the key, as a host that was broken into might.
  void sign_again(const std::function<void(nlohmann::json&)>& change) const {
    nlohmann::json json = to_json(manifest_);
    change(json);
    write_signed(at("manifest.json"), json, key_);
  }

  std::string directory_ = "/tmp/thaw-manifest-" + random_hex(12), key_ = std::string(32, 'k');
  Manifest manifest_;
};

TEST_F(ManifestTest, RightAsItWasSealed) { EXPECT_EQ(verify(), ""); }

TEST_F(ManifestTest, DamageInEachPart) {
  for (const char* file :
       {"images/core-1.img", "images/pages-1.img", "fs.0/etc/layer", "shm/a", "dev/b", "thaw/c"}) {
    std::string text = read_file(at(file));
    text[3] ^= 1;
    write_file(at(file), text);
    EXPECT_THAT(verify(), ::testing::HasSubstr("sha256")) << file;
    text[3] ^= 1;
    write_file(at(file), text);
    EXPECT_EQ(verify(), "") << file;
  }
}

// Bytes that this process has read so far.
std::uint64_t bytes_read() {
  return std::stoull(read_file("/proc/thread-self/io").substr(std::strlen("rchar: ")));
}

TEST_F(ManifestTest, ANewDaemonDoesNotReadTheMemoryAgain) {
  constexpr std::uint64_t kSize = 4 << 20;
  write_file(at("images/pages-1.img"), std::string(kSize, 'm'));
  seal(manifest_, directory_, key_);
  auto reads = [&] {
    std::uint64_t before = bytes_read();
    EXPECT_EQ(verify(), "");
    return bytes_read() - before;
  };
  EXPECT_LT(reads(), kSize / 2);
  // What is not known for sure is read, and known from then on.
  std::filesystem::copy_file(at("images/pages-1.img"), at("copy"));
  std::filesystem::rename(at("copy"), at("images/pages-1.img"));
  EXPECT_GE(reads(), kSize);
  EXPECT_LT(reads(), kSize / 2);
  for (const char* text : {"", "{}", "no JSON"}) {
    write_file(at("checked"), text);
    EXPECT_GE(reads(), kSize) << text;
  }
  // Another checkpoint's says nothing of this one.
  Manifest other = manifest_;
  other.id = "decade";
  seal(other, directory_, key_);
  write_signed(at("manifest.json"), to_json(manifest_), key_);
  EXPECT_GE(reads(), kSize);
}

TEST_F(ManifestTest, WhatWasAddedToTheImages) {
  write_file(at("images/inventory.img"), "");
  EXPECT_THAT(verify(), ::testing::HasSubstr("inventory.img was not there"));
}

TEST_F(ManifestTest, WhatWasAddedToAFolder) {
  write_file(at("thaw/more"), "");
  EXPECT_THAT(verify(), ::testing::HasSubstr("sha256"));
}

TEST_F(ManifestTest, OtherKindsOfFilesInPlaceOfAnImage) {
  std::string image = at("images/core-1.img"), aside = directory_ + ".aside";
  std::filesystem::rename(image, aside);
  auto refused = [&](const char* what) {
    EXPECT_THAT(verify(), ::testing::HasSubstr("not a regular file")) << what;
    remove_tree(image);
  };
  ASSERT_EQ(::symlink(aside.c_str(), image.c_str()), 0);
  refused("symbolic link");
  ASSERT_EQ(::mkfifo(image.c_str(), 0600), 0);
  refused("FIFO");
  ASSERT_EQ(::mknod(image.c_str(), S_IFBLK | 0600, makedev(1, 0)), 0);
  refused("device");
  make_directories(image);
  refused("folder");
  EXPECT_THAT(verify(), ::testing::HasSubstr("missing"));
  std::filesystem::rename(aside, image);
  EXPECT_EQ(verify(), "");
}

TEST_F(ManifestTest, LinksInPlaceOfFolders) {
  for (const char* folder : {"images", "fs.0", "thaw"}) {
    std::string aside = directory_ + ".aside";
    std::filesystem::rename(at(folder), aside);
    ASSERT_EQ(::symlink(aside.c_str(), at(folder).c_str()), 0);
    EXPECT_THAT(verify(), ::testing::HasSubstr("missing")) << folder;
    std::filesystem::remove(at(folder));
    std::filesystem::rename(aside, at(folder));
  }
}

TEST_F(ManifestTest, AManifestThatIsNoFile) {
  remove_tree(at("manifest.json"));
  ASSERT_EQ(::mkfifo(at("manifest.json").c_str(), 0600), 0);
  EXPECT_THAT(verify(), ::testing::HasSubstr("MAC"));
}

TEST_F(ManifestTest, NamesThatLeadElsewhere) {
  write_file(directory_ + ".outside", "contents of images/core-1.img");
  std::string outside = std::filesystem::path(directory_).filename().string() + ".outside";
  for (const std::string& path :
       std::vector<std::string>{"images/../../" + outside, "../" + outside, "/etc/passwd",
                                "images/", "images/..", "manifest.json"}) {
    sign_again([&](auto& json) { json["files"][0]["path"] = path; });
    EXPECT_THAT(verify(), ::testing::HasSubstr("no name of an image")) << path;
  }
  for (const char* name : {"..", ".", "../x", "fs.0/etc", "/etc", ""}) {
    sign_again([&](auto& json) { json["trees"][name] = ""; });
    EXPECT_THAT(verify(), ::testing::HasSubstr("no name of a folder")) << name;
  }
  for (const char* layer : {"../fs.0", "/", "images", "fs.1"}) {
    sign_again([&](auto& json) { json["layers"].push_back(layer); });
    EXPECT_THAT(verify(), ::testing::HasSubstr("layer without a digest")) << layer;
  }
  remove_tree(directory_ + ".outside");
}

TEST_F(ManifestTest, AFolderThatWasLeftOut) {
  sign_again([](auto& json) { json["trees"].erase("dev"); });
  EXPECT_THAT(verify(), ::testing::HasSubstr("dev was not there"));
}

TEST_F(ManifestTest, NumbersThatCannotBe) {
  for (const char* text : {"18446744073709551615", "-1", "1e300", "\"12\"", "null", "[]"}) {
    sign_again([&](auto& json) { json["files"][0]["size"] = nlohmann::json::parse(text); });
    EXPECT_NE(verify(), "") << text;
  }
}

}  // namespace
}  // namespace thaw::checkpoint
