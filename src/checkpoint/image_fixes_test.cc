#include "checkpoint/image_fixes.h"

#include <gtest/gtest.h>

#include <sys/mman.h>

#include <cstring>

#include "checkpoint/images.h"
#include "util/error.h"
#include "util/file.h"

namespace thaw::checkpoint {
namespace {

std::string entry(std::uint64_t value_ns, std::uint64_t interval_ns) {
  rpc::FileEntry file;
  file.mutable_tfd()->set_vsec(0);
  file.mutable_tfd()->set_vnsec(value_ns);
  file.mutable_tfd()->set_isec(0);
  file.mutable_tfd()->set_insec(interval_ns);
  std::string bytes = file.SerializeAsString();
  bytes += std::string("\x08\x11", 2);  // field 1, type: not declared here, must pass through
  std::uint32_t length = static_cast<std::uint32_t>(bytes.size());
  return std::string(reinterpret_cast<const char*>(&length), sizeof length) + bytes;
}

class ImageFixesTest : public ::testing::Test {
 protected:
  ImageFixesTest() : base("/tmp/thaw-fixes-" + random_hex()) { make_directories(base); }
  ~ImageFixesTest() override { remove_tree(base); }
  std::string base;
};

TEST_F(ImageFixesTest, OnlyExpiredPeriodicTimersAreRearmed) {
  std::string image = std::string(8, 'm') + entry(0, 0) + entry(5, 100) + entry(0, 100);
  write_file(base + "/files.img", image);
  EXPECT_EQ(rearm_expired_timers(base), 1);
  std::string fixed = read_file(base + "/files.img");
  std::size_t kept = 8 + entry(0, 0).size() + entry(5, 100).size();
  EXPECT_EQ(fixed.substr(0, kept), image.substr(0, kept));
  rpc::FileEntry last;
  ASSERT_TRUE(last.ParseFromString(fixed.substr(kept + 4)));
  EXPECT_EQ(last.tfd().vnsec(), 1u);
  EXPECT_EQ(last.tfd().insec(), 100u);
  EXPECT_NE(fixed.find(std::string("\x08\x11", 2), kept), std::string::npos);
  EXPECT_EQ(rearm_expired_timers(base), 0);
}

TEST_F(ImageFixesTest, ACutImageIsAnError) {
  std::string image = std::string(8, 'm') + entry(0, 100);
  write_file(base + "/files.img", image.substr(0, image.size() - 3));
  EXPECT_THROW(rearm_expired_timers(base), Error);
}

constexpr std::uint64_t kPage = 4096, kArray = 4 << 20, kHuge = 1ull << MADV_HUGEPAGE;

class Mappings : public ImageFixesTest {
 protected:
  // One after another from 1 GiB on.
  rpc::Vma& add(std::uint64_t length, std::uint64_t madv = 0) {
    rpc::Vma& vma = *mm.add_vmas();
    vma.set_start(end);
    vma.set_end(end += length);
    vma.set_pgoff(0);
    vma.set_flags(MAP_PRIVATE | MAP_ANONYMOUS);
    vma.set_status(kRegular | kAnonPrivate);
    vma.mutable_unknown_fields()->append("\x28\x03");  // field 5, prot: not declared
    if (madv) vma.set_madv(madv);
    return vma;
  }
  // The lengths of what is left, in pages.
  std::vector<std::uint64_t> joined() {
    std::string path = base + "/mm-1.img";
    write_file(path, image_bytes({"magic...", {mm.SerializeAsString()}}));
    int fewer = join_mappings(base);
    Image image = read_image(path);
    EXPECT_EQ(image.magic, "magic...");
    rpc::Mm after = parse_entry<rpc::Mm>(image.entries.at(0), path);
    EXPECT_EQ(after.vmas_size(), mm.vmas_size() - fewer);
    EXPECT_EQ(after.arg_start(), mm.arg_start());
    std::vector<std::uint64_t> pages;
    for (const rpc::Vma& vma : after.vmas()) {
      pages.push_back((vma.end() - vma.start()) / kPage);
      EXPECT_EQ(vma.unknown_fields(), mm.vmas(0).unknown_fields());
    }
    mm = after;
    return pages;
  }
  using Pages = std::vector<std::uint64_t>;
  rpc::Mm mm;
  std::uint64_t end = 1 << 30;
};

TEST_F(Mappings, AreJoinedAcrossWhatIsTooSmallForAHugePage) {
  mm.set_arg_start(77);
  for (int i = 0; i < 3; ++i) {
    add(kPage);
    add(kArray, kHuge);
  }
  add(kPage);
  EXPECT_EQ(joined(), Pages{3 * 1024 + 4});
  EXPECT_EQ(mm.vmas(0).start(), 1u << 30);
  EXPECT_EQ(mm.vmas(0).madv(), kHuge);
  EXPECT_EQ(joined(), Pages{3 * 1024 + 4}) << "nothing is left to do";
}

TEST_F(Mappings, StayApartWhereTheyDiffer) {
  add(kArray, kHuge);
  add(kArray);  // it would get huge pages that nobody asked for
  end += kPage;
  add(kPage, kHuge);
  add(kPage, kHuge | 1ull << MADV_DONTFORK);
  add(kPage).set_status(kRegular | kAnonPrivate | kHeap);
  add(kPage).set_flags(MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN);
  add(kPage).set_status(kRegular | kFilePrivate);
  add(kPage).set_status(kRegular | kFilePrivate);
  EXPECT_EQ(joined(), (Pages{1024, 1024, 1, 1, 1, 1, 1, 1}));
}

TEST_F(Mappings, OfOtherProtectionStayApart) {
  add(kPage);
  std::string other = "\x28\x01";
  *add(kArray, kHuge).mutable_unknown_fields() = other;
  write_file(base + "/mm-1.img", image_bytes({"magic...", {mm.SerializeAsString()}}));
  EXPECT_EQ(join_mappings(base), 0);
}

TEST_F(Mappings, OfNoProcessAreNone) { EXPECT_EQ(joined(), Pages{}); }

}  // namespace
}  // namespace thaw::checkpoint
