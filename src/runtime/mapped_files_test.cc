#include "runtime/mapped_files.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/aio_abi.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "util/error.h"
#include "util/fd.h"
#include "util/file.h"

namespace thaw::runtime {
namespace {

TEST(MappedFiles, OnlyWhatCanBeWrittenTo) {
  std::string base = "/tmp/thaw-mapped-" + random_hex();
  make_directories(base);
  auto map = [&](const std::string& name, int flags, int protection, int kind) {
    write_file(base + "/" + name, "text");
    Fd file = Fd::open(base + "/" + name, flags);
    EXPECT_NE(::mmap(nullptr, 4, protection, kind, file.get(), 0), MAP_FAILED) << name;
    struct stat info;
    EXPECT_EQ(::fstat(file.get(), &info), 0);
    return std::pair{info.st_dev, info.st_ino};
  };
  auto written = map("written", O_RDWR, PROT_READ | PROT_WRITE, MAP_SHARED);
  auto may_be = map("may be", O_RDWR, PROT_READ, MAP_SHARED);
  auto read = map("read", O_RDONLY, PROT_READ, MAP_SHARED);
  auto own = map("own", O_RDWR, PROT_READ | PROT_WRITE, MAP_PRIVATE);
  MappedFiles found = mapped_files({::getpid()});
  EXPECT_TRUE(found.writable.contains(written));
  EXPECT_TRUE(found.writable.contains(may_be));
  EXPECT_FALSE(found.writable.contains(read));
  EXPECT_FALSE(found.writable.contains(own));
  EXPECT_FALSE(found.asynchronous);
  aio_context_t context = 0;
  ASSERT_EQ(::syscall(SYS_io_setup, 4, &context), 0);
  EXPECT_TRUE(mapped_files({::getpid()}).asynchronous);
  remove_tree(base);
}

TEST(MappedFiles, AProcessThatIsGoneIsAnError) { EXPECT_THROW(mapped_files({1 << 30}), Error); }

}  // namespace
}  // namespace thaw::runtime
