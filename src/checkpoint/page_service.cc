#include "checkpoint/page_service.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "util/error.h"

namespace thaw::checkpoint {
namespace {

constexpr std::uint32_t kRestoreFinished = 0x52535446;          // what CRIU sends last
constexpr std::uint64_t kBefore = 16 << 10, kAfter = 64 << 10;  // read around a fault
constexpr std::uint64_t kBatch = 2 << 20;  // read at once ahead and while draining
constexpr std::size_t kMostTouched = 1 << 20;
// Ranges are registered some milliseconds after the descriptor arrives; there is no event for it.
constexpr int kRegistrationRetryMs = 1;
// Reading in the background: so much, then a pause. 50 MiB/s, about a hundredth of a core.
constexpr std::uint64_t kBackgroundBatch = 512 << 10;
constexpr int kBackgroundPauseMs = 10;

constexpr std::uint64_t kGap = 4 * kPageSize;
// The last page of a process's address space, above every stack: asking for it changes nothing.
constexpr std::uint64_t kNeverMapped = 0x7fffffffe000;

}  // namespace

std::vector<TouchedRange> merge_ranges(std::vector<TouchedRange> ranges) {
  std::sort(ranges.begin(), ranges.end(), [](const TouchedRange& a, const TouchedRange& b) {
    return a.pid != b.pid ? a.pid < b.pid : a.address < b.address;
  });
  std::vector<TouchedRange> merged;
  for (const TouchedRange& range : ranges) {
    if (!merged.empty() && merged.back().pid == range.pid &&
        range.address <= merged.back().address + merged.back().length + kGap) {
      TouchedRange& last = merged.back();
      last.length = std::max(last.length, range.address + range.length - last.address);
    } else {
      merged.push_back(range);
    }
  }
  return merged;
}

struct PageService::PagesFile {
  Fd fd;
  char* data = nullptr;
  std::size_t size = 0;
  PagesFile() = default;
  PagesFile(const PagesFile&) = delete;
  PagesFile& operator=(const PagesFile&) = delete;
  ~PagesFile() {
    if (data) ::munmap(data, size);
  }
};

struct PageService::Space {
  Fd fd;
  int pid = 0;  // of the image; a forked child has its parent's
  PageIndex unread;
  PagesFile* pages = nullptr;
  bool registered = false;
  bool recorded = true;  // forked children are not: the record is about the checkpoint's processes
};

PageService::PageService(std::string images_dir, const std::string& socket_dir,
                         std::vector<TouchedRange> working_set, bool exact, bool background,
                         PageServiceCallbacks callbacks)
    : images_dir_(std::move(images_dir)),
      callbacks_(std::move(callbacks)),
      wake_(Fd::event()),
      working_set_(std::move(working_set)),
      exact_(exact),
      background_(background) {
  Fd folder = Fd::open(socket_dir, O_PATH | O_DIRECTORY);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::string name = "/proc/self/fd/" + std::to_string(folder.get()) + "/lazy-pages.socket";
  std::strncpy(address.sun_path, name.c_str(), sizeof address.sun_path - 1);
  ::unlink((socket_dir + "/lazy-pages.socket").c_str());
  listener_ =
      Fd(check(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), "make socket"));
  check(::bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), "bind",
        socket_dir + "/lazy-pages.socket");
  check(::listen(listener_.get(), 1), "listen on", socket_dir + "/lazy-pages.socket");
  thread_ = std::thread([this] {
    try {
      serve();
    } catch (const std::exception& error) {
      {
        std::scoped_lock lock(mutex_);
        failure_ = error.what();
        changed_.notify_all();
      }
      callbacks_.failed(error.what());
    }
  });
}

PageService::~PageService() {
  {
    std::scoped_lock lock(mutex_);
    closing_ = true;
  }
  signal_event(wake_);
  thread_.join();
}

