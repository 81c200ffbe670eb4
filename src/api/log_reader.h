// Reads a replica's log (CRI lines), with its one rotated predecessor, from the start or as it
// grows.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

#include "util/fd.h"

namespace thaw::api {

struct LogEntry {
  std::string time;      // as in the file: RFC 3339
  std::string stream;    // stdout or stderr
  bool partial = false;  // the line goes on in the next entry of this stream
  std::string text;
};

// "<RFC3339> <stdout|stderr> <F|P> <text>"; nullopt for a damaged line.
std::optional<LogEntry> parse_log_line(std::string_view line);
// "2026-11-23T17:34:46.123456Z", any number of fraction digits, Z or ±hh:mm. Microseconds since
// 1970.
std::optional<std::int64_t> parse_rfc3339_us(std::string_view text);
nlohmann::json to_json(const LogEntry& entry);

class LogReader {
 public:
  // The file may not exist yet.
  explicit LogReader(std::string path);

  // Hands over every whole line that was not handed over yet. False from `sink` ends the call.
  void read(const std::function<bool(const LogEntry&)>& sink);
  // Readable when there may be more; -1 as long as the folder does not exist. Call drain_watch
  // before read.
  int watch_fd();
  void drain_watch();

 private:
  void open_current();
  bool read_file(const Fd& file, const std::function<bool(const LogEntry&)>& sink);

  std::string path_;
  Fd previous_, current_, watch_;
  std::string rest_;  // of a line that is not whole yet
};

}  // namespace thaw::api
