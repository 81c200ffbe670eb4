#include "api/log_reader.h"

#include <fcntl.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <ctime>

#include "util/error.h"

namespace thaw::api {
namespace {

struct FileId {
  dev_t device = 0;
  ino_t inode = 0;
  bool operator==(const FileId&) const = default;
};

FileId id_of(const Fd& fd) {
  struct stat info;
  check(::fstat(fd.get(), &info), "read the state of the log");
  return {info.st_dev, info.st_ino};
}

Fd open_if_there(const std::string& path) {
  int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0 && errno != ENOENT) throw_errno("open", path);
  return Fd(fd);
}

// `count` digits at `at`, moved past.
std::optional<int> digits(std::string_view text, std::size_t& at, std::size_t count) {
  if (text.size() < at + count) return std::nullopt;
  int value = 0;
  for (std::size_t end = at + count; at < end; ++at) {
    if (text[at] < '0' || text[at] > '9') return std::nullopt;
    value = value * 10 + (text[at] - '0');
  }
  return value;
}

}  // namespace

std::optional<LogEntry> parse_log_line(std::string_view line) {
  LogEntry entry;
  std::string tag;
  for (std::string* part : {&entry.time, &entry.stream, &tag}) {
    std::size_t space = line.find(' ');
    if (space == std::string_view::npos) return std::nullopt;
    *part = line.substr(0, space);
    line.remove_prefix(space + 1);
  }
  if (entry.stream != "stdout" && entry.stream != "stderr") return std::nullopt;
  if (tag != "F" && tag != "P") return std::nullopt;
  entry.partial = tag == "P";
  entry.text = line;
  return entry;
}

std::optional<std::int64_t> parse_rfc3339_us(std::string_view text) {
  std::size_t at = 0;
  std::tm parts{};
  auto field = [&](int& into, std::size_t count, char after) {
    auto value = digits(text, at, count);
    if (!value) return false;
    into = *value;
    if (after == 0) return true;
    return at < text.size() && (text[at] == after || (after == 'T' && text[at] == ' ')) && ++at;
  };
  if (!field(parts.tm_year, 4, '-') || !field(parts.tm_mon, 2, '-') ||
      !field(parts.tm_mday, 2, 'T') || !field(parts.tm_hour, 2, ':') ||
      !field(parts.tm_min, 2, ':') || !field(parts.tm_sec, 2, 0)) {
    return std::nullopt;
  }
  if (parts.tm_mon < 1 || parts.tm_mon > 12 || parts.tm_mday < 1 || parts.tm_mday > 31 ||
      parts.tm_hour > 23 || parts.tm_min > 59 || parts.tm_sec > 60) {
    return std::nullopt;
  }
  parts.tm_year -= 1900;
  parts.tm_mon -= 1;
  std::int64_t fraction = 0, unit = 1'000'000;
  if (at < text.size() && text[at] == '.') {
    std::size_t first = ++at;
    for (; at < text.size() && text[at] >= '0' && text[at] <= '9'; ++at) {
      unit /= 10;
      fraction += (text[at] - '0') * unit;
    }
    if (at == first) return std::nullopt;
  }
  std::int64_t offset = 0;
  if (at >= text.size()) return std::nullopt;
  if (text[at] == 'Z' || text[at] == 'z') {
    ++at;
  } else if (text[at] == '+' || text[at] == '-') {
    int sign = text[at++] == '-' ? -1 : 1, hours = 0, minutes = 0;
    if (!field(hours, 2, ':') || !field(minutes, 2, 0)) return std::nullopt;
    offset = sign * (hours * 3600LL + minutes * 60LL);
  } else {
    return std::nullopt;
  }
  if (at != text.size()) return std::nullopt;
  return (static_cast<std::int64_t>(::timegm(&parts)) - offset) * 1'000'000 + fraction;
}

nlohmann::json to_json(const LogEntry& entry) {
  nlohmann::json object{{"time", entry.time}, {"stream", entry.stream}, {"text", entry.text}};
  if (entry.partial) object["partial"] = true;
  return object;
}

LogReader::LogReader(std::string path) : path_(std::move(path)) {
  // In this order: a rotation in between then shows the same file twice (and one is dropped), never
  // a gap.
  open_current();
  previous_ = open_if_there(path_ + ".1");
  if (previous_ && current_ && id_of(previous_) == id_of(current_)) previous_.reset();
}

void LogReader::open_current() {
  if (!current_) current_ = open_if_there(path_);
}

int LogReader::watch_fd() {
  if (watch_) return watch_.get();
  Fd watch(check(::inotify_init1(IN_CLOEXEC | IN_NONBLOCK), "watch", path_));
  std::string folder = path_.substr(0, path_.rfind('/'));
  int added =
      ::inotify_add_watch(watch.get(), folder.c_str(),
                          IN_MODIFY | IN_CREATE | IN_MOVED_TO | IN_CLOSE_WRITE | IN_DELETE_SELF);
  if (added < 0) {
    if (errno == ENOENT) return -1;
    throw_errno("watch", folder);
  }
  watch_ = std::move(watch);
  return watch_.get();
}

void LogReader::drain_watch() {
  char events[4096];
  while (watch_ && ::read(watch_.get(), events, sizeof events) > 0) {
  }
}

bool LogReader::read_file(const Fd& file, const std::function<bool(const LogEntry&)>& sink) {
  char block[64 * 1024];
  for (;;) {
    ssize_t count = ::read(file.get(), block, sizeof block);
    if (count < 0 && errno == EINTR) continue;
    check(count, "read", path_);
    if (count == 0) return true;
    rest_.append(block, static_cast<std::size_t>(count));
    std::size_t start = 0;
    for (std::size_t end; (end = rest_.find('\n', start)) != std::string::npos; start = end + 1) {
      auto entry = parse_log_line(std::string_view(rest_).substr(start, end - start));
      if (entry && !sink(*entry)) {
        rest_.erase(0, end + 1);
        return false;
      }
    }
    rest_.erase(0, start);
  }
}

void LogReader::read(const std::function<bool(const LogEntry&)>& sink) {
  if (previous_) {
    if (!read_file(previous_, sink)) return;
    previous_.reset();
    rest_.clear();
  }
  for (;;) {
    open_current();
    if (!current_) return;
    // Asked before reading: what is written to the old file after a rotation was written before we
    // read on.
    Fd newest = open_if_there(path_);
    if (!read_file(current_, sink)) return;
    if (!newest || id_of(newest) == id_of(current_)) return;
    current_ = std::move(newest);
    rest_.clear();
  }
}

}  // namespace thaw::api
