#include "lifecycle/path_watch.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "util/file.h"
#include "util/in_root.h"
#include "util/process.h"

namespace thaw::lifecycle {
namespace {

class PathWatches : public testing::Test {
 protected:
  PathWatches()
      : dir_((std::filesystem::temp_directory_path() / ("thaw-watch-" + random_hex())).string()) {
    make_directories(dir_);
  }
  ~PathWatches() override { remove_tree(dir_); }

  std::string at(const std::string& path) { return dir_ + path; }
  PathWatch make(const std::string& path, PathWatch::What what = PathWatch::What::kPath) {
    PathWatch watch(Fd::open(dir_, O_PATH | O_DIRECTORY), path, what);
    EXPECT_TRUE(watch.arm());
    return watch;
  }
  bool told(PathWatch& watch) {
    return wait_readable(watch.fd().get(), Deadline::after_ms(0)) && watch.changed();
  }
  bool resolves(const PathWatch& watch) {
    return static_cast<bool>(try_open_in_root(watch.root(), watch.path(), O_PATH));
  }

  std::string dir_;
};

TEST_F(PathWatches, TellsEachStepOfAPathThatComes) {
  PathWatch watch = make("/a/link/c");
  EXPECT_FALSE(told(watch));
  make_directories(at("/a"));
  EXPECT_TRUE(told(watch));
  EXPECT_EQ(::symlink("/b/../d", at("/a/link").c_str()), 0);
  EXPECT_TRUE(told(watch));
  make_directories(at("/b"));
  EXPECT_TRUE(told(watch));
  make_directories(at("/d"));
  EXPECT_TRUE(told(watch));
  EXPECT_FALSE(resolves(watch));
  write_file(at("/d/c"), "");
  EXPECT_TRUE(told(watch));
  EXPECT_TRUE(resolves(watch));
}

TEST_F(PathWatches, IsSilentAboutNeighbours) {
  make_directories(at("/a"));
  PathWatch watch = make("/a/b");
  for (const char* other : {"/x", "/a/x", "/a/bb"}) write_file(at(other), "");
  EXPECT_FALSE(told(watch));
  write_file(at("/a/b"), "");
  EXPECT_TRUE(told(watch));
  write_file(at("/a/b"), "contents");
  EXPECT_FALSE(told(watch));
}

TEST_F(PathWatches, TellsWhenAParentIsReplaced) {
  make_directories(at("/a/b"));
  make_directories(at("/new/b"));
  write_file(at("/new/b/c"), "");
  PathWatch watch = make("/a/b/c");
  ASSERT_EQ(::rename(at("/a").c_str(), at("/old").c_str()), 0);
  EXPECT_TRUE(told(watch));
  ASSERT_EQ(::rename(at("/new").c_str(), at("/a").c_str()), 0);
  EXPECT_TRUE(told(watch));
  EXPECT_TRUE(resolves(watch));
  // The directories that were left are watched no longer.
  write_file(at("/old/b/c"), "");
  EXPECT_FALSE(told(watch));
}

TEST_F(PathWatches, TellsWritesAndEntriesWhereAsked) {
  PathWatch contents = make("/log", PathWatch::What::kContents);
  PathWatch entries = make("/dir", PathWatch::What::kEntries);
  write_file(at("/log"), "");
  EXPECT_TRUE(told(contents));
  write_file(at("/log"), "more");
  EXPECT_TRUE(told(contents));
  EXPECT_FALSE(told(entries));
  make_directories(at("/dir"));
  EXPECT_TRUE(told(entries));
  write_file(at("/dir/any"), "");
  EXPECT_TRUE(told(entries));
  EXPECT_FALSE(told(contents));
}

TEST_F(PathWatches, KeepsNoFileSystemBusy) {
  make_directories(at("/m"));
  ASSERT_EQ(::mount("tmpfs", at("/m").c_str(), "tmpfs", 0, nullptr), 0) << "this test needs root";
  PathWatch watch = make("/m/a/b");
  EXPECT_EQ(::umount2(at("/m").c_str(), 0), 0);
  EXPECT_TRUE(told(watch));
}

}  // namespace
}  // namespace thaw::lifecycle
