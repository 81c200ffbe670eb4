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

thread_local const Context* innermost = nullptr;

std::string in_quotes(const std::string& value) {
  if (!value.empty() && value.find_first_of(" \"\n\t=") == std::string::npos) return value;
  return nlohmann::json(value).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

void write_line(Level level, std::string_view message, Fields given) {
  if (level < current_level.load(std::memory_order_relaxed)) return;
  std::vector<std::pair<std::string_view, std::string>> fields(given);
  Context::for_each([&](std::string_view key, const std::string& value) {
    if (std::none_of(fields.begin(), fields.end(), [&](auto& field) { return field.first == key; }))
      fields.emplace_back(key, value);
  });
  std::string line;
  const char* name = kNames[static_cast<int>(level)];
  if (as_json) {
    nlohmann::ordered_json object{
        {"time", format_wall(wall_us())}, {"level", name}, {"message", message}};
    for (auto& [key, value] : fields) object[std::string(key)] = value;
    line = object.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  } else {
    line = format_wall(wall_us()) + " " + name + " " + std::string(message);
    for (auto& [key, value] : fields) line += " " + std::string(key) + "=" + in_quotes(value);
  }
  line += '\n';
  // One write(2) a line: lines of several threads and processes never mix.
  [[maybe_unused]] ssize_t n = ::write(STDERR_FILENO, line.data(), line.size());
}

}  // namespace

Context::Context(std::string_view key, std::string value)
    : key_(key), value_(std::move(value)), outer_(std::exchange(innermost, this)) {}

Context::~Context() { innermost = outer_; }

std::string Context::value(std::string_view key) {
  for (const Context* at = innermost; at; at = at->outer_)
    if (at->key_ == key) return at->value_;
  return {};
}

void Context::for_each(const std::function<void(std::string_view, const std::string&)>& visit) {
  for (const Context* at = innermost; at; at = at->outer_) visit(at->key_, at->value_);
}

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
