#include "checkpoint/page_intake.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <tuple>

#include "util/error.h"
#include "util/file.h"
#include "util/memory.h"

namespace thaw::checkpoint {
namespace {

constexpr std::size_t kHugePage = 2 << 20;
constexpr std::size_t kWriteBytes = 64 << 20;
// What CRIU hands on while the threads are behind: it puts pages into pipes and empties them by
// turns, and they go on copying while it does the former.
constexpr std::size_t kPipes = 32;
constexpr unsigned kMostThreads = 4;
constexpr std::uint32_t kStop = UINT32_MAX;

unsigned thread_count() {
  return std::clamp(std::thread::hardware_concurrency(), 1u, kMostThreads);
}

Error no_thread(const std::system_error& error) {
  return Error(Code::kExhausted, "start a thread", "", error.what(),
               "let the host or Thaw's cgroup have more processes");
}

// As many threads as can be had, at least one.
std::vector<std::thread> start_threads(const std::function<void(unsigned)>& work) {
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < thread_count(); ++i) {
    try {
      threads.emplace_back(work, i);
    } catch (const std::system_error& error) {
      if (threads.empty()) throw no_thread(error);
    }
  }
  return threads;
}

// As far as this host allows: 1 MiB, if nobody has changed it.
void enlarge(const Fd& pipe) {
  for (std::size_t size = kPipeBytes; size > 64 << 10; size /= 2)
    if (::fcntl(pipe.get(), F_SETPIPE_SZ, size) >= 0) return;
}

std::string image(const std::string& directory, std::size_t file) {
  return fmt::format("{}/pages-{}.img", directory, file + 1);
}

}  // namespace

PageIntake::PageIntake(std::string directory, std::size_t files, std::uint64_t expected)
    : directory_(std::move(directory)),
      capacity_((total_memory() / kHugePage + 1) * kHugePage),
      epoll_(check(::epoll_create1(EPOLL_CLOEXEC), "make epoll")),
      stop_(Fd::event()) {
  std::size_t size = capacity_ + kHugePage;
  void* mapped = ::mmap(nullptr, size, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) throw_errno("reserve memory for", directory_);
  reserved_ = {static_cast<char*>(mapped), [size](char* memory) { ::munmap(memory, size); }};
  memory_ = reserved_.get() + (kHugePage - reinterpret_cast<std::uintptr_t>(mapped) % kHugePage);
  ::madvise(memory_, capacity_, MADV_HUGEPAGE);
  // The first touch of a virtual machine's memory costs up to 40 times as much as any later one.
  std::size_t share = (expected / thread_count() / kHugePage + 1) * kHugePage;
  for (std::thread& thread : start_threads([&](unsigned i) {
         std::size_t from = std::min(i * share, capacity_), to = std::min(from + share, capacity_);
         if (from < to) ::madvise(memory_ + from, to - from, MADV_POPULATE_WRITE);
       }))
    thread.join();

  epoll_event stop{EPOLLIN, {.u32 = kStop}};
  check(::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, stop_.get(), &stop), "watch event");
  for (std::size_t file = 0; file < files; ++file) {
    std::string path = image(directory_, file);
    check(::mkfifo(path.c_str(), 0600), "make FIFO", path);
    fifos_.push_back(Fd::open(path, O_RDONLY | O_NONBLOCK));
    epoll_event event{EPOLLIN, {.u32 = static_cast<std::uint32_t>(file)}};
    check(::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fifos_.back().get(), &event), "watch FIFO",
          path);
  }
  opened_.resize(files);
  pipes_.resize(kPipes);
  for (Pipe& pipe : pipes_) {
    std::tie(pipe.out, pipe.in) = Fd::pipe();
    enlarge(pipe.in);
    free_.push_back(&pipe);
  }
  workers_ = start_threads([this](unsigned) { guarded([this] { copy(); }); });
  try {
    workers_.emplace_back([this] { move(); });
  } catch (const std::system_error& error) {
    abandon();
    throw no_thread(error);
  }
}

PageIntake::~PageIntake() { abandon(); }

void PageIntake::abandon() {
  {
    std::scoped_lock lock(mutex_);
    abandoned_ = true;
    changed_.notify_all();
  }
  join();
}

void PageIntake::join() {
  signal_event(stop_);
  for (std::thread& worker : workers_) worker.join();
  workers_.clear();
  pipes_.clear();
}

