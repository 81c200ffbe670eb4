#include "lifecycle/path_watch.h"

#include <fcntl.h>
#include <limits.h>
#include <sys/inotify.h>
#include <unistd.h>

#include <cerrno>

#include "util/error.h"
#include "util/in_root.h"

namespace thaw::lifecycle {
namespace {

constexpr std::uint32_t kStructure =
    IN_CREATE | IN_MOVED_TO | IN_MOVED_FROM | IN_DELETE | IN_DELETE_SELF | IN_MOVE_SELF;
// The same bound as the kernel's own.
constexpr int kMaxLinks = 40;

// The components of a path, last first, so that the next one is at the back.
std::vector<std::string> components(std::string_view path) {
  std::vector<std::string> parts;
  while (!path.empty()) {
    auto slash = path.rfind('/');
    std::string_view part = slash == std::string_view::npos ? path : path.substr(slash + 1);
    if (!part.empty() && part != ".") parts.emplace_back(part);
    path = slash == std::string_view::npos ? std::string_view() : path.substr(0, slash);
  }
  return parts;
}

}  // namespace

PathWatch::PathWatch(Fd root, std::string path, What what)
    : root_(std::move(root)), path_(std::move(path)), what_(what) {}

bool PathWatch::watch(const Fd& directory, const std::string& name, std::uint32_t events) {
  // By /proc, because the descriptor, not a path, says which directory this is.
  std::string link = "/proc/self/fd/" + std::to_string(directory.get());
  int id = ::inotify_add_watch(inotify_.get(), link.c_str(), events | IN_ONLYDIR | IN_MASK_ADD);
  if (id < 0) {
    // ENOSPC and ENOMEM: the user's watches are used up. Anything else: the directory has just
    // gone, which its parent's watch tells.
    return errno != ENOSPC && errno != ENOMEM;
  }
  names_[id].insert(name);
  return true;
}

bool PathWatch::arm() {
  if (!inotify_) {
    inotify_.reset(::inotify_init1(IN_NONBLOCK | IN_CLOEXEC));
    if (!inotify_) {
      if (errno == EMFILE || errno == ENFILE || errno == ENOMEM) return false;
      throw_errno("make inotify for", path_);
    }
  }
  // Watches that are needed no longer are taken away one by one: closing an inotify descriptor
  // waits for an RCU grace period, some 10 ms.
  auto before = std::exchange(names_, {});
  bool complete = walk();
  for (auto& [id, names] : before)
    if (!names_.contains(id)) ::inotify_rm_watch(inotify_.get(), id);
  return complete;
}

bool PathWatch::walk() {
  // The descriptors live only inside this function: they would keep file systems of the container
  // from being unmounted. Watches do not.
  std::vector<std::string> left = components(path_);
  std::vector<Fd> walked;  // the directories from the root to where we are; ".." is one back, so a
                           // rename cannot lead outside
  walked.push_back(root_.duplicate());
  std::uint32_t last_events = kStructure | (what_ == What::kContents ? IN_MODIFY : 0u);
  for (int links = 0; !left.empty();) {
    std::string name = std::move(left.back());
    left.pop_back();
    if (name == "..") {
      if (walked.size() > 1) walked.pop_back();
      continue;
    }
    if (!watch(walked.back(), name, left.empty() ? last_events : kStructure)) return false;
    Fd found(::openat(walked.back().get(), name.c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC));
    if (!found) return true;  // the watch above sees it come
    char target[PATH_MAX];
    ssize_t length = ::readlinkat(found.get(), "", target, sizeof target);
    if (length >= 0) {
      if (++links > kMaxLinks) return true;
      std::string_view text(target, static_cast<std::size_t>(length));
      if (text.starts_with('/')) walked.erase(walked.begin() + 1, walked.end());
      for (std::string& part : components(text)) left.push_back(std::move(part));
      continue;
    }
    walked.push_back(std::move(found));
  }
  if (what_ == What::kEntries && !watch(walked.back(), "", kStructure)) return false;
  return true;
}

bool PathWatch::changed() {
  if (!inotify_) return false;
  bool touched = false, structure = false;
  alignas(inotify_event) char buffer[16384];
  for (;;) {
    ssize_t n = ::read(inotify_.get(), buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    for (ssize_t at = 0; at < n;) {
      auto* event = reinterpret_cast<const inotify_event*>(buffer + at);
      at += static_cast<ssize_t>(sizeof *event + event->len);
      // Events without a name are about a directory itself, or say that others were lost.
      std::string name = event->len ? event->name : "";
      if (!(event->mask & IN_Q_OVERFLOW)) {
        auto names = names_.find(event->wd);
        if (names == names_.end()) continue;  // of a watch that was taken away
        if (!name.empty() && !names->second.contains(name) && !names->second.contains("")) continue;
      }
      touched = true;
      if (!(event->mask & IN_MODIFY)) structure = true;
    }
  }
  if (structure) arm();
  return touched;
}

}  // namespace thaw::lifecycle
