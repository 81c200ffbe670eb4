// Structured log lines on stderr: time, level, message, key=value pairs. Callable from any thread.
#pragma once

#include <functional>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>

namespace thaw::log {

enum class Level { kDebug, kInfo, kWarn, kError, kOff };
using Fields = std::initializer_list<std::pair<std::string_view, std::string>>;

void set_level(Level level);  // default kInfo
bool parse_level(std::string_view name, Level& level);
void set_json(bool on);  // one JSON object a line instead of text

void debug(std::string_view message, Fields fields = {});
void info(std::string_view message, Fields fields = {});
void warn(std::string_view message, Fields fields = {});
void error(std::string_view message, Fields fields = {});

// What the lines of this thread are about, until it ends: a replica, a request. A line's own field
// of the same name goes before it, and so does an inner context.
class Context {
 public:
  Context(std::string_view key, std::string value);  // the key outlives it
  ~Context();
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;
  // "" when there is none.
  static std::string value(std::string_view key);
  // From the innermost on.
  static void for_each(const std::function<void(std::string_view, const std::string&)>& visit);

 private:
  std::string_view key_;
  std::string value_;
  const Context* outer_;
};

}  // namespace thaw::log
