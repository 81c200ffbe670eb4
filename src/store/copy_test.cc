#include "store/copy.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <fstream>
#include <map>
#include <thread>

#include "store/layered.h"
#include "store/linked_names.h"
#include "store/tree.h"
#include "util/fd.h"
#include "util/file.h"

namespace thaw::store {
namespace {

class TreeTest : public ::testing::Test {
 protected:
  TreeTest() : base("/tmp/thaw-tree-" + random_hex()), from(base + "/from"), to(base + "/to") {
    make_directories(from);
    make_directories(to);
  }
  ~TreeTest() override { remove_tree(base); }
  std::string base, from, to;
};

struct stat info_of(const std::string& path) {
  struct stat info;
  EXPECT_EQ(::lstat(path.c_str(), &info), 0) << path;
  return info;
}

TEST_F(TreeTest, KeepsWhatALayerHolds) {
  write_file(from + "/plain", "text");
  ASSERT_EQ(::chmod((from + "/plain").c_str(), 04751), 0);
  ASSERT_EQ(::chown((from + "/plain").c_str(), 12, 34), 0);
  ASSERT_EQ(::chmod((from + "/plain").c_str(), 04751), 0);
  ASSERT_EQ(::link((from + "/plain").c_str(), (from + "/second").c_str()), 0);
  ASSERT_EQ(::symlink("../else where", (from + "/link").c_str()), 0);
  ASSERT_EQ(::mknod((from + "/gone").c_str(), S_IFCHR, makedev(0, 0)), 0);
  ASSERT_EQ(::mkfifo((from + "/fifo").c_str(), 0640), 0);
  make_directories(from + "/folder/inner");
  ASSERT_EQ(::setxattr((from + "/folder").c_str(), "trusted.overlay.opaque", "y", 1, 0), 0);
  ASSERT_EQ(::setxattr((from + "/folder").c_str(), "trusted.overlay.origin", "zz", 2, 0), 0);
  ASSERT_EQ(::setxattr((from + "/plain").c_str(), "user.note", "kept", 4, 0), 0);
  {
    Fd sparse = Fd::open(from + "/sparse", O_WRONLY | O_CREAT);
    ASSERT_EQ(::ftruncate(sparse.get(), 64 << 20), 0);
    ASSERT_EQ(::pwrite(sparse.get(), "end", 3, (64 << 20) - 3), 3);
  }
  timespec times[2] = {{1000, 5}, {2000, 7}};
  ASSERT_EQ(::utimensat(AT_FDCWD, (from + "/plain").c_str(), times, 0), 0);

  TreeSize size = copy_tree(from, to);
  EXPECT_LT(size.bytes, 1u << 20);
  EXPECT_GT(tree_bytes(from), 0u);
  EXPECT_LT(tree_bytes(from), 1u << 20);
  EXPECT_EQ(tree_bytes(base + "/nothing"), 0u);

  struct stat plain = info_of(to + "/plain");
  EXPECT_EQ(plain.st_mode & 07777, 04751u);
  EXPECT_EQ(plain.st_uid, 12u);
  EXPECT_EQ(plain.st_gid, 34u);
  EXPECT_EQ(plain.st_mtim.tv_sec, 2000);
  EXPECT_EQ(plain.st_mtim.tv_nsec, 7);
  EXPECT_EQ(plain.st_ino, info_of(to + "/second").st_ino);
  EXPECT_TRUE(S_ISCHR(info_of(to + "/gone").st_mode));
  EXPECT_EQ(info_of(to + "/gone").st_rdev, makedev(0, 0));
  EXPECT_TRUE(S_ISFIFO(info_of(to + "/fifo").st_mode));
  EXPECT_LT(info_of(to + "/sparse").st_blocks * 512, 1 << 20);
  EXPECT_EQ(info_of(to + "/sparse").st_size, 64 << 20);
  char value[16];
  EXPECT_EQ(::getxattr((to + "/folder").c_str(), "trusted.overlay.opaque", value, sizeof value), 1);
  EXPECT_LT(::getxattr((to + "/folder").c_str(), "trusted.overlay.origin", value, sizeof value), 0);
  EXPECT_EQ(::getxattr((to + "/plain").c_str(), "user.note", value, sizeof value), 4);
  EXPECT_EQ(digest_tree(from), digest_tree(to));
}

TEST_F(TreeTest, LeavesWhatIsThereAlready) {
  write_file(from + "/new", "new");
  write_file(to + "/old", "old");
  copy_tree(from, to);
  EXPECT_EQ(read_file(to + "/old"), "old");
  EXPECT_EQ(read_file(to + "/new"), "new");
}

TEST_F(TreeTest, DigestSeesEveryKindOfChange) {
  write_file(from + "/a", "1");
  std::string before = digest_tree(from);
  write_file(from + "/a", "2");
  std::string content = digest_tree(from);
  EXPECT_NE(before, content);
  ASSERT_EQ(::chmod((from + "/a").c_str(), 0600), 0);
  EXPECT_NE(content, digest_tree(from));
  std::string mode = digest_tree(from);
  ASSERT_EQ(::rename((from + "/a").c_str(), (from + "/b").c_str()), 0);
  EXPECT_NE(mode, digest_tree(from));
}

// A tree that was copied ahead and then changed in every way.
class AheadTest : public TreeTest {
 protected:
  // Until the file system's clock has gone on.
  static void settle() { ::usleep(150'000); }
  void expect_exact() {
    EXPECT_EQ(digest_tree(from), digest_tree(to));
    // Names of one file are names of one file.
    std::map<ino_t, ino_t> copies;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(from)) {
      struct stat source = info_of(entry.path()),
                  copy = info_of(to + entry.path().string().substr(from.size()));
      EXPECT_EQ(copies.try_emplace(source.st_ino, copy.st_ino).first->second, copy.st_ino)
          << entry.path();
      EXPECT_EQ(source.st_nlink, copy.st_nlink) << entry.path();
      EXPECT_EQ(source.st_mtim.tv_sec, copy.st_mtim.tv_sec) << entry.path();
      EXPECT_EQ(source.st_mtim.tv_nsec, copy.st_mtim.tv_nsec) << entry.path();
    }
  }
};

TEST_F(AheadTest, WhatDoesNotChangeIsCopiedOnce) {
  make_directories(from + "/folder");
  write_file(from + "/folder/file", std::string(10000, 'x'));
  ASSERT_EQ(::link((from + "/folder/file").c_str(), (from + "/again").c_str()), 0);
  ASSERT_EQ(::symlink("folder", (from + "/link").c_str()), 0);
  settle();
  TreeCopy copy(from, to);
  copy.ahead();
  ino_t before = info_of(to + "/folder/file").st_ino;
  TreeSize size = copy.finish();
  EXPECT_EQ(size.files, 0u);
  EXPECT_EQ(size.bytes, 0u);
  EXPECT_EQ(info_of(to + "/folder/file").st_ino, before);
  expect_exact();
}

TEST_F(AheadTest, EveryKindOfChangeIsSeen) {
  for (const char* name : {"/a/b", "/c", "/to-file", "/opaque"}) make_directories(from + name);
  for (const char* name :
       {"/a/one", "/a/two", "/a/b/three", "/c/four", "/same-size", "/mode", "/owner", "/attribute",
        "/linked", "/to-folder", "/to-whiteout", "/gone", "/moved", "/rewritten"})
    write_file(from + name, std::string("text of ") + name);
  ASSERT_EQ(::link((from + "/linked").c_str(), (from + "/c/linked too").c_str()), 0);
  ASSERT_EQ(::link((from + "/linked").c_str(), (from + "/a/leaves").c_str()), 0);
  ASSERT_EQ(::setxattr((from + "/attribute").c_str(), "user.note", "old", 3, 0), 0);
  ASSERT_EQ(::setxattr((from + "/opaque").c_str(), "trusted.overlay.opaque", "y", 1, 0), 0);
  settle();
  TreeCopy copy(from, to);
  copy.ahead();
  expect_exact();

  struct stat before = info_of(from + "/same-size");
  {
    Fd file = Fd::open(from + "/same-size", O_WRONLY);
    ASSERT_EQ(::pwrite(file.get(), "TEXT", 4, 0), 4);
    timespec times[2] = {before.st_atim, before.st_mtim};  // as tar does
    ASSERT_EQ(::futimens(file.get(), times), 0);
  }
  ASSERT_EQ(::chmod((from + "/mode").c_str(), 0711), 0);
  ASSERT_EQ(::chown((from + "/owner").c_str(), 5, 6), 0);
  ASSERT_EQ(::removexattr((from + "/attribute").c_str(), "user.note"), 0);
  ASSERT_EQ(::removexattr((from + "/opaque").c_str(), "trusted.overlay.opaque"), 0);
  ASSERT_EQ(::unlink((from + "/a/leaves").c_str()), 0);
  ASSERT_EQ(::link((from + "/linked").c_str(), (from + "/a/b/comes").c_str()), 0);
  ASSERT_EQ(::unlink((from + "/to-folder").c_str()), 0);
  make_directories(from + "/to-folder/inner");
  remove_tree(from + "/to-file");
  write_file(from + "/to-file", "was a folder");
  ASSERT_EQ(::unlink((from + "/to-whiteout").c_str()), 0);
  ASSERT_EQ(::mknod((from + "/to-whiteout").c_str(), S_IFCHR, makedev(0, 0)), 0);
  ASSERT_EQ(::unlink((from + "/gone").c_str()), 0);
  ASSERT_EQ(::rename((from + "/moved").c_str(), (from + "/c/moved").c_str()), 0);
  ASSERT_EQ(::rename((from + "/a").c_str(), (from + "/renamed").c_str()), 0);
  ASSERT_EQ(::unlink((from + "/rewritten").c_str()), 0);
  write_file(from + "/rewritten", "by another file");
  write_file(from + "/new", "new");
  EXPECT_GT(copy.finish().files, 0u);
  expect_exact();
}

TEST_F(AheadTest, WritesThroughAMappingThatWasThereBefore) {
  write_file(from + "/mapped", std::string(4096, 'a'));
  Fd file = Fd::open(from + "/mapped", O_RDWR);
  void* memory = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0);
  ASSERT_NE(memory, MAP_FAILED);
  std::memset(memory, 'b', 4096);
  settle();
  TreeCopy copy(from, to);
  copy.ahead();
  std::memset(memory, 'c', 4096);
  copy.finish([](const std::string& path) { return path == "mapped"; });
  expect_exact();
  ::munmap(memory, 4096);
}

TEST_F(AheadTest, ACopyThatAnotherProgramWritesUnder) {
  std::atomic<bool> stop = false;
  std::thread writer([&] {
    for (unsigned round = 0; !stop; ++round) {
      std::string path = from + "/" + std::to_string(round % 50);
      std::error_code ignored;
      switch (round * 2654435761u >> 28) {
        case 0:
          std::filesystem::remove_all(path, ignored);
          break;
        case 1:
          std::filesystem::remove_all(path, ignored),
              std::filesystem::create_directories(path + "/inner", ignored);
          break;
        case 2:
          std::filesystem::create_hard_link(from + "/" + std::to_string((round + 7) % 50), path,
                                            ignored);
          break;
        case 3:
          std::filesystem::rename(path, from + "/" + std::to_string((round + 3) % 50), ignored);
          break;
        default:
          std::ofstream(path, std::ios::app)
              << std::string(1000, static_cast<char>('a' + round % 26));
      }
    }
  });
  for (int turn = 0; turn < 20; ++turn) {
    remove_tree(to);
    make_directories(to);
    TreeCopy copy(from, to);
    copy.ahead();
    if (turn == 19) {
      stop = true;
      writer.join();
      copy.finish();
    }
  }
  expect_exact();
}

// An overlay of `lower` and an empty upper directory, mounted as a replica's is.
class OverlayTest : public TreeTest {
 protected:
  OverlayTest() {
    for (const char* name : {"/lower", "/upper", "/work", "/merged"}) make_directories(base + name);
  }
  ~OverlayTest() override { ::umount2((base + "/merged").c_str(), MNT_DETACH); }
  void mount() {
    std::string options = "lowerdir=" + base + "/lower,upperdir=" + base +
                          "/upper,workdir=" + base +
                          "/work,index=on,redirect_dir=off,metacopy=off,xino=off";
    ASSERT_EQ(::mount("overlay", (base + "/merged").c_str(), "overlay", 0, options.c_str()), 0);
  }
};

TEST_F(OverlayTest, OtherNamesOfAWrittenFileComeAlong) {
  make_directories(base + "/lower/deep/er");
  write_file(base + "/lower/one", "old");
  ASSERT_EQ(::chmod((base + "/lower/deep").c_str(), 0711), 0);
  ASSERT_EQ(::setxattr((base + "/lower/deep").c_str(), "user.note", "kept", 4, 0), 0);
  for (const char* name : {"/lower/two", "/lower/deep/er/three", "/lower/deleted"})
    ASSERT_EQ(::link((base + "/lower/one").c_str(), (base + name).c_str()), 0);
  write_file(base + "/lower/other", "other");
  ASSERT_EQ(::link((base + "/lower/other").c_str(), (base + "/lower/another").c_str()), 0);
  mount();
  write_file(base + "/merged/two", "new");
  ASSERT_EQ(::unlink((base + "/merged/deleted").c_str()), 0);

  TreeSize size = copy_tree(base + "/upper", to);
  EXPECT_THAT(size.linked, testing::ElementsAre("two"));
  add_linked_names(size.linked, base + "/merged", {base + "/lower"}, to);
  struct stat two = info_of(to + "/two");
  EXPECT_EQ(info_of(to + "/one").st_ino, two.st_ino);
  EXPECT_EQ(info_of(to + "/deep/er/three").st_ino, two.st_ino);
  EXPECT_EQ(two.st_nlink, 3u);
  EXPECT_EQ(read_file(to + "/one"), "new");
  EXPECT_TRUE(S_ISCHR(info_of(to + "/deleted").st_mode));
  EXPECT_FALSE(exists(to + "/another"));
  EXPECT_EQ(info_of(to + "/deep").st_mode & 07777, 0711u);
  char value[8] = {};
  EXPECT_EQ(::getxattr((to + "/deep").c_str(), "user.note", value, sizeof value), 4);
}

TEST_F(OverlayTest, AFileWithOneNameIsLeftAlone) {
  write_file(base + "/lower/one", "old");
  mount();
  write_file(base + "/merged/one", "new");
  TreeSize size = copy_tree(base + "/upper", to);
  EXPECT_TRUE(size.linked.empty());
}

// A file that is deleted, replaced, new, or below a folder that was made anew is found as the
// overlay shows it.
TEST_F(OverlayTest, AFileOfTheLayersIsTheOneThatTheOverlayShows) {
  const std::vector<std::string> names = {"/one",         "/two",      "/gone",   "/deep/three",
                                          "/anew/four",   "/anew/new", "/five",   "/six/seven",
                                          "/deep/../one", "/deep",     "/nothing"};
  for (const char* folder : {"/deep", "/anew", "/six"}) make_directories(base + "/lower" + folder);
  for (const char* name :
       {"/one", "/two", "/gone", "/deep/three", "/anew/four", "/five", "/six/seven"})
    write_file(base + "/lower" + name, std::string("old ") + name);
  mount();
  std::string merged = base + "/merged";
  write_file(merged + "/two", "new");
  remove_tree(merged + "/gone");
  remove_tree(merged + "/anew");
  make_directories(merged + "/anew");
  write_file(merged + "/anew/new", "new");
  remove_tree(merged + "/five");
  make_directories(merged + "/five");
  remove_tree(merged + "/six");
  write_file(merged + "/six", "new");
  for (const std::string& name : names) {
    Fd found = open_layered({base + "/upper", base + "/lower"}, name);
    struct stat info;
    bool there = name.find("..") == std::string::npos &&
                 ::lstat((merged + name).c_str(), &info) == 0 && S_ISREG(info.st_mode);
    ASSERT_EQ(static_cast<bool>(found), there) << name;
    if (found) {
      EXPECT_EQ(read_all(found), read_file(merged + name)) << name;
    }
  }
}

}  // namespace
}  // namespace thaw::store