PageService::PagesFile& PageService::pages_file(const std::string& name) {
  auto& slot = files_[name];
  if (!slot) {
    slot = std::make_unique<PagesFile>();
    slot->fd = Fd::open(images_dir_ + "/" + name, O_RDONLY);
    struct stat info;
    check(::fstat(slot->fd.get(), &info), "stat", name);
    slot->size = static_cast<std::size_t>(info.st_size);
    if (slot->size) {
      // The kernel copies from this mapping: the page cache is the only buffer, and all replicas
      // share it.
      void* data = ::mmap(nullptr, slot->size, PROT_READ, MAP_SHARED, slot->fd.get(), 0);
      if (data == MAP_FAILED) throw_errno("map", name);
      slot->data = static_cast<char*>(data);
    }
  }
  return *slot;
}

// One process announced by CRIU: its pid, then a byte with the userfaultfd. False when CRIU is
// done.
bool PageService::receive_from_criu() {
  std::int32_t word = 0;
  ssize_t n;
  do n = ::recv(connection_.get(), &word, sizeof word, MSG_WAITALL);
  while (n < 0 && errno == EINTR);
  if (n == 0) return false;
  if (n != sizeof word)
    throw Error(Code::kUnavailable, "receive from", "criu", "its message is cut short");
  if (static_cast<std::uint32_t>(word) == kRestoreFinished) return false;
  if (word < 0) return true;  // a zombie has no memory
  char byte;
  iovec data{&byte, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  do n = ::recvmsg(connection_.get(), &message, MSG_CMSG_CLOEXEC);
  while (n < 0 && errno == EINTR);
  cmsghdr* part = CMSG_FIRSTHDR(&message);
  if (n != 1 || !part || part->cmsg_type != SCM_RIGHTS)
    throw Error(Code::kUnavailable, "receive from", "criu", "there is no userfaultfd");
  int fd;
  std::memcpy(&fd, CMSG_DATA(part), sizeof fd);
  auto space = std::make_unique<Space>();
  space->fd = Fd(fd);
  space->pid = word;
  set_nonblocking(space->fd, true);
  callbacks_.hold(fd);
  ProcessMemory memory = read_process_memory(images_dir_, word);
  space->unread = std::move(memory.lazy);
  // Before the rest: `ps` shows the program from the beginning.
  working_set_.insert(
      working_set_.begin() + static_cast<std::ptrdiff_t>(ahead_),
      {word, memory.arguments_start, memory.arguments_end - memory.arguments_start});
  space->pages = &pages_file(memory.pages_file);
  spaces_[fd] = std::move(space);
  return true;
}

// Copies one piece. False when the range is not registered (yet) or the process is gone; `copied`
// counts bytes that are in place.
bool PageService::copy(Space& space, const Piece& piece, std::uint64_t* copied) {
  std::uint64_t done = 0;
  bool good = true;
  while (done < piece.length) {
    struct uffdio_copy request {};
    request.dst = piece.address + done;
    request.src = reinterpret_cast<std::uint64_t>(space.pages->data + piece.offset + done);
    request.len = piece.length - done;
    int result = ::ioctl(space.fd.get(), UFFDIO_COPY, &request);
    if (result == 0) {
      done += piece.length - done;
      break;
    }
    if (errno == EAGAIN && request.copy > 0) {
      // The rest waits until the events that stand before it were read.
      done += static_cast<std::uint64_t>(request.copy);
      continue;
    }
    if (errno == EAGAIN) {
      good = handle_events(space);
      if (!good) break;
      // What the events removed or moved must not be written any more.
      auto left = space.unread.next(piece.address + done, piece.address + piece.length);
      if (!left || left->address != piece.address + done || left->offset != piece.offset + done)
        break;
      continue;
    }
    if (errno == EEXIST) {
      // Somebody was quicker (a child's copy, or CRIU's own): the page is there, whoever waits for
      // it may go on.
      struct uffdio_range range {
        piece.address + done, kPageSize
      };
      ::ioctl(space.fd.get(), UFFDIO_WAKE, &range);
      done += kPageSize;
      continue;
    }
    if (errno == ENOENT || errno == ESRCH) {
      good = false;
      break;
    }
    throw_errno("copy memory into process", std::to_string(space.pid));
  }
  if (done) {
    space.unread.remove(piece.address, done);
    space.registered = true;
  }
  if (copied) *copied = done;
  return good;
}

// Copies what is unread in a range. False as for copy(). Each piece is looked up when its turn
// comes: events that were read while the one before was copied may have removed or moved it.
bool PageService::copy_range(Space& space, std::uint64_t address, std::uint64_t length,
                             std::uint64_t* copied) {
  std::uint64_t end = address + length;
  while (auto piece = space.unread.next(address, end)) {
    std::uint64_t done = 0;
    bool good = copy(space, *piece, &done);
    if (copied) *copied += done;
    if (!good) return false;
    address = piece->address + done;
  }
  return true;
}

void PageService::fault(Space& space, std::uint64_t address) {
  address &= ~(kPageSize - 1);
  auto piece = exact_ ? space.unread.around(address, 0, kPageSize)
                      : space.unread.around(address, kBefore, kAfter);
  {
    std::scoped_lock lock(mutex_);
    ++stats_.faults;
    if (piece) stats_.fault_pages += piece->length / kPageSize;
    if (space.recorded && touched_.size() < kMostTouched)
      touched_.push_back({space.pid, address, kPageSize});
  }
  if (!piece) {
    struct uffdio_zeropage zero {};
    zero.range = {address, kPageSize};
    if (::ioctl(space.fd.get(), UFFDIO_ZEROPAGE, &zero) == 0) return;
    struct uffdio_range range {
      address, kPageSize
    };
    ::ioctl(space.fd.get(), UFFDIO_WAKE, &range);
    return;
  }
  // The page that is waited for first: it may be all that is needed.
  std::uint64_t copied = 0;
  Piece wanted{address, kPageSize, piece->offset + (address - piece->address)};
  if (!copy(space, wanted, &copied)) return;
  copy_range(space, piece->address, piece->length, nullptr);
}

// Reads the events of one address space. False when it is gone.
bool PageService::handle_events(Space& space) {
  for (;;) {
    struct uffd_msg messages[16];
    ssize_t n = ::read(space.fd.get(), messages, sizeof messages);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) return true;
    if (n <= 0) return false;
    std::vector<std::uint64_t> faults;
    for (std::size_t i = 0; i < static_cast<std::size_t>(n) / sizeof messages[0]; ++i) {
      const struct uffd_msg& message = messages[i];
      switch (message.event) {
        case UFFD_EVENT_PAGEFAULT:
          faults.push_back(message.arg.pagefault.address);
          break;
        case UFFD_EVENT_FORK: {
          auto child = std::make_unique<Space>();
          int fd = static_cast<int>(message.arg.fork.ufd);
          child->fd = Fd(fd);
          child->pid = space.pid;
          child->unread = space.unread;
          child->pages = space.pages;
          child->registered = true;
          child->recorded = false;
          set_nonblocking(child->fd, true);
          callbacks_.hold(fd);
          spaces_[fd] = std::move(child);
          break;
        }
        case UFFD_EVENT_REMAP:
          space.unread.move(message.arg.remap.from, message.arg.remap.to, message.arg.remap.len);
          break;
        case UFFD_EVENT_REMOVE:
        case UFFD_EVENT_UNMAP:
          space.unread.remove(message.arg.remove.start,
                              message.arg.remove.end - message.arg.remove.start);
          break;
        default:
          break;
      }
    }
    for (std::uint64_t address : faults) fault(space, address);
  }
}

