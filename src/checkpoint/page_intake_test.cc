// The test plays CRIU: it splices pages of its own from a pipe into the images.
#include "checkpoint/page_intake.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <csignal>
#include <cstring>

#include "util/error.h"
#include "util/file.h"

namespace thaw::checkpoint {
namespace {

constexpr std::size_t kPage = 4096;

class PageIntakeTest : public ::testing::Test {
 protected:
  PageIntakeTest()
      : base("/tmp/thaw-intake-" + random_hex()), stage(base + "/stage"), store(base + "/store") {
    make_directories(stage);
    make_directories(store);
  }
  ~PageIntakeTest() override { remove_tree(base); }

  static std::string pages(std::size_t count, std::uint64_t seed) {
    std::string text(count * kPage, '\0');
    for (std::size_t at = 0; at < text.size(); at += sizeof seed) {
      seed = seed * 6364136223846793005u + 1;
      std::memcpy(text.data() + at, &seed, sizeof seed);
    }
    return text;
  }
  // As CRIU's page-xfer does: O_TRUNC, vmsplice into a pipe, splice out of it.
  Fd open_image(int number) const {
    return Fd::open(stage + fmt::format("/pages-{}.img", number), O_WRONLY | O_CREAT | O_TRUNC,
                    0600);
  }
  static void write_image(const Fd& image, const std::string& text) {
    auto [out, in] = Fd::pipe();
    for (std::size_t at = 0; at < text.size();) {
      iovec part{const_cast<char*>(text.data()) + at,
                 std::min<std::size_t>(text.size() - at, 16 * kPage)};
      ssize_t left = ::vmsplice(in.get(), &part, 1, SPLICE_F_GIFT);
      ASSERT_GT(left, 0);
      at += static_cast<std::size_t>(left);
      while (left > 0) {
        ssize_t n = ::splice(out.get(), nullptr, image.get(), nullptr,
                             static_cast<std::size_t>(left), SPLICE_F_MOVE);
        ASSERT_GT(n, 0) << std::strerror(errno);
        left -= n;
      }
    }
  }
  std::string base, stage, store;
};

TEST_F(PageIntakeTest, TakesInWhatIsWrittenAndNothingElse) {
  std::string first = pages(5000, 1), second = pages(3, 2), fourth = pages(700, 4),
              fifth = pages(9, 5);
  PageIntake intake(stage, 4, 1 << 20);  // more comes than is expected
  write_image(open_image(1), first);
  {
    Fd image = open_image(2);
    write_image(image, second);
    write_image(image, second);
  }
  open_image(3);  // an address space without a page
  write_image(open_image(5), fifth);
  intake.finish();
  EXPECT_EQ(read_file(stage + "/pages-5.img"), fifth);
  remove_tree(stage + "/pages-5.img");
  EXPECT_TRUE(std::filesystem::is_empty(stage)) << "of FIFOs nothing is left";
  intake.write(store);
  EXPECT_TRUE(read_file(store + "/pages-1.img", first.size()) == first);
  EXPECT_TRUE(read_file(store + "/pages-2.img") == second + second);
  EXPECT_EQ(read_file(store + "/pages-3.img"), "");
  EXPECT_FALSE(exists(store + "/pages-4.img"));
}

TEST_F(PageIntakeTest, WhatIsChangedAfterTheFinishIsNotInIt) {
  std::string text = pages(2000, 7), before = text;
  PageIntake intake(stage, 1, text.size());
  write_image(open_image(1), text);
  intake.finish();
  std::fill(text.begin(), text.end(), 'x');
  intake.write(store);
  EXPECT_TRUE(read_file(store + "/pages-1.img") == before);
}

TEST_F(PageIntakeTest, EndsWithoutBeingAskedForAnything) {
  Fd image;
  {
    PageIntake intake(stage, 2, 0);
    image = open_image(2);
  }
  ::signal(SIGPIPE, SIG_IGN);
  EXPECT_EQ(::write(image.get(), "x", 1), -1);
  EXPECT_EQ(errno, EPIPE) << "a writer does not wait for what is gone";
}

TEST_F(PageIntakeTest, SaysWhereItCannotBe) {
  EXPECT_THROW(PageIntake(base + "/nowhere", 1, 0), Error);
}

}  // namespace
}  // namespace thaw::checkpoint