void PageIntake::finish() {
  join();
  for (std::size_t file = 0; file < fifos_.size(); ++file) {
    std::string path = image(directory_, file);
    if (::unlink(path.c_str()) != 0 && errno != ENOENT) throw_errno("remove FIFO", path);
  }
  if (!failure_.empty())
    throw Error(Code::kUnavailable, "take in the memory of", directory_, failure_);
}

void PageIntake::guarded(const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& error) {
    std::scoped_lock lock(mutex_);
    if (failure_.empty()) failure_ = error.what();
    changed_.notify_all();
    signal_event(stop_);
  }
}

// The one thread that empties the FIFOs, so that CRIU never waits for a copy.
void PageIntake::move() {
  guarded([this] {
    while (Pipe* pipe = free_pipe()) {
      if (!fill(*pipe)) break;
      std::scoped_lock lock(mutex_);
      full_.push_back(pipe);
      changed_.notify_all();
    }
  });
  // CRIU is not to wait for a reader that is gone.
  for (Fd& fifo : fifos_) fifo.reset();
  std::scoped_lock lock(mutex_);
  moved_ = true;
  changed_.notify_all();
}

// nullptr when there is nothing to do with it.
PageIntake::Pipe* PageIntake::free_pipe() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return !free_.empty() || over(); });
  if (over()) return nullptr;
  Pipe* pipe = free_.back();
  free_.pop_back();
  return pipe;
}

bool PageIntake::over() const { return abandoned_ || !failure_.empty(); }

// Moves the next pages, without copying them, into the pipe. False when there will be none.
bool PageIntake::fill(Pipe& pipe) {
  for (;;) {
    epoll_event events[2];
    int count = ::epoll_wait(epoll_.get(), events, 2, -1);
    if (count < 0 && errno == EINTR) continue;
    check(count, "wait for pages");
    auto end = events + count;
    auto ready =
        std::find_if(events, end, [](const auto& event) { return event.data.u32 != kStop; });
    if (ready == end) return false;  // only told to stop: nothing is left to read
    {
      std::scoped_lock lock(mutex_);
      if (over()) return false;
    }
    std::size_t file = ready->data.u32;
    Fd& fifo = fifos_[file];
    if (!opened_[file]) enlarge(fifo);
    opened_[file] = true;
    ssize_t n = ::splice(fifo.get(), nullptr, pipe.in.get(), nullptr, kPipeBytes,
                         SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) continue;
    check(n, "read", image(directory_, file));
    if (n == 0) {  // CRIU has closed it
      ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fifo.get(), nullptr);
      continue;
    }
    std::size_t length = static_cast<std::size_t>(n);
    if (length > capacity_ - used_)
      throw Error(Code::kExhausted, "take in the memory of", directory_,
                  "there is more of it than the host has");
    pipe.content = {file, used_, length};
    if (!segments_.empty() && segments_.back().file == file)
      segments_.back().length += length;
    else
      segments_.push_back(pipe.content);
    used_ += length;
    return true;
  }
}

void PageIntake::copy() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return !full_.empty() || moved_ || over(); });
    if (over() || full_.empty()) return;
    Pipe* pipe = full_.front();
    full_.pop_front();
    lock.unlock();
    for (Segment& part = pipe->content; part.length > 0;) {
      ssize_t n = ::read(pipe->out.get(), memory_ + part.at, part.length);
      if (n < 0 && errno == EINTR) continue;
      check(n, "copy memory to", directory_);
      part.at += static_cast<std::size_t>(n);
      part.length -= static_cast<std::size_t>(n);
    }
    lock.lock();
    free_.push_back(pipe);
    changed_.notify_all();
  }
}

void PageIntake::write(const std::string& directory) {
  for (std::size_t file = 0; file < opened_.size(); ++file) {
    if (!opened_[file]) continue;
    std::string path = image(directory, file);
    Fd to = Fd::open(path, O_WRONLY | O_CREAT | O_EXCL, 0600);
    for (Segment part : segments_) {
      if (part.file != file) continue;
      while (part.length > 0) {
        std::size_t now = std::min(part.length, kWriteBytes);
        write_all(to, {memory_ + part.at, now}, path);
        ::madvise(memory_ + part.at, now, MADV_DONTNEED);
        part.at += now;
        part.length -= now;
      }
    }
  }
}

}  // namespace thaw::checkpoint
