#include "util/units.h"

#include <charconv>
#include <cmath>
#include <utility>

namespace thaw {
namespace {

// Takes a decimal number off the front of `text`.
std::optional<double> take_number(std::string_view& text) {
  if (text.empty() || !((text[0] >= '0' && text[0] <= '9') || text[0] == '.')) return std::nullopt;
  double value = 0;
  auto [end, error] =
      std::from_chars(text.data(), text.data() + text.size(), value, std::chars_format::fixed);
  if (error != std::errc()) return std::nullopt;
  text.remove_prefix(static_cast<std::size_t>(end - text.data()));
  return value;
}

constexpr std::pair<std::string_view, std::int64_t> kDurations[] = {
    {"d", 86'400'000'000}, {"h", 3'600'000'000}, {"m", 60'000'000},
    {"s", 1'000'000},      {"ms", 1'000},        {"us", 1}};

}  // namespace

std::optional<std::uint64_t> parse_bytes(std::string_view text) {
  constexpr std::pair<std::string_view, double> units[] = {{"", 1},
                                                           {"B", 1},
                                                           {"K", 1e3},
                                                           {"KB", 1e3},
                                                           {"k", 1e3},
                                                           {"kB", 1e3},
                                                           {"M", 1e6},
                                                           {"MB", 1e6},
                                                           {"G", 1e9},
                                                           {"GB", 1e9},
                                                           {"T", 1e12},
                                                           {"TB", 1e12},
                                                           {"Ki", 1024.0},
                                                           {"KiB", 1024.0},
                                                           {"Mi", 1048576.0},
                                                           {"MiB", 1048576.0},
                                                           {"Gi", 1073741824.0},
                                                           {"GiB", 1073741824.0},
                                                           {"Ti", 1099511627776.0},
                                                           {"TiB", 1099511627776.0}};
  auto number = take_number(text);
  if (!number) return std::nullopt;
  if (!text.empty() && text[0] == ' ') text.remove_prefix(1);
  for (auto& [name, factor] : units)
    if (text == name) {
      double bytes = *number * factor;
      if (bytes > 9e18) return std::nullopt;
      return static_cast<std::uint64_t>(std::llround(bytes));
    }
  return std::nullopt;
}

std::optional<std::int64_t> parse_duration_us(std::string_view text) {
  if (text.empty()) return std::nullopt;
  double total = 0;
  bool first = true;
  while (!text.empty()) {
    auto number = take_number(text);
    if (!number) return std::nullopt;
    if (text.empty() && first) {
      total = *number * 1e6;
      break;
    }
    std::size_t letters = 0;
    while (letters < text.size() && text[letters] >= 'a' && text[letters] <= 'z') ++letters;
    std::string_view unit = text.substr(0, letters);
    text.remove_prefix(letters);
    bool known = false;
    for (auto& [name, factor] : kDurations)
      if (unit == name) {
        total += *number * static_cast<double>(factor);
        known = true;
      }
    if (!known) return std::nullopt;
    first = false;
  }
  if (total > 9e17) return std::nullopt;
  return static_cast<std::int64_t>(std::llround(total));
}

std::string format_duration(std::int64_t microseconds) {
  if (microseconds == 0) return "0s";
  std::string text;
  for (auto& [name, factor] : kDurations) {
    std::int64_t count = microseconds / factor;
    if (!count) continue;
    text += std::to_string(count) + std::string(name);
    microseconds -= count * factor;
  }
  return text;
}

}  // namespace thaw