// A process that exits says nothing. Its userfaultfd answers ESRCH to everything, so a program that
// forks for each request would leave more and more.
void PageService::forget_dead() {
  if (spaces_.size() < prune_at_) return;
  for (auto at = spaces_.begin(); at != spaces_.end();) {
    struct uffdio_zeropage probe {};
    probe.range = {kNeverMapped, kPageSize};
    bool dead = ::ioctl(at->second->fd.get(), UFFDIO_ZEROPAGE, &probe) < 0 && errno == ESRCH;
    at = dead ? spaces_.erase(at) : std::next(at);
  }
  prune_at_ = std::max<std::size_t>(16, 2 * spaces_.size());
}

void PageService::copy_ahead() {
  while (ahead_ < working_set_.size()) {
    const TouchedRange& range = working_set_[ahead_];
    Space* space = nullptr;
    for (auto& [fd, candidate] : spaces_)
      if (candidate->pid == range.pid && candidate->recorded) space = candidate.get();
    if (!space) return;  // its process has not been announced yet
    std::uint64_t copied = 0;
    bool good = copy_range(*space, range.address, range.length, &copied);
    {
      std::scoped_lock lock(mutex_);
      stats_.ahead_pages += copied / kPageSize;
    }
    if (!good && !space->registered) return;  // tried again in a moment
    ++ahead_;
  }
}

