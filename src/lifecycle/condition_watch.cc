// file, log, notify and workers: what inotify tells.
#include <dirent.h>
#include <fcntl.h>
#include <re2/re2.h>

#include <cerrno>
#include <cstring>

#include "lifecycle/condition_kinds.h"
#include "lifecycle/log_tail.h"
#include "lifecycle/path_watch.h"
#include "lifecycle/watch_lines.h"
#include "util/error.h"
#include "util/in_root.h"

namespace thaw::lifecycle {
namespace {

// Mounts come without an event, and a host may be out of inotify watches.
constexpr std::int64_t kSafetyUs = 1'000'000;

bool looks_true(Wait& wait, const PathWatch& watch) {
  if (try_open_in_root(watch.root(), watch.path(), O_PATH)) {
    wait.see("it exists");
    return true;
  }
  wait.see(errno == ENOENT ? "it does not exist" : std::strerror(errno));
  return false;
}

// How many workers say by an entry that they are there. Below thaw_dir, which the container can
// write: a link must not lead elsewhere.
int count_entries(const PathWatch& watch) {
  Fd directory = try_open_in_root(watch.root(), watch.path(), O_RDONLY | O_DIRECTORY | O_NONBLOCK);
  if (!directory) return 0;
  DIR* stream = ::fdopendir(directory.get());
  if (!stream) return 0;
  directory.release();
  int count = 0;
  // Hidden names are what a writer renames when it is done.
  while (dirent* entry = ::readdir(stream)) count += entry->d_name[0] != '.';
  ::closedir(stream);
  return count;
}

// Returns true when `holds` does. Looks again whenever one of the watches (their fd() and
// changed()) tells something.
template <typename Holds, typename... Watches>
bool watch_until(Wait& wait, Holds holds, Watches&... watches) {
  for (;;) {
    if (holds()) return true;
    if (wait.deadline.passed()) return false;
    bool touched = false;
    Deadline look = wait.at_most(kSafetyUs);
    // Events about other names in the same directories are no reason to look.
    while (!touched && wait.ready({{watches.fd().get(), POLLIN, 0}...}, look))
      ((touched |= watches.changed()), ...);
  }
}

}  // namespace

bool wait_file(Wait& wait) {
  if (!wait.condition.path.starts_with('/'))
    throw Error(Code::kInvalid, "wait for file", wait.condition.path,
                "this is not an absolute path", "begin it with /");
  PathWatch watch(wait.target.open_root(), wait.condition.path, PathWatch::What::kPath);
  // Before any watch: in a restored replica it is there, and giving inotify back takes a while.
  if (looks_true(wait, watch)) return true;
  if (!watch.arm())
    wait.tell(
        "the host is out of inotify watches, looking once a second; raise "
        "fs.inotify.max_user_instances and max_user_watches");
  return watch_until(
      wait, [&] { return looks_true(wait, watch); }, watch);
}

bool wait_log(Wait& wait) {
  RE2::Options options;
  options.set_log_errors(false);
  RE2 pattern(wait.condition.pattern, options);
  if (!pattern.ok())
    throw Error(Code::kInvalid, "search the log for", wait.condition.pattern, pattern.error(),
                "write the pattern in RE2 syntax");
  LogTail tail(wait.target.log_path());
  LogText text;
  std::uint64_t lines = 0;
  std::string latest;
  auto on_line = [&](std::string_view line) {
    auto whole = text.add(line);
    if (!whole) return false;
    ++lines;
    bool found = RE2::PartialMatch(*whole, pattern);
    latest = whole->substr(0, 200);
    return found;
  };
  auto holds = [&] {
    bool found = tail.read(on_line, [&] { wait.pause(0); });
    wait.see(found   ? "found in: " + latest
             : lines ? fmt::format("not in {} line{}, the last: {}", lines, lines == 1 ? "" : "s",
                                   latest)
                     : "the log is empty");
    return found;
  };
  return watch_until(wait, holds, tail);
}

bool wait_notify(Wait& wait) {
  LogTail tail(wait.target.notify_path());
  std::string status;
  auto on_line = [&](std::string_view line) {
    auto datagram = Datagram::parse(line);
    if (!datagram) return false;
    if (auto said = datagram->get("STATUS")) status = said->substr(0, 200);
    return datagram->get("READY") == "1";
  };
  auto holds = [&] {
    bool ready = tail.read(on_line, [&] { wait.pause(0); });
    wait.see((ready ? "READY=1" : "no READY=1 yet") +
             (status.empty() ? "" : ", status: " + status));
    return ready;
  };
  return watch_until(wait, holds, tail);
}

bool wait_workers(Wait& wait) {
  int wanted = wait.condition.workers;
  if (wanted < 1)
    throw Error(Code::kInvalid, "wait for workers", std::to_string(wanted),
                "the number is not positive", "say how many workers must be ready");
  PathWatch entries(Fd::open(wait.target.thaw_dir(), O_PATH | O_DIRECTORY), "/workers",
                    PathWatch::What::kEntries);
  entries.arm();
  LogTail tail(wait.target.notify_path());
  std::set<int> processes;
  auto on_line = [&](std::string_view line) {
    auto datagram = Datagram::parse(line);
    if (datagram && datagram->get("READY") == "1") processes.insert(datagram->pid);
    return static_cast<int>(processes.size()) >= wanted;
  };
  auto holds = [&] {
    bool told = tail.read(on_line, [&] { wait.pause(0); });
    int present = count_entries(entries);
    wait.see(fmt::format("{} of {} ready", std::max(present, static_cast<int>(processes.size())),
                         wanted));
    return told || present >= wanted;
  };
  return watch_until(wait, holds, entries, tail);
}

}  // namespace thaw::lifecycle
