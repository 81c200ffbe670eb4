#include "pods/secret_store.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include "util/error.h"
#include "util/file.h"

namespace thaw::pods {
namespace {

class KeptSecrets : public testing::Test {
 protected:
  KeptSecrets()
      : folder_(
            (std::filesystem::temp_directory_path() / ("thaw-secrets-" + random_hex())).string()),
        store_(folder_) {}
  ~KeptSecrets() override { std::filesystem::remove_all(folder_); }

  std::vector<std::string> names() {
    std::vector<std::string> found;
    for (const SecretRow& row : store_.list()) found.push_back(row.name);
    return found;
  }

  std::string folder_;
  SecretStore store_;
};

TEST_F(KeptSecrets, AreKeptChangedAndRemoved) {
  std::string binary("\0\xff\n", 3);
  EXPECT_TRUE(store_.put("b", "x"));
  EXPECT_TRUE(store_.put("a--B_1.pem", "y"));
  EXPECT_FALSE(store_.put("b", binary));
  EXPECT_EQ(names(), (std::vector<std::string>{"a--B_1.pem", "b"}));
  EXPECT_EQ(read_file(folder_ + "/b"), binary);
  EXPECT_GT(store_.list()[1].updated_us, 1'700'000'000'000'000);
  struct stat info {};
  ASSERT_EQ(::stat((folder_ + "/b").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0600u);
  ASSERT_EQ(::stat(folder_.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0700u);
  store_.remove("b");
  EXPECT_EQ(names(), std::vector<std::string>{"a--B_1.pem"});
  EXPECT_THROW(store_.remove("b"), Error);
}

TEST_F(KeptSecrets, NamesLeadNowhereElse) {
  for (const char* name : {"", ".", "..", "../x", "a/b", ".hidden", "-a", "a b", "a\nb"}) {
    EXPECT_THROW(store_.put(name, "x"), Error) << name;
    EXPECT_THROW(store_.remove(name), Error) << name;
  }
  EXPECT_THROW(store_.put(std::string(128, 'a'), "x"), Error);
  EXPECT_THROW(store_.put("a", ""), Error);
  EXPECT_THROW(store_.put("a", std::string((1 << 20) + 1, 'x')), Error);
  EXPECT_TRUE(names().empty());
}

TEST_F(KeptSecrets, WhatAKilledDaemonWasWritingIsGone) {
  store_.put("a", "x");
  write_file(folder_ + "/.new", "half");
  write_file(folder_ + "/.new.tmp-01234567", "half");
  SecretStore again(folder_);
  EXPECT_FALSE(exists(folder_ + "/.new") || exists(folder_ + "/.new.tmp-01234567"));
  EXPECT_EQ(again.list().size(), 1u);
}

}  // namespace
}  // namespace thaw::pods
