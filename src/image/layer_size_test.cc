#include "image/layer_size.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "util/error.h"
#include "util/file.h"
#include "util/process.h"

namespace thaw::image {
namespace {

using testing::HasSubstr;

class LayerSize : public testing::Test {
 protected:
  LayerSize() { make_directories(dir_ + "/in"); }
  ~LayerSize() override { std::filesystem::remove_all(dir_); }

  void shell(const std::string& command) {
    RunResult result = run({"sh", "-ec", command}, Deadline::after_ms(60'000), {.directory = dir_});
    ASSERT_TRUE(result.ok()) << command << ": " << result.err;
  }
  TarSize measure(const std::string& file, const UnpackLimits& limits = {}) {
    TarSize size(limits, "x");
    measure_layer(dir_ + "/" + file, size, [] {});
    return size;
  }
  std::string refusal(const std::string& file, const UnpackLimits& limits,
                      Code code = Code::kExhausted) {
    try {
      measure(file, limits);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), code) << error.what();
      return error.what();
    }
    ADD_FAILURE() << file << " is within the limits";
    return "";
  }

  std::string dir_ =
      (std::filesystem::temp_directory_path() / ("thaw-layer-" + random_hex())).string();
};

TEST_F(LayerSize, TheSameHoweverItIsPacked) {
  shell("printf %1000s x > in/a; ln in/a in/b; ln -s a in/c; mkdir in/d; mkfifo in/e");
  shell("tar -cf plain -C in . && gzip -k plain && zstd -q plain -o plain.zst");
  shell("cp plain.gz two.gz; gzip -c plain >> two.gz; head -c 100000 /dev/zero | gzip >> two.gz");
  for (const char* format : {"gnu", "pax", "ustar", "v7"})
    shell(std::string("tar -cf ") + format + " --format=" + format + " -C in a && tar -xOf " +
          format + " a | cmp - in/a");
  auto whole = std::filesystem::file_size(dir_ + "/plain");
  for (const char* name : {"plain", "plain.gz", "plain.zst"}) {
    EXPECT_EQ(measure(name).files(), 6u) << name;
    EXPECT_EQ(measure(name).bytes(), whole) << name;
  }
  for (const char* name : {"gnu", "pax", "ustar", "v7"})
    EXPECT_EQ(measure(name).files(), 1u) << name;
  // Streams that follow each other are one, as for gzip(1).
  EXPECT_EQ(measure("two.gz").files(), 12u);
  EXPECT_EQ(measure("two.gz").bytes(), 2 * whole + 100'000);
}

TEST_F(LayerSize, ABombIsFoundBeforeItIsUnpacked) {
  shell("truncate -s 200M in/zeros; tar -cf - -C in zeros | gzip -1 > bomb.gz");
  EXPECT_LT(std::filesystem::file_size(dir_ + "/bomb.gz"), 2'000'000u);
  EXPECT_THAT(refusal("bomb.gz", {.bytes = 10 << 20, .bound = "--image-quota"}),
              testing::AllOf(HasSubstr("10.0 MiB"), HasSubstr("--image-quota")));
  // What comes after the end of a tar is read by whoever checks its digest.
  shell("head -c 50000000 /dev/zero | gzip -1 > end.gz");
  refusal("end.gz", {.bytes = 10 << 20});
}

TEST_F(LayerSize, SparseFilesCountAsWhatTheyStandFor) {
  shell(
      "truncate -s 2G in/hole; for i in $(seq 60); do printf x | dd of=in/hole bs=1 "
      "seek=$((i * 1000000)) conv=notrunc status=none; done");
  for (const char* how : {"gnu", "pax --sparse-version=0.0", "pax --sparse-version=0.1",
                          "pax --sparse-version=1.0"}) {
    shell(std::string("echo y > in/next; tar -cSf sparse --format=") + how + " -C in hole next");
    EXPECT_LT(std::filesystem::file_size(dir_ + "/sparse"), 2'000'000u);
    TarSize size = measure("sparse");
    EXPECT_EQ(size.files(), 2u) << how;
    EXPECT_GE(size.bytes(), 2ull << 30) << how;
    refusal("sparse", {.bytes = 1 << 30});
  }
}

TEST_F(LayerSize, FilesAndDepthHaveLimits) {
  shell("for i in $(seq 50); do : > in/$i; done; tar -cf many -C in .");
  EXPECT_THAT(refusal("many", {.files = 50}), HasSubstr("50 files"));
  EXPECT_EQ(measure("many", {.files = 51}).files(), 51u);
  for (const char* format : {"gnu", "pax"}) {
    shell(std::string("mkdir -p in/$(seq -s/ 1001 1200); tar -cf deep --format=") + format +
          " -C in .");
    EXPECT_THAT(refusal("deep", {.depth = 100}), HasSubstr("100 folders deep"));
    measure("deep", {.depth = 201});
  }
}

TEST_F(LayerSize, WhatIsNoLayer) {
  shell(
      "head -c 100000 /dev/urandom > noise; printf '\\037\\213junk' > gz; "
      "printf '\\050\\265\\057\\375junkjunkjunk' > zst; tar -cf ok -C in .; gzip ok; "
      "head -c 60 ok.gz > short.gz");
  refusal("gz", {}, Code::kCorrupt);
  refusal("zst", {}, Code::kCorrupt);
  measure("short.gz");  // what reads all of it says so
  try {
    measure("noise");
  } catch (const Error&) {
  }
  // Sizes that are negative, no number, or larger than any number.
  std::string block(512, '\0');
  for (const std::string& size :
       {std::string(12, '\xff'),
        std::string("\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", 12),
        std::string("x0000000000\0", 12), std::string("99999999999\0", 12)}) {
    block.replace(0, 1, "a").replace(124, 12, size).replace(156, 1, "0");
    write_file(dir_ + "/bad", block);
    refusal("bad", {}, Code::kCorrupt);
  }
  block.replace(124, 12, std::string("\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", 12));
  write_file(dir_ + "/bad", block);
  refusal("bad", {});
}

}  // namespace
}  // namespace thaw::image
