#include "runtime/cgroup.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cerrno>

#include "util/error.h"
#include "util/file.h"
#include "util/process.h"

namespace thaw::runtime {
namespace {

// On v2 alone, whatever this host has beside it.
TEST(Cgroup, DevicesOfAV2Group) {
  CgroupLayout layout = CgroupLayout::detect();
  ASSERT_FALSE(layout.unified().empty()) << "no cgroup2 is mounted";
  std::erase_if(layout.hierarchies, [](auto& hierarchy) { return !hierarchy.v2; });
  Cgroup group(layout, "/thaw-test-" + random_hex(12));
  group.create();
  std::string directory = "/dev/thaw-test-" + random_hex(12);
  make_directories(directory);
  struct {
    const char* name;
    unsigned mode, major, minor;
    bool allowed;
  } nodes[] = {
      {"zero", S_IFCHR, 1, 5, true},     {"random", S_IFCHR, 1, 9, true},
      {"mem", S_IFCHR, 1, 1, false},     {"kmsg", S_IFCHR, 1, 11, false},
      {"fuse", S_IFCHR, 10, 229, false}, {"a disk with zero's number", S_IFBLK, 1, 5, false}};
  state::Resources unlimited;
  unlimited.memory = unlimited.pids = 0;
  unlimited.cpu = 0;
  group.apply(unlimited);
  for (const auto& node : nodes) {
    std::string path = directory + "/" + node.name;
    ASSERT_EQ(::mknod(path.c_str(), node.mode | 0666, makedev(node.major, node.minor)), 0) << errno;
    ProcessOptions options;
    options.join_cgroups = group.procs_files();
    RunResult result = run({"dd", "if=" + path, "of=/dev/null", "bs=1", "count=1"},
                           Deadline::after_ms(10'000), options);
    EXPECT_EQ(result.ok(), node.allowed) << node.name << ": " << result.err;
    EXPECT_EQ(result.err.find("Operation not permitted") == std::string::npos, node.allowed)
        << node.name << ": " << result.err;
  }
  remove_tree(directory);
  EXPECT_TRUE(group.remove());
}

}  // namespace
}  // namespace thaw::runtime
