#include "checkpoint/page_filter.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstring>
#include <map>
#include <random>

#include "checkpoint/images.h"
#include "checkpoint/page_index.h"
#include "util/file.h"

namespace thaw::checkpoint {
namespace {

constexpr std::uint64_t kPage = kPageSize, kStart = 0x10000000;
constexpr std::uint32_t kAnon = 0x201, kHeapArea = 0x221, kFileArea = 0x41, kVdso = 0x209;

using Pages = std::map<std::uint64_t, std::string>;  // by address

std::string page_of(std::uint64_t number) {
  std::string page(kPage, '\0');
  std::uint64_t word = number * 0x9E3779B97F4A7C15ull + 1;
  // At the end only: a page is not zero because it begins so.
  std::memcpy(page.data() + kPage - sizeof word, &word, sizeof word);
  return page;
}

class PageFilterTest : public ::testing::Test {
 protected:
  PageFilterTest()
      : base("/tmp/thaw-filter-" + random_hex()), from(base + "/from"), to(base + "/to") {
    make_directories(from);
    make_directories(to);
    // Number 5 is a file of the root, 6 one of another mount, 7 one that was deleted.
    Image files{"filesimg", {}}, mounts{"mountimg", {}}, remaps{"remapimg", {}};
    for (auto [id, mount] : {std::pair{5u, 30}, {6u, 31}, {7u, 30}}) {
      rpc::AnyFile file;
      file.set_id(id);
      file.mutable_reg()->set_name("/lib/library");
      file.mutable_reg()->set_mnt_id(mount);
      files.entries.push_back(file.SerializeAsString());
    }
    for (auto [id, point] : {std::pair{30u, "/"}, {31u, "/lib"}}) {
      rpc::MountEntry mount;
      mount.set_mnt_id(id);
      mount.set_mountpoint(point);
      mounts.entries.push_back(mount.SerializeAsString());
    }
    rpc::Remap remap;
    remap.set_orig_id(7);
    remaps.entries.push_back(remap.SerializeAsString());
    write_file(from + "/files.img", image_bytes(files));
    write_file(from + "/mountpoints-12.img", image_bytes(mounts));
    write_file(from + "/remap-fpath.img", image_bytes(remaps));
    std::string contents;
    for (std::uint64_t i = 0; i < 40; ++i) contents += page_of(1000 + i);
    contents.resize(contents.size() - kPage / 2);  // it ends within a page
    write_file(base + "/library", contents);
  }
  ~PageFilterTest() override { remove_tree(base); }

  void area(std::uint64_t first, std::uint64_t pages, std::uint32_t status, std::uint64_t file = 0,
            std::uint64_t offset = 0) {
    rpc::Vma* vma = layout.add_vmas();
    vma->set_start(kStart + first * kPage);
    vma->set_end(kStart + (first + pages) * kPage);
    vma->set_status(status);
    vma->set_flags(status == kFileArea ? 2 : 0x22);
    vma->set_shmid(file);
    vma->set_pgoff(offset);
  }
  // A run that CRIU wrote.
  void run(std::uint64_t first, const std::vector<std::string>& pages) {
    rpc::PagemapEntry entry;
    entry.set_vaddr(kStart + first * kPage);
    entry.set_compat_nr_pages(0);
    entry.set_nr_pages(pages.size());
    entry.set_flags(kLazy | kPresent);
    map.entries.push_back(entry.SerializeAsString());
    for (std::size_t i = 0; i < pages.size(); ++i) {
      stored += pages[i];
      memory[kStart + (first + i) * kPage] = pages[i];
    }
  }
  LeftOut filter(bool in_place) {
    Image mm{"mm-image", {layout.SerializeAsString()}};
    rpc::PagemapHead head;
    head.set_pages_id(3);
    map.entries.insert(map.entries.begin(), head.SerializeAsString());
    write_file(from + "/mm-9.img", image_bytes(mm));
    write_file(from + "/pagemap-9.img", image_bytes(map));
    write_file(from + "/pages-3.img", stored);
    const std::string& where = in_place ? from : to;
    LeftOut left = move_memory(from, where, [this](const std::string& path) {
      return path == "/lib/library" ? Fd::open(base + "/library", O_RDONLY) : Fd();
    });
    if (!in_place) {
      EXPECT_FALSE(exists(from + "/pages-3.img"));
      EXPECT_FALSE(exists(from + "/pagemap-9.img"));
      write_file(to + "/mm-9.img", image_bytes(mm));
    }
    // What is stored now, run by run.
    std::string bytes = read_file(where + "/pages-3.img");
    std::size_t at = 0;
    std::vector<std::string> entries = read_image(where + "/pagemap-9.img").entries;
    for (std::size_t i = 1; i < entries.size(); ++i) {
      auto entry = parse_entry<rpc::PagemapEntry>(entries[i], "pagemap");
      EXPECT_EQ(entry.flags(), kLazy | kPresent);
      runs.emplace_back((entry.vaddr() - kStart) / kPage, entry.nr_pages());
      for (std::uint64_t page = 0; page < entry.nr_pages(); ++page, at += kPage)
        kept[entry.vaddr() + page * kPage] = bytes.substr(at, kPage);
    }
    EXPECT_EQ(at, bytes.size());
    return left;
  }

