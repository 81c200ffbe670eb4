#include "checkpoint/page_service.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "util/error.h"
#include "util/file.h"

namespace thaw::checkpoint {
namespace {

constexpr std::uint32_t kRestoreFinished = 0x52535446;          // what CRIU sends last
constexpr std::uint64_t kBefore = 16 << 10, kAfter = 64 << 10;  // read around a fault
// Read at once ahead and while draining: a fault waits no longer than that takes.
constexpr std::uint64_t kBatch = 2 << 20;
constexpr std::size_t kMostTouched = 1 << 20;
// Ranges are registered some milliseconds after the descriptor arrives; there is no event for it.
constexpr int kRegistrationRetryMs = 1;
// Reading in the background: so much, then a pause. 50 MiB/s, about a hundredth of a core.
constexpr std::uint64_t kBackgroundBatch = 512 << 10;
constexpr int kBackgroundPauseMs = 10;

// The last page of a process's address space, above every stack: asking for it changes nothing.
constexpr std::uint64_t kNeverMapped = 0x7fffffffe000;

void watch(const Fd& epoll, int fd) {
  epoll_event event{EPOLLIN, {.fd = fd}};
  check(::epoll_ctl(epoll.get(), EPOLL_CTL_ADD, fd, &event), "watch descriptor");
}

void wake(const Fd& uffd, std::uint64_t address) {
  struct uffdio_range range {
    address, kPageSize
  };
  ::ioctl(uffd.get(), UFFDIO_WAKE, &range);
}

}  // namespace

bool userfaultfd_ended(int fd) {
  struct uffdio_zeropage probe {};
  probe.range = {kNeverMapped, kPageSize};
  return ::ioctl(fd, UFFDIO_ZEROPAGE, &probe) < 0 && errno == ESRCH;
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
  std::uint64_t counted = 0;                   // its share of the unread bytes
  bool gone = false;                           // its process has ended
  std::uint64_t expected = 0, ahead = kAfter;  // the fault that reads on, and how much it gets
  bool recorded = true;  // forked children are not: the record is about the checkpoint's processes
};

PageService::PageService(std::string images_dir, const std::string& socket_dir,
                         std::vector<TouchedRange> working_set, bool exact, bool background,
                         PageServiceCallbacks callbacks)
    : images_dir_(std::move(images_dir)),
      callbacks_(std::move(callbacks)),
      wake_(Fd::event()),
      epoll_(check(::epoll_create1(EPOLL_CLOEXEC), "make epoll")),
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
  watch(epoll_, wake_.get());
  watch(epoll_, listener_.get());
  thread_ = std::thread([this] {
    try {
      read_files_ahead();
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

ProcessMemory& PageService::memory_of(int pid) {
  auto found = memories_.find(pid);
  if (found == memories_.end())
    found = memories_.emplace(pid, read_process_memory(images_dir_, pid)).first;
  return found->second;
}

// While CRIU starts, what it and the program will need comes into the page cache: its own images,
// and the working set.
void PageService::read_files_ahead() {
  for (const auto& entry : std::filesystem::directory_iterator(images_dir_)) {
    if (entry.path().filename().string().rfind("pages-", 0) == 0) continue;
    Fd file(::open(entry.path().c_str(), O_RDONLY | O_CLOEXEC));
    if (file) ::posix_fadvise(file.get(), 0, 0, POSIX_FADV_WILLNEED);
  }
  // Where there are very many, asking for each would keep faults waiting.
  constexpr std::size_t kMostAsked = 4096;
  for (const TouchedRange& range : working_set_) {
    if (working_set_.size() > kMostAsked) break;
    if (!exists(fmt::format("{}/pagemap-{}.img", images_dir_, range.pid))) continue;
    ProcessMemory& memory = memory_of(range.pid);
    const PagesFile& pages = pages_file(memory.pages_file);
    for (const Piece& piece : memory.lazy.inside(range.address, range.length))
      ::posix_fadvise(pages.fd.get(), static_cast<off_t>(piece.offset),
                      static_cast<off_t>(piece.length), POSIX_FADV_WILLNEED);
  }
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
  auto fresh = std::make_unique<Space>();
  fresh->fd = Fd(fd);
  fresh->pid = word;
  Space& space = add_space(std::move(fresh));
  by_pid_[word] = &space;
  ProcessMemory memory = std::move(memory_of(word));
  memories_.erase(word);
  space.unread = std::move(memory.lazy);
  count(space);
  for (std::size_t i = ahead_; i < working_set_.size(); ++i) {
    const TouchedRange& range = working_set_[i];
    if (range.pid != word) continue;
    std::uint64_t at = range.address, end = range.address + range.length;
    while (at < end) {
      auto piece = space.unread.next(at, end);
      std::uint64_t stop = piece ? piece->address : end;
      if (at < stop) no_pages_.push_back({word, at, stop - at});
      at = piece ? piece->address + piece->length : end;
    }
  }
  // Before the rest: `ps` shows the program from the beginning.
  working_set_.insert(
      working_set_.begin() + static_cast<std::ptrdiff_t>(ahead_),
      {word, memory.arguments_start, memory.arguments_end - memory.arguments_start});
  space.pages = &pages_file(memory.pages_file);
  return true;
}

PageService::Space& PageService::add_space(std::unique_ptr<Space> space) {
  int fd = space->fd.get();
  set_nonblocking(space->fd, true);
  callbacks_.hold(fd);
  watch(epoll_, fd);
  count(*space);
  return *(spaces_[fd] = std::move(space));
}

// The keeper may hold its descriptor, too: closing it alone would leave it watched.
PageService::Spaces::iterator PageService::drop(Spaces::iterator at) {
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, at->first, nullptr);
  unread_ -= at->second->counted;
  if (at->second->recorded) by_pid_.erase(at->second->pid);
  return spaces_.erase(at);
}

void PageService::count(Space& space) {
  unread_ += space.unread.bytes() - space.counted;
  space.counted = space.unread.bytes();
}

// Brings what is unread in a range into the process, a step at a time. Each step looks the index up
// anew, and what it copied leaves the index before anything else happens: events that are read in
// between may remove or move what was there. `copied` counts bytes up.
PageService::Copied PageService::copy(Space& space, std::uint64_t address, std::uint64_t length,
                                      std::uint64_t* copied) {
  std::uint64_t end = address + length, step = kBatch;
  bool again = false;
  Copied result = Copied::kAll;
  while (auto piece = space.unread.next(address, end)) {
    address = piece->address;
    struct uffdio_copy request {};
    request.dst = address;
    request.src = reinterpret_cast<std::uint64_t>(space.pages->data + piece->offset);
    request.len = std::min(piece->length, step);
    int error = ::ioctl(space.fd.get(), UFFDIO_COPY, &request) == 0 ? 0 : errno;
    std::uint64_t done = error == 0 ? request.len
                         : error == EAGAIN && request.copy > 0
                             ? static_cast<std::uint64_t>(request.copy)
                             : 0;
    if (done) {
      space.unread.remove(address, done);
      *copied += done;
      step = std::min(kBatch, 2 * step);
      again = false;
    } else if (error == EAGAIN) {
      // An event stands before it.
      read_events(space);
      again = false;
    } else if (error == EEXIST) {
      // Somebody was quicker (a child's copy, or CRIU's own): the page is there, whoever waits for
      // it may go on.
      wake(space.fd, address);
      space.unread.remove(address, kPageSize);
    } else if (error == ENOENT && request.len > kPageSize) {
      // No mapping holds all of it: the program may have split one (mprotect, madvise, mlock), of
      // which no event tells.
      step = std::max<std::uint64_t>(kPageSize, request.len / 2 / kPageSize * kPageSize);
    } else if (error == ENOENT && restoring()) {
      result = Copied::kLater;
      break;
    } else if (error == ENOENT && !again) {
      // A mapping that is just being moved: then this time the answer is EAGAIN until its event was
      // read.
      again = true;
    } else if (error == ENOENT) {
      space.unread.remove(address, kPageSize);
      again = false;
    } else if (error == ESRCH) {
      space.gone = true;
      space.unread = PageIndex();
      result = Copied::kGone;
      break;
    } else {
      errno = error;
      throw_errno("copy memory into process", std::to_string(space.pid));
    }
  }
  count(space);
  return result;
}

// Makes unstored memory zero, as far as it goes: to the first page that is there already, or to
// where a mapping seems to end. Returns bytes.
std::uint64_t PageService::zero(Space& space, std::uint64_t address, std::uint64_t length) {
  for (; length >= kPageSize; length = length / 2 / kPageSize * kPageSize) {
    struct uffdio_zeropage request {};
    request.range = {address, length};
    if (::ioctl(space.fd.get(), UFFDIO_ZEROPAGE, &request) == 0) return length;
    if (errno == EAGAIN && request.zeropage > 0)
      return static_cast<std::uint64_t>(request.zeropage);
    if (errno != ENOENT) break;
  }
  return 0;
}

void PageService::fault(Space& space, std::uint64_t address, bool write) {
  address &= ~(kPageSize - 1);
  // Who reads on and on gets more each time.
  space.ahead = address == space.expected ? std::min(2 * space.ahead, kBatch) : kAfter;
  auto piece = exact_ ? space.unread.around(address, 0, kPageSize)
                      : space.unread.around(address, kBefore, space.ahead);
  if (piece) space.expected = piece->address + piece->length;
  {
    std::scoped_lock lock(mutex_);
    ++stats_.faults;
    if (piece) stats_.fault_pages += piece->length / kPageSize;
    if (recording_ && space.recorded && touched_.size() < kMostTouched)
      touched_.push_back({space.pid, address, kPageSize});
  }
  if (!piece) {
    // Who writes gets a page of its own at once, instead of a second fault.
    static const std::array<char, kPageSize> zeros{};
    struct uffdio_copy page {};
    page.dst = address;
    page.src = reinterpret_cast<std::uint64_t>(zeros.data());
    page.len = kPageSize;
    bool done = write ? ::ioctl(space.fd.get(), UFFDIO_COPY, &page) == 0
                      : zero(space, address, kPageSize) > 0;
    if (!done) wake(space.fd, address);
    if (exact_ || !done) return;
    address += kPageSize;
    auto next = space.unread.next(address, address + space.ahead);
    std::uint64_t more = next ? next->address - address : space.ahead;
    space.expected = address + (more ? zero(space, address, more) : 0);
    return;
  }
  // The page that is waited for first: it may be all that is needed. When it is no longer to be
  // copied (given up or moved meanwhile), who waits for it must look again.
  std::uint64_t copied = 0, along = 0;
  Copied result = copy(space, address, kPageSize, &copied);
  if (!copied) wake(space.fd, address);
  if (result == Copied::kAll) copy(space, piece->address, piece->length, &along);
}

// Applies the events of one address space; its faults wait for answer_faults(): copying reads
// events, too.
void PageService::read_events(Space& space) {
  for (;;) {
    struct uffd_msg messages[16];
    ssize_t n = ::read(space.fd.get(), messages, sizeof messages);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) break;
    // No descriptor or memory for a forked child's, say: its events would be missing from now on.
    if (n <= 0) throw_errno("read memory events of process", std::to_string(space.pid));
    for (std::size_t i = 0; i < static_cast<std::size_t>(n) / sizeof messages[0]; ++i) {
      const struct uffd_msg& message = messages[i];
      switch (message.event) {
        case UFFD_EVENT_PAGEFAULT:
          faults_.push_back({&space, message.arg.pagefault.address,
                             (message.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WRITE) != 0});
          break;
        case UFFD_EVENT_FORK: {
          auto child = std::make_unique<Space>();
          child->fd = Fd(static_cast<int>(message.arg.fork.ufd));
          child->pid = space.pid;
          child->unread = space.unread;
          child->pages = space.pages;
          child->recorded = false;
          add_space(std::move(child));
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
  }
  count(space);
}

void PageService::answer_faults() {
  while (!faults_.empty()) {
    Fault next = faults_.front();
    faults_.pop_front();
    fault(*next.space, next.address, next.write);
  }
}

// A process that exits says nothing. Its userfaultfd answers ESRCH to everything, so a program that
// forks for each request would leave more and more. No fault may wait for its answer meanwhile.
void PageService::forget_dead() {
  if (spaces_.size() < prune_at_) return;
  for (auto at = spaces_.begin(); at != spaces_.end();) {
    Space& space = *at->second;
    space.gone = space.gone || userfaultfd_ended(at->first);
    at = space.gone ? drop(at) : std::next(at);
  }
  prune_at_ = std::max<std::size_t>(16, 2 * spaces_.size());
}

// One batch of the working set. False when there is nothing to do at present: a range is not
// registered, or its process not announced.
bool PageService::copy_ahead() {
  std::uint64_t copied = 0;
  bool good = true;
  while (good && ahead_ < working_set_.size() && copied < kBatch) {
    const TouchedRange& range = working_set_[ahead_];
    auto space = by_pid_.find(range.pid);
    if (space == by_pid_.end()) {
      // Not announced yet, or gone already.
      good = !restoring();
      ahead_ += good;
      continue;
    }
    auto piece = space->second->unread.next(range.address, range.address + range.length);
    if (!piece) {
      ++ahead_;
      continue;
    }
    std::uint64_t part = std::min(piece->length, kBatch);
    good = copy(*space->second, piece->address, part, &copied) != Copied::kLater;
  }
  std::scoped_lock lock(mutex_);
  stats_.ahead_pages += copied / kPageSize;
  return good;
}

// Some of what the working set touched and no image holds. Whatever of it is not registered, has
// pages already or is gone stays as it is: a fault will find it.
void PageService::zero_ahead() {
  std::uint64_t done = 0;
  for (int i = 0; i < 64 && !no_pages_.empty(); ++i) {
    TouchedRange range = no_pages_.front();
    no_pages_.pop_front();
    auto space = by_pid_.find(range.pid);
    if (space != by_pid_.end()) done += zero(*space->second, range.address, range.length);
  }
  std::scoped_lock lock(mutex_);
  stats_.ahead_pages += done / kPageSize;
}

// The next part of what nobody has asked for.
void PageService::copy_rest(std::uint64_t most) {
  for (auto& [fd, space] : spaces_) {
    auto piece = space->unread.first();
    if (!piece) continue;
    std::uint64_t copied = 0;
    copy(*space, piece->address, std::min(piece->length, most), &copied);
    return;
  }
}

void PageService::serve() {
  bool draining = false, resting = false, waiting = false;
  for (;;) {
    bool ahead = ahead_ < working_set_.size() && !spaces_.empty();
    // CRIU has registered everything when it is done.
    bool zeros = !ahead && !no_pages_.empty() && !restoring();
    bool leisure = background_ && !resting && !ahead && !restoring() && !spaces_.empty();
    epoll_event events[64];
    int ready = ::epoll_wait(epoll_.get(), events, 64,
                             draining || zeros || (ahead && !waiting) ? 0
                             : ahead                                  ? kRegistrationRetryMs
                             : leisure                                ? kBackgroundPauseMs
                                                                      : -1);
    if (ready < 0 && errno == EINTR) continue;
    check(ready, "wait for memory events");
    leisure = leisure && ready == 0;
    for (int i = 0; i < ready; ++i) {
      int fd = events[i].data.fd;
      if (fd == wake_.get()) {
        clear_event(wake_);
        std::scoped_lock lock(mutex_);
        if (closing_) return;
        draining = draining_;
        resting = resting_;
      } else if (fd == listener_.get()) {
        int accepted = ::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC);
        if (accepted < 0) continue;
        connection_ = Fd(accepted);
        watch(epoll_, accepted);
        listener_.reset();
      } else if (fd == connection_.get()) {
        if (!receive_from_criu()) connection_.reset();
      } else if (auto found = spaces_.find(fd); found != spaces_.end()) {
        read_events(*found->second);
      }
    }
    answer_faults();
    forget_dead();
    waiting = ahead && !copy_ahead();
    if (zeros) zero_ahead();
    if (draining || leisure) {
      copy_rest(draining ? kBatch : kBackgroundBatch);
      answer_faults();
      if (unread_ == 0 && !restoring()) {
        while (!spaces_.empty()) drop(spaces_.begin());
        callbacks_.let_go();
        std::scoped_lock lock(mutex_);
        stats_.unread_bytes = stats_.spaces = 0;
        drained_ = true;
        draining_ = draining = false;
        changed_.notify_all();
      }
    } else {
      answer_faults();
    }
    std::scoped_lock lock(mutex_);
    stats_.unread_bytes = unread_;
    stats_.spaces = spaces_.size();
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

std::vector<TouchedRange> PageService::touched(bool last) {
  std::scoped_lock lock(mutex_);
  if (!last) return touched_;
  exact_ = recording_ = false;
  return std::exchange(touched_, {});
}

void PageService::rest(bool on) {
  std::scoped_lock lock(mutex_);
  resting_ = on;
  signal_event(wake_);
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
