// Who may use the API over the network: tokens, each with a name and a scope. Only their hashes are
// kept.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "state/database.h"

namespace thaw::api {

// Each may do what those before it may, too.
enum class Scope { kRead, kDeploy, kAdmin };
std::string_view name(Scope scope);
std::optional<Scope> parse_scope(std::string_view text);

struct Token {
  std::string name;
  Scope scope = Scope::kRead;
  std::int64_t created_us = 0;
  // All its bearer reaches (api/workspace.h); "": everything.
  std::string workspace;
  std::vector<std::string> folders;  // of the host, real paths: what a workspace may read there
};

// Thread-safe. The database outlives it.
class Tokens {
 public:
  explicit Tokens(state::Database& database) : database_(database) {}
  // The token itself, which is shown this once, and what is kept of it. kConflict when the name is
  // taken.
  std::pair<std::string, Token> create(const std::string& name, Scope scope,
                                       const std::string& workspace = {},
                                       const std::vector<std::string>& folders = {});
  std::vector<Token> list();
  void remove(const std::string& name);  // kNotFound
  // nullopt: it is nobody's. Takes as long for a wrong one as for a right one.
  std::optional<Token> find(std::string_view token);

 private:
  state::Database& database_;
};

}  // namespace thaw::api
