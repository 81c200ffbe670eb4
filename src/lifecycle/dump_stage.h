// Where a dump's images are until the tree runs again: in memory.
#pragma once

#include <cstdint>
#include <string>

#include "checkpoint/page_intake.h"

namespace thaw::lifecycle {

class DumpStage {
 public:
  // A tmpfs mounted at `path`, in this mount namespace only, with a page intake for `images` files
  // and `expected` bytes. Throws what there is not enough of.
  DumpStage(const std::string& path, std::size_t images, std::uint64_t expected);

  const std::string& path() const { return mount_.path; }
  // CRIU has written everything, and the tree is still frozen. Throws what went wrong.
  void finish() { memory_.finish(); }
  // Once: brings all of it to a directory.
  void write(const std::string& directory);

 private:
  struct Mount {
    explicit Mount(std::string at);
    ~Mount();
    Mount(const Mount&) = delete;
    Mount& operator=(const Mount&) = delete;
    std::string path;
  };
  Mount mount_;
  checkpoint::PageIntake memory_;
};

}  // namespace thaw::lifecycle