void PageService::serve() {
  bool draining = false;
  for (;;) {
    std::vector<pollfd> fds = {{wake_.get(), POLLIN, 0},
                               {connection_ ? connection_.get() : listener_.get(), POLLIN, 0}};
    if (!connection_ && !listener_) fds[1].fd = -1;
    for (auto& [fd, space] : spaces_) fds.push_back({fd, POLLIN, 0});
    bool ahead = ahead_ < working_set_.size() && !spaces_.empty();
    bool leisure = background_ && !ahead && !connection_ && !listener_ && !spaces_.empty();
    int ready = ::poll(fds.data(), fds.size(),
                       draining  ? 0
                       : ahead   ? kRegistrationRetryMs
                       : leisure ? kBackgroundPauseMs
                                 : -1);
    if (ready < 0 && errno == EINTR) continue;
    check(ready, "poll");
    leisure = leisure && ready == 0;
    if (fds[0].revents) {
      clear_event(wake_);
      std::scoped_lock lock(mutex_);
      if (closing_) return;
      draining = draining_;
    }
    if (fds[1].revents && !connection_) {
      int fd = ::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC);
      if (fd >= 0) {
        connection_ = Fd(fd);
        listener_.reset();
      }
    } else if (fds[1].revents && connection_ && !receive_from_criu()) {
      connection_.reset();
    }
    for (std::size_t i = 2; i < fds.size(); ++i) {
      if (!fds[i].revents) continue;
      auto found = spaces_.find(fds[i].fd);
      if (found != spaces_.end() &&
          ((fds[i].revents & (POLLERR | POLLHUP)) || !handle_events(*found->second)))
        spaces_.erase(found);
    }
    forget_dead();
    if (ahead) copy_ahead();
    if (draining || leisure) {
      bool more = false;
      for (auto& [fd, space] : spaces_) {
        auto piece = space->unread.first();
        if (!piece) continue;
        more = true;
        piece->length = std::min(piece->length, draining ? kBatch : kBackgroundBatch);
        // A range that is gone without a word (its process ended) needs no reading.
        std::uint64_t copied = 0;
        if (!copy(*space, *piece, &copied) && copied == 0)
          space->unread.remove(piece->address, piece->length);
        break;
      }
      if (!more) {
        spaces_.clear();
        callbacks_.let_go();
        std::scoped_lock lock(mutex_);
        drained_ = true;
        draining_ = draining = false;
        changed_.notify_all();
      }
    }
    std::scoped_lock lock(mutex_);
    stats_.unread_bytes = 0;
    stats_.spaces = spaces_.size();
    for (auto& [fd, space] : spaces_) stats_.unread_bytes += space->unread.bytes();
  }
}

bool PageService::drain(Deadline deadline) {
  std::unique_lock lock(mutex_);
  draining_ = true;
  signal_event(wake_);
  changed_.wait_for(lock, std::chrono::microseconds(deadline.left_us()),
                    [&] { return drained_ || !failure_.empty(); });
  return drained_;
}

std::vector<TouchedRange> PageService::touched() {
  std::scoped_lock lock(mutex_);
  return touched_;
}

PageServiceStats PageService::stats() {
  std::scoped_lock lock(mutex_);
  return stats_;
}

std::string PageService::failure() {
  std::scoped_lock lock(mutex_);
  return failure_;
}

}  // namespace thaw::checkpoint
