// Hosts of every kind, as their mountinfo shows them; and a real v2 group.
#include "runtime/cgroup.h"

#include <fcntl.h>
#include <gmock/gmock.h>
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

using testing::ElementsAre;

constexpr const char* kV2 =
    "25 30 0:22 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
constexpr const char* kV1 =
    "30 24 0:26 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755\n"
    "31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw shared:10 - cgroup cgroup rw,cpu,cpuacct\n"
    "32 30 0:28 / /sys/fs/cgroup/memory rw shared:11 - cgroup cgroup rw,memory\n"
    "33 30 0:29 / /sys/fs/cgroup/freezer rw shared:12 - cgroup cgroup rw,freezer\n"
    "34 30 0:30 / /sys/fs/cgroup/pids rw shared:13 - cgroup cgroup rw,pids\n";
// systemd's: its own v1 hierarchy, and a v2 one without controllers.
constexpr const char* kHybrid =
    "40 30 0:31 / /sys/fs/cgroup/unified rw shared:14 - cgroup2 cgroup2 rw\n"
    "41 30 0:32 / /sys/fs/cgroup/systemd rw shared:15 - cgroup cgroup rw,xattr,name=systemd\n";

TEST(CgroupLayout, UnifiedHost) {
  CgroupLayout layout = CgroupLayout::parse(kV2);
  EXPECT_TRUE(layout.unified_only());
  EXPECT_EQ(layout.unified(), "/sys/fs/cgroup");
  EXPECT_EQ(layout.mount_of("memory"), "");
  EXPECT_TRUE(layout.has("freezer"));
  EXPECT_THAT(Cgroup(layout, "/thaw/1/a").procs_files(),
              ElementsAre("/sys/fs/cgroup/thaw/1/a/cgroup.procs"));
  EXPECT_THAT(Cgroup(layout, "/thaw/1/a").thawing(),
              testing::Pair("/sys/fs/cgroup/thaw/1/a/cgroup.freeze", "0"));
}

TEST(CgroupLayout, HostOfTheFirstVersion) {
  CgroupLayout layout = CgroupLayout::parse(kV1);
  EXPECT_FALSE(layout.unified_only());
  EXPECT_EQ(layout.unified(), "");
  EXPECT_EQ(layout.mount_of("cpuacct"), "/sys/fs/cgroup/cpu,cpuacct");
  EXPECT_TRUE(layout.has("memory"));
  EXPECT_FALSE(layout.has("devices"));
  EXPECT_EQ(Cgroup(layout, "/thaw/1/a").procs_files().size(), 4u);
  EXPECT_THAT(Cgroup(layout, "/thaw/1/a").thawing(),
              testing::Pair("/sys/fs/cgroup/freezer/thaw/1/a/freezer.state", "THAWED"));
}

TEST(CgroupLayout, HybridHost) {
  CgroupLayout layout = CgroupLayout::parse(std::string(kHybrid) + kV1);
  EXPECT_FALSE(layout.unified_only());
  EXPECT_EQ(layout.unified(), "/sys/fs/cgroup/unified");
  EXPECT_EQ(layout.mount_of("name=systemd"), "/sys/fs/cgroup/systemd");
  EXPECT_EQ(layout.mount_of("memory"), "/sys/fs/cgroup/memory");
  EXPECT_EQ(Cgroup(layout, "/a").procs_files().size(), 6u);
}

TEST(CgroupLayout, WhatIsMountedTwiceOrInPartIsTakenOnce) {
  CgroupLayout layout =
      CgroupLayout::parse(std::string(kV2) +
                          "50 30 0:22 / /mnt/again rw - cgroup2 cgroup2 rw\n"
                          "51 30 0:22 /docker/1 /mnt/part rw - cgroup2 cgroup2 rw\n");
  EXPECT_TRUE(layout.unified_only());
  EXPECT_EQ(layout.unified(), "/sys/fs/cgroup");
}

TEST(CgroupLayout, NoneIsAnError) {
  EXPECT_THROW(CgroupLayout::parse("24 1 0:22 / /sys rw - sysfs sysfs rw\n"), Error);
}

// What a pod asks for is held or refused; what it gets by default is held or said not to be.
TEST(CgroupLayout, AHostWithoutAController) {
  auto lacks = [](std::string missing) {
    return [missing](const std::string& controller) { return controller != missing; };
  };
  state::Resources wanted;
  Enforceable all = enforceable(wanted, lacks(""));
  EXPECT_EQ(all.resources, wanted);
  EXPECT_EQ(all.gap, "");
  Enforceable without = enforceable(wanted, lacks("pids"));
  EXPECT_EQ(without.resources.pids, 0u);
  EXPECT_EQ(without.gap,
            "resources.pids (1024) is not held: this host has no pids cgroup controller");
  // No limit wants no controller.
  EXPECT_EQ(enforceable(wanted, lacks("memory")).gap + enforceable(wanted, lacks("cpu")).gap, "");
  wanted = {.cpu = 0.5, .memory = 1 << 20, .pids = 7};
  for (const char* controller : {"cpu", "memory", "pids"}) {
    try {
      enforceable(wanted, lacks(controller));
      ADD_FAILURE() << controller;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::kUnsupported);
      EXPECT_NE(std::string(error.what()).find(std::string("no ") + controller), std::string::npos)
          << error.what();
    }
  }
  EXPECT_EQ(enforceable(wanted, lacks("")).resources, wanted);
}

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