  std::string base, from, to;
  rpc::Mm layout;
  Image map{"pagemap-", {}};
  std::string stored;
  Pages memory, kept;
  using Runs = std::vector<std::pair<std::uint64_t, std::uint64_t>>;
  Runs runs;
  const std::string zero = std::string(kPage, '\0');
};

TEST_F(PageFilterTest, ZerosAtTheEndsAndLongOnesWithinAreLeftOut) {
  area(0, 100, kHeapArea);
  std::vector<std::string> pages(60, zero);
  for (std::uint64_t i : {2, 3, 5, 40}) pages[i] = page_of(i);
  run(10, pages);
  run(80, {zero, zero});
  LeftOut left = filter(false);
  // Page 14 stays within a run, as a hole of the file.
  EXPECT_EQ(runs, (Runs{{12, 4}, {50, 1}}));
  EXPECT_EQ(left.zero, (62 - 4) * kPage);
  EXPECT_EQ(left.file, 0u);
  for (auto& [address, page] : kept) EXPECT_EQ(page, memory[address]);
  struct stat info;
  ASSERT_EQ(::stat((to + "/pages-3.img").c_str(), &info), 0);
  EXPECT_EQ(info.st_blocks * 512, 4 * static_cast<std::int64_t>(kPage));
}

TEST_F(PageFilterTest, WhatIsNotPlainMemoryStays) {
  area(0, 30, kVdso);
  area(30, 30, kFileArea, 5);
  run(0, std::vector<std::string>(60, zero));
  LeftOut left = filter(false);
  EXPECT_EQ(runs, (Runs{{0, 60}}));
  EXPECT_EQ(left.zero + left.file, 0u);
}

TEST_F(PageFilterTest, PagesThatTheMappedFileHasAreLeftOut) {
  area(0, 40, kFileArea, 5, 2 * kPage);
  std::vector<std::string> pages;
  for (std::uint64_t i = 0; i < 38; ++i) pages.push_back(page_of(1002 + i));
  // Within the page that the file ends in it is zero behind that end.
  std::memset(pages[37].data() + kPage / 2, 0, kPage / 2);
  pages[20] = page_of(1);
  pages[21] = zero;
  run(0, pages);
  LeftOut left = filter(false);
  EXPECT_EQ(runs, (Runs{{20, 2}}));
  EXPECT_EQ(left.file, 36 * kPage);
  EXPECT_EQ(left.zero, 0u);
}

TEST_F(PageFilterTest, AFileThatIsNotCertainToBeThereStays) {
  area(0, 20, kFileArea, 6);
  area(20, 20, kFileArea, 7);
  area(40, 20, kFileArea, 8);
  std::vector<std::string> pages;
  for (std::uint64_t i = 0; i < 60; ++i) pages.push_back(page_of(1000 + i % 20));
  run(0, pages);
  filter(false);
  EXPECT_EQ(runs, (Runs{{0, 60}}));
}

// Whatever there is and wherever it goes, what a restore makes of it is what was dumped.
TEST_F(PageFilterTest, ARestoreHasWhatWasDumped) {
  for (bool in_place : {false, true}) {
    std::mt19937 random(20261126);
    layout.Clear();
    map.entries.clear();
    memory.clear();
    kept.clear();
    stored.clear();
    remove_tree(to);
    make_directories(to);
    std::vector<bool> of_file;
    for (std::uint64_t first = 0; first < 3000;) {
      std::uint64_t pages = 1 + random() % 90;
      bool file = random() % 3 == 0;
      if (file) pages = std::min<std::uint64_t>(pages, 39);
      area(first, pages, file ? kFileArea : kAnon, 5);
      for (std::uint64_t i = 0; i < pages; ++i) of_file.push_back(file);
      first += pages;
    }
    std::map<std::uint64_t, std::string> without;
    for (const auto& vma : layout.vmas())
      for (std::uint64_t at = vma.start(); at < vma.end(); at += kPage)
        without[at] = vma.status() == kFileArea ? page_of(1000 + (at - vma.start()) / kPage) : zero;
    int kind = 0, left_of_kind = 0;
    for (std::uint64_t first = 0; first < 2900;) {
      std::uint64_t pages = 1 + random() % 100;
      std::vector<std::string> contents;
      for (std::uint64_t i = 0; i < pages; ++i) {
        if (left_of_kind-- <= 0) {
          kind = static_cast<int>(random() % 3);
          left_of_kind = static_cast<int>(random() % 40);
        }
        std::string needless = without[kStart + (first + i) * kPage];
        contents.push_back(kind == 0 ? page_of(random() % 500) : kind == 1 ? zero : needless);
      }
      run(first, contents);
      first += pages + random() % 3;
    }
    LeftOut left = filter(in_place);
    for (auto& [address, page] : memory) {
      auto found = kept.find(address);
      ASSERT_EQ(found == kept.end() ? without[address] : found->second, page)
          << std::hex << address;
    }
    for (auto& [address, page] : kept) ASSERT_TRUE(memory.contains(address));
    EXPECT_LT(kept.size(), memory.size());
    EXPECT_GT(left.zero, 0u);
    EXPECT_GT(left.file, 0u);
    runs.clear();
  }
}

TEST_F(PageFilterTest, FewerPagesThanThePagemapNamesAreAnError) {
  area(0, 40, kAnon);
  run(0, std::vector<std::string>(20, zero));
  stored.resize(19 * kPage);
  EXPECT_THROW(filter(false), Error);
}

}  // namespace
}  // namespace thaw::checkpoint
