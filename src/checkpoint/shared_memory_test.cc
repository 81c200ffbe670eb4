#include "checkpoint/shared_memory.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "checkpoint/images.h"
#include "util/error.h"
#include "util/file.h"

namespace thaw::checkpoint {
namespace {

constexpr std::uint64_t kPage = kPageSize, kPages = 1024;
constexpr std::uint32_t kShared = kRegular | kFileShared | kMemfd;

class SharedMemoryTest : public ::testing::Test {
 protected:
  SharedMemoryTest() : images("/tmp/thaw-shared-" + random_hex()) { make_directories(images); }
  ~SharedMemoryTest() override { remove_tree(images); }

  // A memfd, its file, and a mapping of that. Numbers: the inode's is 100 more than the file's, the
  // segment's 200.
  rpc::MemfdInode& memfd(std::uint32_t file, const char* name = "/dev/zero",
                         std::uint32_t status = kShared) {
    rpc::MemfdInode& inode = inodes.emplace_back();
    inode.set_name(name);
    inode.set_uid(5);
    inode.set_gid(6);
    inode.set_size(kPages * kPage);
    inode.set_shmid(file + 200);
    inode.set_seals(F_SEAL_SEAL);
    inode.set_inode_id(file + 100);
    inode.set_mode(S_IFREG | 0640);
    add_file(file, file + 100, status);
    return inode;
  }
  void add_file(std::uint32_t file, std::uint32_t inode, std::uint32_t status) {
    rpc::AnyFile entry;
    entry.set_id(file);
    entry.mutable_memfd()->set_inode_id(inode);
    files.entries.push_back(entry.SerializeAsString());
    rpc::Vma* vma = layout.add_vmas();
    vma->set_start(0x10000000ull * file);
    vma->set_end(0x10000000ull * file + kPages * kPage);
    vma->set_status(status);
    vma->set_flags(MAP_SHARED);
    vma->set_shmid(file);
  }
  // Runs of {first page, pages} of a file's segment; each page has its number.
  void pages(std::uint32_t file, const std::vector<std::pair<std::uint64_t, std::uint64_t>>& runs) {
    rpc::PagemapHead head;
    head.set_pages_id(file);
    Image pagemap{"pagemaps", {head.SerializeAsString()}};
    std::string stored;
    for (auto [first, count] : runs) {
      rpc::PagemapEntry entry;
      entry.set_vaddr(first * kPage);
      entry.set_compat_nr_pages(0);
      entry.set_nr_pages(count);
      entry.set_flags(kPresent);
      pagemap.entries.push_back(entry.SerializeAsString());
      for (std::uint64_t i = first; i < first + count; ++i) stored += page_of(i);
    }
    write_file(fmt::format("{}/pages-{}.img", images, file), stored);
    write_file(fmt::format("{}/pagemap-shmem-{}.img", images, file + 200), image_bytes(pagemap));
  }
  static std::string page_of(std::uint64_t number) {
    std::string page(kPage, 'x');
    return page.replace(0, 8, fmt::format("{:08}", number));
  }
  int name() {
    Image memfds{"memfdimg", {}};
    for (const rpc::MemfdInode& inode : inodes) memfds.entries.push_back(inode.SerializeAsString());
    write_file(images + "/mm-1.img", image_bytes({"mm-image", {layout.SerializeAsString()}}));
    write_file(images + "/memfd.img", image_bytes(memfds));
    write_file(images + "/files.img", image_bytes(files));
    return name_shared_memory(images);
  }

