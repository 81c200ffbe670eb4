#include "store/tree.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

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
