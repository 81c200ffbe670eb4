// Structured log lines on stderr: time, level, message, key=value pairs. Callable from any thread.
#pragma once

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

}  // namespace thaw::log
