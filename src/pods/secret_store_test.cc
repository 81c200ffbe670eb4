#include "pods/secret_store.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include "util/error.h"
#include "util/file.h"

namespace thaw::pods {
namespace {

class KeptSecrets : public testing::Test {
 protected:
  KeptSecrets()
      : root_((std::filesystem::temp_directory_path() / ("thaw-secrets-" + random_hex())).string()),
        store_(folder_, plain_, key_) {}
  ~KeptSecrets() override { std::filesystem::remove_all(root_); }

  std::string value(const std::string& name) const {
    return SealKey::read(key_).unseal(name, read_file(folder_ + "/" + name));
  }

  std::vector<std::string> names() {
    std::vector<std::string> found;
    for (const SecretRow& row : store_.list()) found.push_back(row.name);
    return found;
  }

  const std::string root_, folder_ = root_ + "/sealed", plain_ = root_ + "/secrets",
                           key_ = root_ + "/secrets.key";
  SecretStore store_;
};

TEST_F(KeptSecrets, AreKeptChangedAndRemoved) {
  std::string binary("\0\xff\n", 3);
  EXPECT_TRUE(store_.put("b", "x"));
  EXPECT_TRUE(store_.put("a--B_1.pem", "y"));
  EXPECT_FALSE(store_.put("b", binary));
  EXPECT_EQ(names(), (std::vector<std::string>{"a--B_1.pem", "b"}));
  EXPECT_EQ(value("b"), binary);
  EXPECT_EQ(read_file(folder_ + "/b").find(binary), std::string::npos);
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
  SecretStore again(folder_, plain_, key_);
  EXPECT_FALSE(exists(folder_ + "/.new") || exists(folder_ + "/.new.tmp-01234567"));
  EXPECT_EQ(again.list().size(), 1u);
}

TEST_F(KeptSecrets, WhatAnEarlierVersionKeptIsSealed) {
  make_directories(plain_, 0700);
  for (const char* name : {"a", "b", "c"}) write_file(plain_ + "/" + name, "old");
  timespec early[2] = {{1'700'000'000, 5000}, {1'700'000'000, 5000}};
  ASSERT_EQ(::utimensat(AT_FDCWD, (plain_ + "/a").c_str(), early, 0), 0);
  // One that was sealed before the daemon died, and has been changed since; and the other way
  // round.
  store_.put("b", "new");
  write_file(plain_ + "/b", "older");
  ASSERT_EQ(::utimensat(AT_FDCWD, (plain_ + "/b").c_str(), early, 0), 0);
  store_.put("c", "older");
  ASSERT_EQ(::utimensat(AT_FDCWD, (folder_ + "/c").c_str(), early, 0), 0);
  write_file(plain_ + "/c", "new");
  SecretStore again(folder_, plain_, key_);
  EXPECT_FALSE(exists(plain_));
  EXPECT_EQ(names(), (std::vector<std::string>{"a", "b", "c"}));
  EXPECT_EQ(value("a") + value("b") + value("c"), "oldnewnew");
  EXPECT_EQ(again.list()[0].updated_us, 1'700'000'000'000'005);
}

TEST_F(KeptSecrets, WithoutTheKeyNothingIsLost) {
  store_.put("a", "x");
  std::string kept = read_file(key_);
  std::filesystem::remove(key_);
  make_directories(plain_, 0700);
  write_file(plain_ + "/b", "y");
  SecretStore again(folder_, plain_, key_);
  EXPECT_EQ(again.list().size(), 2u);
  EXPECT_TRUE(exists(plain_ + "/b")) << "and cannot be sealed";
  EXPECT_THROW(again.put("c", "z"), Error);
  EXPECT_FALSE(exists(key_)) << "another key would make two kinds of secrets";
  write_file_atomic(key_, kept);
  SecretStore third(folder_, plain_, key_);
  EXPECT_EQ(value("a") + value("b"), "xy");
  // With another key new ones can be set; the old ones say what is wrong.
  write_file(key_, std::string(64, '7') + "\n");
  EXPECT_FALSE(third.put("a", "w"));
  EXPECT_EQ(value("a"), "w");
  EXPECT_THROW(value("b"), Error);
  // Without secrets there is nothing that a new key could do harm to.
  std::filesystem::remove(key_);
  third.remove("a");
  third.remove("b");
  EXPECT_TRUE(third.put("a", "v"));
  EXPECT_EQ(value("a"), "v");
}

}  // namespace
}  // namespace thaw::pods
