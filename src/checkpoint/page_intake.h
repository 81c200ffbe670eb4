// Takes in the memory that CRIU dumps, as fast as memory copies. CRIU splices pages from the frozen
// tree into its pages-N.img; where a FIFO stands in such a file's place, splicing copies nothing.
// Threads here copy from there, while CRIU goes on with the next pages, into memory that was
// touched before the tree was frozen.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "util/fd.h"

namespace thaw::checkpoint {

class PageIntake {
 public:
  // CRIU numbers these files from 1, one for each address space and each piece of shared memory.
  // What has a higher number than `files` is an ordinary file. `expected` bytes of memory are
  // touched; more than that may come. Error kExhausted and the like where memory, descriptors or
  // threads are short.
  PageIntake(std::string directory, std::size_t files, std::uint64_t expected);
  ~PageIntake();
  PageIntake(const PageIntake&) = delete;
  PageIntake& operator=(const PageIntake&) = delete;

  // When CRIU has written everything and the tree is still frozen: all of it is here, and the FIFOs
  // are gone. Throws what went wrong, also where CRIU has failed of it.
  void finish();
  // After finish(), once: writes the images into a directory, and gives their memory back.
  void write(const std::string& directory);

 private:
  struct Segment {
    std::size_t file, at, length;
  };
  void work();
  bool take(const Fd& pipe, Segment* taken);
  void join();

  std::string directory_;
  std::unique_ptr<char, std::function<void(char*)>>
      reserved_;            // address space; what is used takes memory
  char* memory_ = nullptr;  // in it, where huge pages begin
  std::size_t capacity_ = 0;
  Fd epoll_, stop_;
  std::vector<std::thread> workers_;

  std::atomic<bool> abandoned_ = false;

  std::mutex mutex_;  // guards what follows; held while waiting for pages
  std::vector<Fd> fifos_;
  std::vector<bool> opened_;  // by CRIU
  std::vector<Segment> segments_;
  std::size_t used_ = 0;
  std::string failure_;
};

}  // namespace thaw::checkpoint
