#include "util/log.h"

#include <unistd.h>

#include <atomic>

#include <nlohmann/json.hpp>

#include "util/clock.h"

namespace thaw::log {
namespace {

std::atomic<Level> current_level{Level::kInfo};
std::atomic<bool> as_json{false};
constexpr const char* kNames[] = {"debug", "info", "warn", "error", "off"};

std::string quoted(const std::string& value) {
  if (!value.empty() && value.find_first_of(" \"\n\t=") == std::string::npos) return value;
  return nlohmann::json(value).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

void write_line(Level level, std::string_view message, Fields fields) {
  if (level < current_level.load(std::memory_order_relaxed)) return;
  std::string line;
  const char* name = kNames[static_cast<int>(level)];
  if (as_json) {
    nlohmann::ordered_json object{
        {"time", format_wall(wall_us())}, {"level", name}, {"message", message}};
    for (auto& [key, value] : fields) object[std::string(key)] = value;
    line = object.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  } else {
    line = format_wall(wall_us()) + " " + name + " " + std::string(message);
    for (auto& [key, value] : fields) line += " " + std::string(key) + "=" + quoted(value);
  }
  line += '\n';
  // One write(2) a line: lines of several threads and processes never mix.
  [[maybe_unused]] ssize_t n = ::write(STDERR_FILENO, line.data(), line.size());
}

}  // namespace

void set_level(Level level) { current_level = level; }

bool parse_level(std::string_view name, Level& level) {
  for (int i = 0; i < 5; ++i)
    if (name == kNames[i]) {
      level = static_cast<Level>(i);
      return true;
    }
  return false;
}

void set_json(bool on) { as_json = on; }

void debug(std::string_view message, Fields fields) { write_line(Level::kDebug, message, fields); }
void info(std::string_view message, Fields fields) { write_line(Level::kInfo, message, fields); }
void warn(std::string_view message, Fields fields) { write_line(Level::kWarn, message, fields); }
void error(std::string_view message, Fields fields) { write_line(Level::kError, message, fields); }

}  // namespace thaw::log
