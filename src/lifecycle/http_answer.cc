#include "lifecycle/http_answer.h"

#include <algorithm>
#include <charconv>

namespace thaw::lifecycle {

std::optional<std::size_t> answer_size(const std::string& answer) {
  auto header_end = answer.find("\r\n\r\n");
  if (header_end == std::string::npos) return std::nullopt;
  std::string header = answer.substr(0, header_end + 2);
  for (char& c : header)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  constexpr std::string_view name = "\r\ncontent-length:";
  auto at = header.find(name);
  if (at == std::string::npos) return std::nullopt;
  at = header.find_first_not_of(' ', at + name.size());
  std::size_t length = 0;
  if (at == std::string::npos ||
      std::from_chars(&header[at], header.data() + header.size(), length).ec != std::errc())
    return std::nullopt;
  return header_end + 4 + std::min(length, kAnswerLimit);
}

std::optional<int> status_of(std::string_view answer) {
  if (!answer.starts_with("HTTP/")) return std::nullopt;
  auto space = answer.find(' ');
  if (space == std::string_view::npos || space > 10) return std::nullopt;
  std::string_view code = answer.substr(space + 1, 3);
  int status = 0;
  auto result = std::from_chars(code.data(), code.data() + code.size(), status);
  if (result.ec != std::errc() || result.ptr != code.data() + 3 || status < 100)
    return std::nullopt;
  return status;
}

}  // namespace thaw::lifecycle
