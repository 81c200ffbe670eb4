#include "api/tokens.h"

#include <openssl/crypto.h>

#include "util/clock.h"
#include "util/error.h"
#include "util/file.h"

namespace thaw::api {
namespace {

constexpr const char* kSetting = "tokens";
constexpr std::string_view kPrefix = "thaw_";
constexpr int kDigits = 64;  // 256 bits: a plain hash is enough, there is nothing to guess

nlohmann::json rows(state::Database& database) {
  std::string text = database.setting(kSetting);
  return text.empty() ? nlohmann::json::array() : nlohmann::json::parse(text);
}

Token from_row(const nlohmann::json& row) {
  return {row.at("name"), parse_scope(row.at("scope").get<std::string>()).value_or(Scope::kRead),
          row.at("created_us")};
}

}  // namespace

std::string_view name(Scope scope) {
  return scope == Scope::kAdmin ? "admin" : scope == Scope::kDeploy ? "deploy" : "read";
}

std::optional<Scope> parse_scope(std::string_view text) {
  for (Scope scope : {Scope::kRead, Scope::kDeploy, Scope::kAdmin})
    if (text == name(scope)) return scope;
  return std::nullopt;
}

std::pair<std::string, Token> Tokens::create(const std::string& name, Scope scope) {
  if (name.empty() || name.size() > 64 ||
      name.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") !=
          std::string::npos)
    throw Error(Code::kInvalid, "create token", name, "this is no name for it",
                "use up to 64 letters, digits, '-', '_' and '.'");
  std::string token = std::string(kPrefix) + random_hex(kDigits);
  Token kept{name, scope, wall_us()};
  database_.transaction([&] {
    nlohmann::json all = rows(database_);
    for (const auto& row : all)
      if (row.at("name") == name)
        throw Error(Code::kConflict, "create token", name, "there is one of this name",
                    "remove it first, or choose another name");
    all.push_back({{"name", name},
                   {"scope", api::name(scope)},
                   {"sha256", sha256_hex(token)},
                   {"created_us", kept.created_us}});
    database_.put_setting(kSetting, all.dump());
  });
  return {token, kept};
}

std::vector<Token> Tokens::list() {
  std::vector<Token> all;
  for (const auto& row : rows(database_)) all.push_back(from_row(row));
  return all;
}

void Tokens::remove(const std::string& name) {
  database_.transaction([&] {
    nlohmann::json left = nlohmann::json::array(), all = rows(database_);
    for (const auto& row : all)
      if (row.at("name") != name) left.push_back(row);
    if (left.size() == all.size())
      throw Error(Code::kNotFound, "remove token", name, "there is none of this name",
                  "see `thaw token ls`");
    database_.put_setting(kSetting, left.dump());
  });
}

std::optional<Token> Tokens::find(std::string_view token) {
  std::string hash = sha256_hex(token);
  std::optional<Token> found;
  for (const auto& row : rows(database_)) {
    std::string known = row.at("sha256");
    if (known.size() == hash.size() && ::CRYPTO_memcmp(known.data(), hash.data(), hash.size()) == 0)
      found = from_row(row);
  }
  return found;
}

}  // namespace thaw::api
