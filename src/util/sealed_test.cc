#include "util/sealed.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include "util/file.h"

namespace thaw {
namespace {

class Sealed : public testing::Test {
 protected:
  Sealed()
      : file_((std::filesystem::temp_directory_path() / ("thaw-key-" + random_hex())).string()) {}
  ~Sealed() override { std::filesystem::remove(file_); }

  static Code code_of(const std::function<void()>& work) {
    try {
      work();
    } catch (const Error& error) {
      return error.code();
    }
    ADD_FAILURE() << "it was accepted";
    return Code::kInternal;
  }

  std::string file_;
};

TEST_F(Sealed, ComesBackUnderItsNameAlone) {
  SealKey key = SealKey::make(file_);
  std::string plain("\0secret\xff", 8), sealed = key.seal("a", plain);
  EXPECT_EQ(sealed.find("secret"), std::string::npos);
  EXPECT_NE(sealed, key.seal("a", plain)) << "the same nonce twice";
  EXPECT_EQ(SealKey::read(file_).unseal("a", sealed), plain);
  EXPECT_EQ(key.unseal("b", key.seal("b", "")), "");
  EXPECT_EQ(code_of([&] { key.unseal("b", sealed); }), Code::kCorrupt);
}

TEST_F(Sealed, NoByteOfItCanBeChanged) {
  SealKey key = SealKey::make(file_);
  const std::string sealed = key.seal("a", "plain");
  for (std::size_t at = 0; at < sealed.size(); ++at) {
    std::string changed = sealed;
    changed[at] = static_cast<char>(changed[at] ^ 1);
    EXPECT_THROW(key.unseal("a", changed), Error) << at;
    EXPECT_THROW(key.unseal("a", sealed.substr(0, at)), Error) << at;
  }
  std::string newer = sealed;
  newer[newer.find('1')] = '2';
  EXPECT_EQ(code_of([&] { key.unseal("a", newer); }), Code::kUnsupported);
}

TEST_F(Sealed, AKeyThatIsLostWrongOrReadableByOthers) {
  EXPECT_EQ(code_of([&] { SealKey::read(file_); }), Code::kNotFound);
  std::string sealed = SealKey::make(file_).seal("a", "plain");
  struct stat info {};
  ASSERT_EQ(::stat(file_.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0600u);
  SealKey other = SealKey::make(file_);
  EXPECT_EQ(code_of([&] { other.unseal("a", sealed); }), Code::kUnavailable);
  ASSERT_EQ(::chmod(file_.c_str(), 0640), 0);
  EXPECT_EQ(code_of([&] { SealKey::read(file_); }), Code::kDenied);
  ASSERT_EQ(::chmod(file_.c_str(), 0600), 0);
  for (const char* text : {"", "abc", "not a key", "zz"}) {
    write_file(file_, text);
    EXPECT_EQ(code_of([&] { SealKey::read(file_); }), Code::kCorrupt) << text;
  }
}

}  // namespace
}  // namespace thaw
