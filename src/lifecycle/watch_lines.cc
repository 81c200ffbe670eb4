#include "lifecycle/watch_lines.h"

#include <charconv>

#include <nlohmann/json.hpp>

namespace thaw::lifecycle {
namespace {

constexpr std::size_t kTextLimit = 1 << 20;

std::string_view next_word(std::string_view& text) {
  auto space = text.find(' ');
  std::string_view word = text.substr(0, space);
  text = space == std::string_view::npos ? std::string_view() : text.substr(space + 1);
  return word;
}

}  // namespace

std::optional<std::string> LogText::add(std::string_view line) {
  std::string_view rest = line;
  next_word(rest);  // the time
  std::string_view stream = next_word(rest), mark = next_word(rest);
  if ((stream != "stdout" && stream != "stderr") || (mark != "F" && mark != "P"))
    return std::string(line);
  std::string& text = stream == "stdout" ? out_ : err_;
  text += rest;
  // A program that never ends its line is looked at all the same.
  if (mark == "P" && text.size() < kTextLimit) return std::nullopt;
  return std::exchange(text, {});
}

std::optional<Datagram> Datagram::parse(std::string_view line) {
  Datagram datagram;
  auto [end, error] = std::from_chars(line.data(), line.data() + line.size(), datagram.pid);
  if (error != std::errc()) return std::nullopt;
  auto json = nlohmann::json::parse(end, line.data() + line.size(), nullptr, false);
  if (!json.is_string()) return std::nullopt;
  datagram.text = json.get<std::string>();
  return datagram;
}

std::optional<std::string> Datagram::get(std::string_view key) const {
  for (std::string_view rest = text; !rest.empty();) {
    std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(line.size() + 1, rest.size()));
    if (line.starts_with(key) && line.substr(key.size()).starts_with('='))
      return std::string(line.substr(key.size() + 1));
  }
  return std::nullopt;
}

}  // namespace thaw::lifecycle
