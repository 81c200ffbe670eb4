#include "util/watched_files.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "util/error.h"

namespace thaw {
namespace {

constexpr int kSettleMs = 300;
constexpr std::uint32_t kEvents = IN_CREATE | IN_MOVED_TO | IN_CLOSE_WRITE | IN_ATTRIB;

std::string folder_of(const std::string& path) {
  std::string folder = std::filesystem::path(path).parent_path();
  return folder.empty() ? "." : folder;
}

}  // namespace

WatchedFiles::WatchedFiles(std::vector<std::string> paths, std::function<void()> changed)
    : paths_(std::move(paths)),
      changed_(std::move(changed)),
      events_(check(::inotify_init1(IN_CLOEXEC | IN_NONBLOCK), "make inotify descriptor")) {
  watch_folders();
  known_ = identity();
  thread_ = std::thread([this] { run(); });
}

WatchedFiles::~WatchedFiles() {
  signal_event(stop_);
  thread_.join();
}

// Also those that links lead to now. One that is watched already stays so.
void WatchedFiles::watch_folders() {
  for (const std::string& path : paths_) {
    std::error_code none;
    std::string real = std::filesystem::canonical(path, none);
    for (const std::string& place : {path, real})
      if (!place.empty())
        ::inotify_add_watch(events_.get(), folder_of(place).c_str(), kEvents | IN_ONLYDIR);
  }
}

std::string WatchedFiles::identity() const {
  std::string result;
  for (const std::string& path : paths_) {
    struct stat info {};
    if (::stat(path.c_str(), &info) == 0)
      result += fmt::format("{}:{}:{}:{}.{};", info.st_dev, info.st_ino, info.st_size,
                            info.st_ctim.tv_sec, info.st_ctim.tv_nsec);
    else
      result += "none;";
  }
  return result;
}

void WatchedFiles::run() {
  sigset_t all;
  sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, nullptr);
  ::pthread_setname_np(::pthread_self(), "files");
  pollfd entries[] = {{stop_.get(), POLLIN, 0}, {events_.get(), POLLIN, 0}};
  for (;;) {
    ::poll(entries, 2, -1);
    if (entries[0].revents) return;
    // Whatever else follows soon belongs to it.
    if (::poll(entries, 1, kSettleMs) > 0) return;
    alignas(inotify_event) char buffer[4096];
    while (::read(events_.get(), buffer, sizeof buffer) > 0) {
    }
    watch_folders();
    std::string now = identity();
    if (now != std::exchange(known_, now)) changed_();
  }
}

}  // namespace thaw