  std::string images;
  rpc::Mm layout;
  std::vector<rpc::MemfdInode> inodes;
  Image files{"filesimg", {}};
};

TEST_F(SharedMemoryTest, NamesTheLargestThatAreOnlyMapped) {
  for (std::uint32_t file : {1u, 2u, 3u, 4u, 5u}) {
    memfd(file);
    pages(file, {{0, 300 + file}});
  }
  add_file(20, 105, kShared);  // another process maps the fifth
  EXPECT_EQ(name(), 4);
  std::vector<SharedSegment> segments = read_shared_memory(images);
  ASSERT_EQ(segments.size(), 4u);
  for (const SharedSegment& segment : segments) {
    EXPECT_EQ(segment.pages_file, fmt::format("pages-{}.img", 5 - segment.number));
    EXPECT_EQ(segment.size, kPages * kPage);
    EXPECT_EQ(segment.uid, 5u);
    EXPECT_EQ(segment.gid, 6u);
  }
  EXPECT_EQ(name_shared_memory(images), 0) << "a second time";
  EXPECT_EQ(read_shared_memory(images).size(), 4u);
}

TEST_F(SharedMemoryTest, LeavesTheOthersToCriu) {
  memfd(1, "named");
  memfd(2).set_seals(F_SEAL_SEAL | F_SEAL_WRITE);
  memfd(3).set_huge_pages(4);
  memfd(4, "/dev/zero", kRegular | kFilePrivate | kMemfd);
  memfd(5);  // has a descriptor
  memfd(6);  // is small
  memfd(7);  // is mapped in two ways
  add_file(27, 107, kRegular | kFilePrivate | kMemfd);
  for (std::uint32_t file : {1u, 2u, 3u, 4u, 5u, 7u}) pages(file, {{0, 300}});
  pages(6, {{0, 255}});
  rpc::FdinfoEntry descriptor;
  descriptor.set_id(5);
  write_file(images + "/fdinfo-2.img", image_bytes({"fdinfos.", {descriptor.SerializeAsString()}}));
  EXPECT_EQ(name(), 0);
  EXPECT_TRUE(read_shared_memory(images).empty());
}

TEST_F(SharedMemoryTest, PagesThatMakeNoSenseAreRefused) {
  memfd(1);
  pages(1, {{0, 300}});
  ASSERT_EQ(name(), 1);
  pages(1, {{kPages - 299, 300}});
  EXPECT_THROW(read_shared_memory(images), Error) << "beyond the segment's end";
  pages(1, {{0, 300}});
  write_file(images + "/pages-1.img", std::string(299 * kPage, 'x'));
  EXPECT_THROW(read_shared_memory(images), Error) << "beyond the image's end";
}

TEST_F(SharedMemoryTest, FillsWithWhatWasDumped) {
  memfd(1).set_size(kPages * kPage - 100);
  memfd(2);
  pages(1, {{3, 600}, {700, 1}, {900, kPages - 900}});
  pages(2, {{0, 256}});
  ASSERT_EQ(name(), 2);
  std::vector<Fd> shared;
  for (std::size_t i = 0; i < kMostShared; ++i) shared.push_back(make_shared_file());
  SharedFill fill(images, read_shared_memory(images), shared, {});
  fill.wait(Deadline::after_ms(10'000));
  struct stat info;
  ASSERT_EQ(::fstat(shared[0].get(), &info), 0);
  EXPECT_EQ(static_cast<std::uint64_t>(info.st_size), kPages * kPage - 100);
  EXPECT_EQ(info.st_uid, 5u);
  EXPECT_EQ(info.st_gid, 6u);
  EXPECT_EQ(info.st_mode, static_cast<mode_t>(S_IFREG | 0640));
  EXPECT_EQ(::fcntl(shared[0].get(), F_GET_SEALS), F_SEAL_SEAL);
  std::string found(kPages * kPage, '\0'), wanted(kPages * kPage, '\0');
  EXPECT_EQ(::pread(shared[0].get(), found.data(), found.size(), 0), info.st_size);
  for (std::uint64_t i = 0; i < kPages; ++i)
    if ((i >= 3 && i < 603) || i == 700 || i >= 900) wanted.replace(i * kPage, kPage, page_of(i));
  EXPECT_TRUE(found.substr(0, kPages * kPage - 100) == wanted.substr(0, kPages * kPage - 100));
  EXPECT_EQ(info.st_blocks / 8, 601 + static_cast<long>(kPages) - 900) << "holes stay holes";
}

TEST_F(SharedMemoryTest, SaysWhyItCannotFill) {
  memfd(1);
  pages(1, {{0, 300}});
  ASSERT_EQ(name(), 1);
  std::vector<Fd> shared;
  shared.push_back(make_shared_file());
  SharedFill fill(images, read_shared_memory(images), shared, {images + "/no-group"});
  try {
    fill.wait(Deadline::after_ms(10'000));
    FAIL() << "it was filled";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::kNotFound);
  }
}

}  // namespace
}  // namespace thaw::checkpoint
