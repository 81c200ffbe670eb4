#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include "image/images.h"
#include "util/error.h"
#include "util/file.h"

namespace thaw::image {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class Users : public testing::Test {
 protected:
  Users()
      : root_((std::filesystem::temp_directory_path() / ("thaw-users-" + random_hex())).string()) {
    make_directories(root_ + "/etc");
    write_file(root_ + "/etc/passwd",
               "root:x:0:0:root:/root:/bin/sh\n# "
               "comment\nbroken:x:y\n\nweb:x:33:34:Web:/var/www:/bin/"
               "sh\nhomeless:x:50:51\n1234:x:60:61::/odd:\n");
    write_file(
        root_ + "/etc/group",
        "root:x:0:\nwheel:x:10:root,web\nvideo:x:44:web\nvideo2:x:44:web\nweb:x:34:\nbroken:x\n");
  }
  ~Users() override { remove_tree(root_); }

  // uid:gid home groups
  std::string resolve(const std::string& user) {
    Identity identity = resolve_user(root_, user);
    return fmt::format("{}:{} {} {}", identity.uid, identity.gid, identity.home,
                       fmt::join(identity.groups, ","));
  }
  std::string error_of(const std::string& user) {
    try {
      resolve_user(root_, user);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::kInvalid);
      return error.what();
    }
    return "none";
  }
  std::string root_;
};

TEST_F(Users, ByNameAndNumber) {
  EXPECT_EQ(resolve(""), "0:0 /root 10");
  EXPECT_EQ(resolve("root"), "0:0 /root 10");
  EXPECT_EQ(resolve("web"), "33:34 /var/www 10,44");
  EXPECT_EQ(resolve("33"), "33:34 /var/www 10,44");
  EXPECT_EQ(resolve("homeless"), "50:51 / ");
  EXPECT_EQ(resolve("1000"), "1000:0 / ");
  EXPECT_EQ(resolve("1234"), "60:61 /odd ");  // a name that looks like a number is a name first
}

TEST_F(Users, AGroupReplacesTheUsersOwn) {
  EXPECT_EQ(resolve("web:video"), "33:44 /var/www ");
  EXPECT_EQ(resolve("web:1001"), "33:1001 /var/www ");
  EXPECT_EQ(resolve("1000:wheel"), "1000:10 / ");
  EXPECT_EQ(resolve(":wheel"), "0:10 /root ");
  EXPECT_EQ(resolve("web:"), "33:34 /var/www 10,44");
}

TEST_F(Users, UnknownNames) {
  EXPECT_THAT(error_of("nobody"),
              HasSubstr("cannot find user 'nobody': the image's /etc/passwd does not know it"));
  EXPECT_THAT(error_of("web:nogroup"), HasSubstr("cannot find group 'nogroup'"));
  for (const char* wrong : {"-1", "4294967295", "99999999999", "1x", "web:-1"})
    EXPECT_NE(error_of(wrong), "none") << wrong;
}

TEST_F(Users, AnImageWithoutTheFiles) {
  remove_tree(root_ + "/etc");
  EXPECT_EQ(resolve(""), "0:0 / ");
  EXPECT_EQ(resolve("7:8"), "7:8 / ");
  EXPECT_NE(error_of("root"), "none");
}

TEST_F(Users, TheFilesAreReadBelowTheRoot) {
  remove_tree(root_ + "/etc/passwd");
  // The host knows "daemon"; this image does not.
  ASSERT_EQ(::symlink("/../../../../../../etc/passwd.real", (root_ + "/etc/passwd").c_str()), 0);
  EXPECT_NE(error_of("daemon"), "none");
  write_file(root_ + "/etc/passwd.real", "inside:x:5:6::/in:\n");
  EXPECT_EQ(resolve("inside"), "5:6 /in ");
  remove_tree(root_ + "/etc/passwd");
  ASSERT_EQ(::symlink("/etc/passwd", (root_ + "/etc/passwd").c_str()), 0);
  EXPECT_EQ(resolve("5"), "5:0 / ");
  remove_tree(root_ + "/etc/passwd");
  ASSERT_EQ(::mkfifo((root_ + "/etc/passwd").c_str(), 0600), 0);
  EXPECT_EQ(resolve("5"), "5:0 / ");  // and does not block
}

}  // namespace
}  // namespace thaw::image
