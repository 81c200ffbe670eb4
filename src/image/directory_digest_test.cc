#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "image/images.h"
#include "image/tree_walk.h"
#include "util/error.h"
#include "util/file.h"

namespace thaw::image {
namespace {

class DirectoryDigests : public testing::Test {
 protected:
  DirectoryDigests()
      : dir_((std::filesystem::temp_directory_path() / ("thaw-digest-" + random_hex())).string()) {
    make_directories(at("/a/b"));
    write_file(at("/a/file"), "1234");
    EXPECT_EQ(::symlink("file", at("/a/link").c_str()), 0);
    settle();
  }
  ~DirectoryDigests() override { remove_tree(dir_); }
  std::string at(const std::string& path) { return dir_ + path; }
  // The same times everywhere, so that only what a test changes is different.
  void settle() {
    timespec times[2] = {{1'000'000'000, 5}, {1'000'000'000, 5}};
    for (const auto& entry : std::filesystem::recursive_directory_iterator(dir_))
      ::utimensat(AT_FDCWD, entry.path().c_str(), times, AT_SYMLINK_NOFOLLOW);
    ::utimensat(AT_FDCWD, dir_.c_str(), times, 0);
  }
  // Whether the digest is another one after `change`, apart from times.
  bool differs(const std::function<void()>& change) {
    std::string before = directory_digest(dir_);
    change();
    settle();
    return directory_digest(dir_) != before;
  }
  std::string dir_;
};

TEST_F(DirectoryDigests, StandsForWhatStatTells) {
  EXPECT_EQ(directory_digest(dir_).size(), 64u);
  EXPECT_FALSE(differs([] {}));
  EXPECT_FALSE(differs([&] { write_file(at("/a/file"), "5678"); }));  // contents are not read
  EXPECT_TRUE(differs([&] { write_file(at("/a/file"), "12345"); }));
  EXPECT_TRUE(differs([&] { ::chmod(at("/a/file").c_str(), 0600); }));
  EXPECT_TRUE(differs([&] { ::chown(at("/a/b").c_str(), 1, 0); }));
  EXPECT_TRUE(differs([&] { ::chown(at("/a/b").c_str(), 1, 2); }));
  EXPECT_TRUE(differs([&] { ::rename(at("/a/file").c_str(), at("/a/b/file").c_str()); }));
  EXPECT_TRUE(differs([&] {
    ::unlink(at("/a/link").c_str());
    EXPECT_EQ(::symlink("elif", at("/a/link").c_str()), 0);
  }));
  EXPECT_TRUE(differs([&] { ::mknod(at("/null").c_str(), S_IFCHR | 0600, makedev(1, 3)); }));
  EXPECT_TRUE(differs([&] {
    ::unlink(at("/null").c_str());
    ::mknod(at("/null").c_str(), S_IFCHR | 0600, makedev(1, 5));
  }));
  EXPECT_TRUE(differs([&] { ::chmod(dir_.c_str(), 0700); }));
  std::string before = directory_digest(dir_);
  timespec times[2] = {{1, 0}, {1, 1}};
  ::utimensat(AT_FDCWD, at("/a/b").c_str(), times, 0);
  EXPECT_NE(directory_digest(dir_), before);
}

TEST_F(DirectoryDigests, IsTheSameForACopy) {
  std::string copy = dir_ + "-copy";
  std::filesystem::create_directory(copy);
  std::filesystem::copy(
      dir_, copy,
      std::filesystem::copy_options::recursive | std::filesystem::copy_options::copy_symlinks);
  std::swap(dir_, copy);
  settle();
  std::string digest = directory_digest(dir_);
  remove_tree(dir_);
  std::swap(dir_, copy);
  EXPECT_EQ(directory_digest(dir_), digest);
}

TEST_F(DirectoryDigests, StopsAtMounts) {
  auto under_mount = [&](const char* name) {
    EXPECT_EQ(::mount("tmpfs", at("/a/b").c_str(), "tmpfs", 0, nullptr), 0)
        << "this test needs root";
    write_file(at("/a/b/") + name, name);
    std::string digest = directory_digest(dir_);
    EXPECT_EQ(::umount2(at("/a/b").c_str(), 0), 0);
    return digest;
  };
  EXPECT_EQ(under_mount("one"), under_mount("another"));
  // Also a bind of the same file system, which no device number tells.
  ASSERT_EQ(::mount(at("/a").c_str(), at("/a/b").c_str(), nullptr, MS_BIND, nullptr), 0);
  int below = 0;
  walk_tree(dir_, [&](const TreeEntry& entry) { below += entry.path.starts_with("a/b/"); });
  EXPECT_EQ(::umount2(at("/a/b").c_str(), 0), 0);
  EXPECT_EQ(below, 0);
}

TEST_F(DirectoryDigests, WalksInSortedOrder) {
  for (const char* name : {"/z", "/a/b/1", "/B", "/a!"}) write_file(at(name), "");
  std::vector<std::string> seen;
  walk_tree(dir_, [&](const TreeEntry& entry) { seen.push_back(entry.path); });
  EXPECT_EQ(seen, (std::vector<std::string>{".", "B", "a", "a/b", "a/b/1", "a/file", "a/link", "a!",
                                            "z"}));
}

TEST_F(DirectoryDigests, AbsentIsAnError) {
  try {
    directory_digest(at("/absent"));
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::kNotFound);
  }
}

}  // namespace
}  // namespace thaw::image
