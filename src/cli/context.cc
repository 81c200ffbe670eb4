#include "cli/context.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "api/json.h"
#include "api/unreachable.h"
#include "util/units.h"

namespace thaw::cli {
namespace {

// Terminal cells, taking one a code point: names and messages here are no wide scripts.
std::size_t cells(std::string_view text) {
  std::size_t count = 0;
  for (char c : text) count += (static_cast<unsigned char>(c) & 0xc0) != 0x80;
  return count;
}

std::string cut(const std::string& text, std::size_t width) {
  if (cells(text) <= width || width == 0) return text;
  std::string result;
  std::size_t count = 0;
  for (char c : text) {
    if ((static_cast<unsigned char>(c) & 0xc0) != 0x80 && ++count >= width) break;
    result += c;
  }
  return result + "…";
}

const char* color_of(const std::string& word) {
  if (word == "ready" || word == "available" || word == "pass") return "\033[32m";
  if (word == "failed" || word == "restore_failed" || word == "fail") return "\033[31m";
  if (word == "warn" || word == "warming" || word == "checkpointing" || word == "restoring" ||
      word == "verifying") {
    return "\033[33m";
  }
  return nullptr;
}

}  // namespace

int exit_code_of(const Error& error) {
  if (dynamic_cast<const api::Unreachable*>(&error)) return kNoDaemon;
  switch (error.code()) {
    case Code::kInvalid:
      return kUsage;
    case Code::kNotFound:
      return kNotFound;
    case Code::kConflict:
      return kConflict;
    case Code::kTimeout:
      return kTimeout;
    default:
      return kFailed;
  }
}

api::Client Context::client() const {
  auto variable = [](const char* name) {
    const char* value = std::getenv(name);
    return std::string(value ? value : "");
  };
  std::string text = variable("THAW_HOST");
  api::Address address = !host.empty()   ? api::parse_address(host, "--host")
                         : !text.empty() ? api::parse_address(text, "THAW_HOST")
                                         : api::parse_address(kDefaultHost, "the default");
  address.token = variable("THAW_TOKEN");
  address.ca_file = variable("THAW_CA");
  return api::Client(std::move(address));
}

bool Context::progress() const { return ::isatty(2); }

bool Context::color(int fd) const {
  const char* no_color = std::getenv("NO_COLOR");
  const char* terminal = std::getenv("TERM");
  return (!no_color || !*no_color) && ::isatty(fd) &&
         !(terminal && std::string_view(terminal) == "dumb");
}

void print(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0) {
    throw_errno("write to", "stdout");
  }
}

void print_line(std::string_view text) { print(std::string(text) + "\n"); }

void print_json(const nlohmann::json& value) {
  print_line(value.dump(2, ' ', false, nlohmann::json::error_handler_t::replace));
}

void print_error(std::string_view text) {
  std::string line = std::string(text) + "\n";
  std::fwrite(line.data(), 1, line.size(), stderr);
}

std::string Table::text(std::size_t width, bool color) const {
  std::vector<std::size_t> widths(rows_[0].size());
  for (auto& row : rows_) {
    for (std::size_t column = 0; column < row.size(); ++column) {
      widths[column] = std::max(widths[column], cells(row[column]));
    }
  }
  std::string result;
  for (auto& row : rows_) {
    std::string line;
    std::size_t used = 0;
    for (std::size_t column = 0; column < row.size(); ++column) {
      bool last = column + 1 == row.size();
      std::string cell = last && width > used + 8 ? cut(row[column], width - used) : row[column];
      const char* paint = color && &row != &rows_[0] ? color_of(cell) : nullptr;
      line += paint ? paint + cell + "\033[0m" : cell;
      if (last) break;
      line.append(widths[column] - cells(cell) + 2, ' ');
      used += widths[column] + 2;
    }
    line.erase(line.find_last_not_of(' ') + 1);
    result += line + "\n";
  }
  return result;
}

void Table::print(const Context& context) const {
  winsize size{};
  std::size_t width = ::ioctl(1, TIOCGWINSZ, &size) == 0 ? size.ws_col : 0;
  cli::print(text(width, context.color(1)));
}

std::string age(std::int64_t since_us, std::int64_t now_us) {
  if (since_us == 0) return "-";
  std::int64_t seconds = std::max<std::int64_t>(0, (now_us - since_us) / 1'000'000);
  if (seconds < 120) return fmt::format("{}s", seconds);
  if (seconds < 7200) return fmt::format("{}m", seconds / 60);
  if (seconds < 48 * 3600) return fmt::format("{}h", seconds / 3600);
  return fmt::format("{}d", seconds / 86400);
}

std::string span(std::int64_t us) {
  if (us < 1000) return fmt::format("{}us", us);
  if (us < 1'000'000) return fmt::format("{:.1f}ms", static_cast<double>(us) / 1e3);
  if (us < 60'000'000) return fmt::format("{:.2f}s", static_cast<double>(us) / 1e6);
  return fmt::format("{}m{:02}s", us / 60'000'000, us / 1'000'000 % 60);
}

std::string text_of(const nlohmann::json& value, const char* fallback) {
  if (value.is_null()) return fallback;
  if (!value.is_string()) return api::dump(value);
  std::string text = value;
  return text.empty() ? fallback : text;
}

std::int64_t number(const std::string& text, const std::string& option, std::int64_t low,
                    std::int64_t high) {
  std::int64_t value = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || error != std::errc() || end != text.data() + text.size() || value < low ||
      value > high) {
    throw Error(Code::kInvalid, "use " + option, text,
                fmt::format("it is no whole number from {} to {}", low, high),
                fmt::format("give one such as {}", std::max<std::int64_t>(low, 1)));
  }
  return value;
}

std::int64_t duration_us(const std::string& text, const std::string& option) {
  auto value = parse_duration_us(text);
  if (!value) {
    throw Error(Code::kInvalid, "use " + option, text, "it is no duration",
                "give one such as 30s, 5m or 1h30m");
  }
  return *value;
}

std::uint64_t size_bytes(const std::string& text, const std::string& option) {
  auto value = parse_bytes(text);
  if (!value) {
    throw Error(Code::kInvalid, "use " + option, text, "it is no size",
                "give one such as 64MiB or 20GiB");
  }
  return *value;
}

std::string absolute_path(const std::string& path) {
  return std::filesystem::absolute(path).lexically_normal().string();
}

}  // namespace thaw::cli
