#include "api/exchange.h"

#include <algorithm>
#include <charconv>

#include <fmt/format.h>

namespace thaw::api {
namespace {

// What shows a value to the client, in a refusal, goes down as many levels as it has.
constexpr int kMostDepth = 32;

std::string joined(const std::vector<std::string_view>& keys) {
  std::string text;
  for (auto key : keys) text += (text.empty() ? "" : ", ") + std::string(key);
  return text;
}

}  // namespace

std::string Exchange::query(const std::string& key, const std::string& fallback) const {
  auto found = request_.query.find(key);
  return found == request_.query.end() ? fallback : found->second;
}

bool Exchange::query_flag(const std::string& key) const {
  auto found = request_.query.find(key);
  if (found == request_.query.end()) return false;
  const std::string& value = found->second;
  if (value.empty() || value == "true" || value == "1") return true;
  if (value == "false" || value == "0") return false;
  throw Error(Code::kInvalid, "read the query's", key, "'" + value + "' is neither true nor false",
              "give " + key + "=true or leave it out");
}

std::int64_t Exchange::query_number(const std::string& key, std::int64_t fallback, std::int64_t low,
                                    std::int64_t high) const {
  auto found = request_.query.find(key);
  if (found == request_.query.end()) return fallback;
  const std::string& value = found->second;
  std::int64_t number = 0;
  auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
  if (value.empty() || error != std::errc() || end != value.data() + value.size() || number < low ||
      number > high) {
    throw Error(Code::kInvalid, "read the query's", key,
                fmt::format("'{}' is no whole number from {} to {}", value, low, high),
                fmt::format("give {}={} for example", key, std::max(fallback, low)));
  }
  return number;
}

nlohmann::json Exchange::body_object(const std::vector<std::string_view>& keys) const {
  if (request_.body.empty()) return nlohmann::json::object();
  nlohmann::json body;
  try {
    body = nlohmann::json::parse(request_.body, [](int depth, auto, auto&) {
      if (depth > kMostDepth)
        throw Error(Code::kInvalid, "read", "the body",
                    fmt::format("it has more than {} levels", kMostDepth), "send a flatter one");
      return true;
    });
  } catch (const nlohmann::json::exception& error) {
    throw Error(Code::kInvalid, "read the body of", request_.method + " " + request_.target,
                error.what(), "send a JSON object");
  }
  if (!body.is_object()) {
    throw Error(Code::kInvalid, "read the body of", request_.method + " " + request_.target,
                std::string("it is JSON, but ") + body.type_name() + ", not an object",
                "send a JSON object");
  }
  for (auto& [key, value] : body.items()) {
    if (std::find(keys.begin(), keys.end(), key) != keys.end()) continue;
    throw Error(Code::kInvalid, "read the body of", request_.method + " " + request_.target,
                "the key '" + key + "' is unknown",
                keys.empty() ? "send no body" : "known here: " + joined(keys));
  }
  return body;
}

}  // namespace thaw::api
