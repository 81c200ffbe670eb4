#include <filesystem>

#include "cli/command.h"
#include "cli/listing.h"
#include "util/clock.h"

namespace thaw::cli {
namespace {

struct TokenOptions {
  Listing listing;
  std::string name, scope = "read", workspace;
  std::vector<std::string> names, folders;
};

}  // namespace

Command token_command() {
  auto options = std::make_shared<TokenOptions>();
  Command create{"create", "Make a token and print it, this once",
                 "read sees everything but tokens; deploy may also deploy, scale, stop, remove, "
                 "checkpoint and execute; admin may do everything. Whoever may deploy can mount "
                 "the host's files, and so is as good as root there, unless the token is a "
                 "workspace's: that reaches the pods WORKSPACE--NAME alone, by the name NAME, and "
                 "of the host's files only the given folders, to read."};
  create.options = {
      {"--scope", "SCOPE", &options->scope, "read, deploy or admin (read)", "read deploy admin"},
      {"--workspace", "WORKSPACE", &options->workspace, "All that it reaches"},
      {"--folder", "DIR", &options->folders, "A folder of the host that the workspace may read"}};
  create.positionals = {{"NAME", &options->name, "Whose it is"}};
  create.run = [options](Context& context) {
    nlohmann::json body{{"name", options->name}, {"scope", options->scope}};
    if (!options->workspace.empty()) body["workspace"] = options->workspace;
    for (const std::string& folder : options->folders)
      body["folders"].push_back(std::filesystem::absolute(folder).lexically_normal().string());
    auto token = context.client().post("/v1/tokens", body);
    print_line(token.at("token").get<std::string>());
    return static_cast<int>(kOk);
  };

  Command ls{"ls", "List tokens",
             "Only their names and scopes: the tokens themselves are not kept."};
  ls.options = listing_options(options->listing, "names");
  ls.run = [options](Context& context) {
    auto tokens = context.client().get("/v1/tokens");
    return show_listing(context, options->listing, tokens, "name", [&] {
      Table table({"NAME", "SCOPE", "WORKSPACE", "AGE"});
      for (auto& token : tokens)
        table.add({token.at("name"), token.at("scope"),
                   token.at("workspace").is_string() ? token["workspace"].get<std::string>() : "-",
                   age(token.at("created_us"), wall_us())});
      return table;
    });
  };

  Command rm{"rm", "Remove tokens", "They are refused from then on."};
  rm.positionals = {{"NAME", &options->names, "Their names"}};
  rm.run = [options](Context& context) {
    auto client = context.client();
    for (auto& name : options->names) {
      client.remove("/v1/tokens/" + api::encode(name));
      print_line(name);
    }
    return static_cast<int>(kOk);
  };

  Command command{"token", "Make, list and remove tokens for the API over the network", ""};
  command.examples = {
      "thaw token create ci --scope deploy",
      "THAW_TOKEN=$(cat token) THAW_CA=ca.pem thaw --host tls:build.example:7443 ps"};
  command.commands = {create, ls, rm};
  return command;
}

}  // namespace thaw::cli
