#include "api/target.h"

#include <algorithm>

#include "util/error.h"

namespace thaw::api {
namespace {

std::string decode(std::string_view text, bool plus_is_space) {
  auto digit = [](char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
  };
  std::string decoded;
  for (std::size_t index = 0; index < text.size(); ++index) {
    if (text[index] == '+' && plus_is_space) {
      decoded += ' ';
    } else if (text[index] != '%') {
      decoded += text[index];
    } else {
      int high = index + 2 < text.size() ? digit(text[index + 1]) : -1;
      int low = index + 2 < text.size() ? digit(text[index + 2]) : -1;
      if (high < 0 || low < 0 || (high == 0 && low == 0)) {
        throw Error(Code::kInvalid, "read the address", std::string(text),
                    "a percent sign is not followed by two hexadecimal digits, or they are zero",
                    "encode the percent sign itself as %25");
      }
      decoded += static_cast<char>(high * 16 + low);
      index += 2;
    }
  }
  return decoded;
}

}  // namespace

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  while (!text.empty()) {
    std::size_t end = std::min(text.find(separator), text.size());
    if (end > 0) parts.push_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return parts;
}

void parse_target(Request& request) {
  std::string_view target = request.target;
  if (!target.starts_with("/")) {
    throw Error(Code::kInvalid, "read the address", request.target, "it does not begin with /",
                "ask for a path such as /v1/pods");
  }
  target = target.substr(0, target.find('#'));
  std::size_t mark = target.find('?');
  // Dot segments are resolved after decoding, so that an encoded one is no way around.
  for (auto raw : split(target.substr(0, mark), '/')) {
    std::string segment = decode(raw, false);
    if (segment == ".") continue;
    if (segment != "..") {
      request.segments.push_back(std::move(segment));
    } else if (!request.segments.empty()) {
      request.segments.pop_back();
    }
  }
  if (mark == std::string_view::npos) return;
  for (auto pair : split(target.substr(mark + 1), '&')) {
    std::size_t equals = pair.find('=');
    std::string key = decode(pair.substr(0, equals), true);
    std::string value =
        equals == std::string_view::npos ? "" : decode(pair.substr(equals + 1), true);
    if (!request.query.emplace(key, value).second) {
      throw Error(Code::kInvalid, "read the query of", request.target,
                  "the key '" + key + "' is given twice", "give it once");
    }
  }
}

}  // namespace thaw::api
