// Answers the page faults of one restored replica from its checkpoint's memory images, in place of
// CRIU's lazy-pages daemon and on its socket protocol (FACTS of the protocol: docs/memory.md). What
// is never touched is never read; the page cache is shared by all replicas of a checkpoint. One
// thread. If it dies, untouched memory would read as zeros: the shim's keeper holds a second
// reference to every userfaultfd and kills the replica then.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "checkpoint/page_index.h"
#include "checkpoint/record.h"
#include "util/clock.h"
#include "util/fd.h"

namespace thaw::checkpoint {

// Whether the process whose memory this userfaultfd is about has ended: there is no event for it.
bool userfaultfd_ended(int fd);

struct PageServiceStats {
  std::uint64_t faults = 0, fault_pages = 0, ahead_pages = 0, unread_bytes = 0;
  std::size_t spaces = 0;  // address spaces served
};

// All are called from the service's thread.
struct PageServiceCallbacks {
  std::function<void(int fd)> hold;  // every userfaultfd (not owned), before it is used: pass a
                                     // duplicate to the second holder
  std::function<void()> let_go;  // none is needed any more: who holds one must close it, or faults
                                 // on memory never written wait for ever
  std::function<void(const std::string& why)>
      failed;  // the service has ended; faults block from now on
};

class PageService {
 public:
  // Listens at `socket_dir`/lazy-pages.socket before it returns. `working_set` is copied ahead as
  // soon as the ranges are registered, in order. `exact`: answers a fault with its page alone, so
  // that touched() is complete; for making the record. `background`: once nothing is
  // asked for, the rest is read a little at a time. Error kCorrupt when the images make no
  // sense: they are parsed as CRIU names them.
  PageService(std::string images_dir, const std::string& socket_dir,
              std::vector<TouchedRange> working_set, bool exact, bool background,
              PageServiceCallbacks callbacks);
  ~PageService();

  // Reads everything that is still unread, then lets go of all userfaultfds. After it a dump is
  // whole. False at the deadline.
  bool drain(Deadline deadline);
  // What was faulted in so far, in order, a page each. For the record of the next restore. `last`:
  // nobody asks again, and faults are no longer answered exactly.
  std::vector<TouchedRange> touched(bool last);
  // Nothing is read at leisure while it rests.
  void rest(bool on);
  PageServiceStats stats();
  // Why the service gave up, "" while it is well.
  std::string failure();

 private:
  struct Space;      // one address space
  struct PagesFile;  // a mapped pages image
  using Spaces = std::map<int, std::unique_ptr<Space>>;
  enum class Copied {
    kAll,    // nothing of it is left to copy
    kLater,  // the range is not registered yet
    kGone,   // the process has ended
  };
  void serve();
  bool restoring() const { return listener_ || connection_; }
  void read_files_ahead();
  ProcessMemory& memory_of(int pid);
  bool receive_from_criu();
  Space& add_space(std::unique_ptr<Space> space);
  Spaces::iterator drop(Spaces::iterator at);
  void forget_dead();
  void read_events(Space& space);
  void answer_faults();
  void fault(Space& space, std::uint64_t address, bool write);
  std::uint64_t zero(Space& space, std::uint64_t address, std::uint64_t length);
  bool copy_ahead();
  void zero_ahead();
  void copy_rest(std::uint64_t most);
  Copied copy(Space& space, std::uint64_t address, std::uint64_t length, std::uint64_t* copied);
  void count(Space& space);
  PagesFile& pages_file(const std::string& name);

  std::string images_dir_;
  PageServiceCallbacks callbacks_;
  Fd listener_, connection_, wake_, epoll_;
  std::vector<TouchedRange> working_set_;
  std::atomic<bool> exact_;
  bool background_;
  std::size_t ahead_ = 0;         // next of working_set_
  std::size_t prune_at_ = 16;     // number of spaces at which dead ones are looked for
  std::uint64_t unread_ = 0;      // bytes, of all spaces
  Spaces spaces_;                 // by userfaultfd
  std::map<int, Space*> by_pid_;  // those that CRIU announced
  struct Fault {
    Space* space;
    std::uint64_t address;
    bool write;
  };
  std::deque<Fault> faults_;           // read, not answered yet
  std::deque<TouchedRange> no_pages_;  // what the working set has that is not stored: zeros
  std::map<std::string, std::unique_ptr<PagesFile>> files_;
  std::map<int, ProcessMemory> memories_;  // of the images, until CRIU announces the process

  std::mutex mutex_;
  std::condition_variable changed_;
  bool closing_ = false, draining_ = false, drained_ = false, resting_ = false;
  bool recording_ = true;
  std::string failure_;
  PageServiceStats stats_;
  std::vector<TouchedRange> touched_;
  std::thread thread_;
};

}  // namespace thaw::checkpoint
