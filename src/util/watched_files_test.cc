#include "util/watched_files.h"

#include <condition_variable>
#include <filesystem>
#include <mutex>

#include <gtest/gtest.h>

#include "util/file.h"

namespace thaw {
namespace {

namespace fs = std::filesystem;

class WatchedFilesTest : public testing::Test {
 protected:
  void SetUp() override {
    fs::create_directories(dir / "1");
    fs::create_directories(dir / "2");
    write_file(dir / "1/key", "one");
    write_file(dir / "2/key", "two");
    fs::create_directory_symlink("1", dir / "data");
    fs::create_symlink("data/key", dir / "key");
  }
  void TearDown() override { fs::remove_all(dir); }

  bool changed_again() {
    std::unique_lock lock(mutex);
    bool told = condition.wait_for(lock, std::chrono::seconds(20), [&] { return count > seen; });
    seen = count;
    return told;
  }

  fs::path dir = fs::path(testing::TempDir()) / ("watched-files-" + std::to_string(::getpid()));
  std::mutex mutex;
  std::condition_variable condition;
  int count = 0, seen = 0;
};

TEST_F(WatchedFilesTest, TellsWhenTheFileIsAnotherHoweverItCameThere) {
  WatchedFiles files({dir / "key"}, [&] {
    std::lock_guard lock(mutex);
    ++count;
    condition.notify_all();
  });
  // As Kubernetes does it: the folder that links lead to is another.
  fs::create_directory_symlink("2", dir / "new");
  fs::rename(dir / "new", dir / "data");
  EXPECT_TRUE(changed_again());
  // What the link leads to now is written in place.
  write_file(dir / "2/key", "three");
  EXPECT_TRUE(changed_again());
  // A file in the place of the link.
  write_file(dir / "other", "four");
  fs::rename(dir / "other", dir / "key");
  EXPECT_TRUE(changed_again());
}

}  // namespace
}  // namespace thaw
