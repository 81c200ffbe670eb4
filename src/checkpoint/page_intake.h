// Takes in the memory that CRIU dumps, as fast as memory copies. CRIU splices pages from the frozen
// tree into its pages-N.img; where a FIFO stands in such a file's place, splicing copies nothing.
// One thread here empties the FIFOs into pipes, again without a copy, and others copy from those,
// while CRIU goes on with the next pages, into memory that was touched before the tree was frozen.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "util/fd.h"

namespace thaw::checkpoint {

// What CRIU makes its pipes, where it may (PIPE_MAX_SIZE in its criu/page-pipe.h, rounded up), so
// what it takes out of a tree at a time. Above fs.pipe-max-size that takes CAP_SYS_RESOURCE.
inline constexpr std::size_t kPipeBytes = 4 << 20;

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
  // Of pages that are moved, not copied, out of a FIFO.
  struct Pipe {
    Fd out, in;
    Segment content;
  };
  void guarded(const std::function<void()>& work);
  void move();
  Pipe* free_pipe();
  bool fill(Pipe& pipe);
  void copy();
  bool over() const;
  void abandon();
  void join();

  std::string directory_;
  std::unique_ptr<char, std::function<void(char*)>>
      reserved_;            // address space; what is used takes memory
  char* memory_ = nullptr;  // in it, where huge pages begin
  std::size_t capacity_ = 0;
  Fd epoll_, stop_;
  std::vector<std::thread> workers_;
  std::vector<Pipe> pipes_;

  // Of the one thread that moves, until it has ended.
  std::vector<Fd> fifos_;
  std::vector<bool> opened_;  // by CRIU
  std::vector<Segment> segments_;
  std::size_t used_ = 0;

  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  std::vector<Pipe*> free_;
  std::deque<Pipe*> full_;
  bool moved_ = false, abandoned_ = false;
  std::string failure_;
};

}  // namespace thaw::checkpoint
