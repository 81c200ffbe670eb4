#include "api/tokens.h"

#include <openssl/crypto.h>

#include <filesystem>

#include "state/spec.h"
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
          row.at("created_us"), row.value("workspace", ""),
          row.value("folders", std::vector<std::string>())};
}

// Its pods are W--NAME: W has no "--" in it nor a '-' at either end, or it would not be told where
// it ends.
void check_workspace(const Token& token) {
  const std::string& text = token.workspace;
  if (text.empty()) return;
  if (text.size() > 20 ||
      text.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789-") != std::string::npos ||
      text.front() == '-' || text.back() == '-' ||
      text.find(state::kWorkspaceMark) != std::string::npos)
    throw Error(Code::kInvalid, "create token for workspace", text, "this is no name for it",
                "use up to 20 lower-case letters, digits and single '-' in between");
  if (token.scope == Scope::kAdmin)
    throw Error(Code::kInvalid, "create token for workspace", text,
                "scope admin is for the whole machine", "use scope read or deploy");
}

std::string real_folder(const Token& token, const std::string& folder) {
  if (token.workspace.empty())
    throw Error(Code::kInvalid, "create token for folder", folder,
                "without a workspace it may use every folder", "leave --folder out, or give one");
  std::error_code error;
  std::string real = std::filesystem::canonical(folder, error);
  if (error || !folder.starts_with("/") || !std::filesystem::is_directory(real) || real == "/")
    throw Error(Code::kInvalid, "create token for folder", folder,
                "it is no folder of this machine, or all of it", "give an absolute path of one");
  return real;
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

std::pair<std::string, Token> Tokens::create(const std::string& name, Scope scope,
                                             const std::string& workspace,
                                             const std::vector<std::string>& folders) {
  if (name.empty() || name.size() > 64 ||
      name.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") !=
          std::string::npos)
    throw Error(Code::kInvalid, "create token", name, "this is no name for it",
                "use up to 64 letters, digits, '-', '_' and '.'");
  std::string token = std::string(kPrefix) + random_hex(kDigits);
  Token kept{name, scope, wall_us(), workspace, {}};
  check_workspace(kept);
  for (const std::string& folder : folders) kept.folders.push_back(real_folder(kept, folder));
  database_.transaction([&] {
    nlohmann::json all = rows(database_);
    for (const auto& row : all)
      if (row.at("name") == name)
        throw Error(Code::kConflict, "create token", name, "there is one of this name",
                    "remove it first, or choose another name");
    all.push_back({{"name", name},
                   {"scope", api::name(scope)},
                   {"workspace", kept.workspace},
                   {"folders", kept.folders},
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
