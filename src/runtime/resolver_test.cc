#include "runtime/resolver.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "util/file.h"

namespace thaw::runtime {
namespace {

class ResolverTest : public ::testing::Test {
 protected:
  ResolverTest() { make_directories(base, 0700); }
  ~ResolverTest() override { remove_tree(base); }
  std::string configuration(const std::string& etc, const std::string& systemd = {}) {
    write_file(base + "/etc", etc);
    if (!systemd.empty()) write_file(base + "/systemd", systemd);
    return resolver_configuration(base + "/etc", base + "/systemd");
  }
  std::string base = "/tmp/thaw-resolver-" + random_hex();
};

TEST_F(ResolverTest, LoopbackServersAreLeftOut) {
  EXPECT_EQ(configuration("search a.example\nnameserver 127.0.0.1\nnameserver 192.0.2.53\n"
                          "nameserver ::1\nnameserver 2001:db8::53\noptions ndots:2\n"),
            "search a.example\nnameserver 192.0.2.53\nnameserver 2001:db8::53\noptions ndots:2\n");
}

TEST_F(ResolverTest, WhatSystemdAsksStandsInForItsStub) {
  EXPECT_EQ(configuration("nameserver 127.0.0.53\n", "nameserver 192.0.2.53\nsearch b.example\n"),
            "nameserver 192.0.2.53\nsearch b.example\n");
  EXPECT_EQ(configuration("nameserver 192.0.2.1\n", "nameserver 192.0.2.53\n"),
            "nameserver 192.0.2.1\n");
}

TEST_F(ResolverTest, WithoutAnyServerTheRestIsKept) {
  EXPECT_EQ(configuration("search a.example\nnameserver 127.0.0.53\n"), "search a.example\n");
  EXPECT_EQ(resolver_configuration(base + "/none", base + "/none"), "");
  EXPECT_THAT(name_servers("# nameserver 1\nnameserver  192.0.2.1 # main\n"),
              ::testing::ElementsAre("192.0.2.1"));
}

}  // namespace
}  // namespace thaw::runtime
