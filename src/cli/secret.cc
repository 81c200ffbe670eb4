#include <unistd.h>

#include "cli/command.h"
#include "cli/listing.h"
#include "util/clock.h"
#include "util/fd.h"
#include "util/file.h"

namespace thaw::cli {
namespace {

struct SecretOptions {
  Listing listing;
  std::string name, file;
  std::vector<std::string> names;
};

constexpr std::size_t kMostBytes = 1 << 20;

}  // namespace

Command secret_command() {
  auto options = std::make_shared<SecretOptions>();
  Command set{"set", "Keep a secret, or change it",
              "Its value is all that comes from standard input, or what a file holds, byte for "
              "byte; at most 1 MiB. Replicas that start from then on have it."};
  set.options = {{"--file", "FILE", &options->file, "Read the value from there", "@file"}};
  set.positionals = {{"NAME", &options->name, "Its name"}};
  set.run = [options](Context& context) {
    std::string value = options->file.empty()
                            ? read_all(Fd(check(::dup(0), "read", "stdin")), kMostBytes)
                            : read_file(options->file, kMostBytes);
    context.client().put("/v1/secrets/" + api::encode(options->name), value);
    print_line(options->name);
    return static_cast<int>(kOk);
  };

  Command ls{"ls", "List secrets", "Only their names: nobody is shown what is in them."};
  ls.options = listing_options(options->listing, "names");
  ls.run = [options](Context& context) {
    auto secrets = context.client().get("/v1/secrets");
    return show_listing(context, options->listing, secrets, "name", [&] {
      Table table({"NAME", "CHANGED"});
      for (auto& secret : secrets)
        table.add({secret.at("name"), age(secret.at("updated_us"), wall_us())});
      return table;
    });
  };

  Command rm{"rm", "Remove secrets", "Those that no pod names."};
  rm.positionals = {{"NAME", &options->names, "Their names"}};
  rm.run = [options](Context& context) {
    auto client = context.client();
    for (auto& name : options->names) {
      client.remove("/v1/secrets/" + api::encode(name));
      print_line(name);
    }
    return static_cast<int>(kOk);
  };

  Command command{"secret", "Keep secrets for pods to name",
                  "A pod names one in its specification, secrets: [{name: token, secret: NAME}], "
                  "and reads it at /run/thaw/secrets/token. It lies encrypted in the daemon's data "
                  "directory, under the key of `thaw daemon --secrets-key`, and in no checkpoint."};
  command.examples = {"printf %s \"$TOKEN\" | thaw secret set api-token",
                      "thaw secret set key.pem --file key.pem", "thaw secret ls"};
  command.commands = {set, ls, rm};
  return command;
}

}  // namespace thaw::cli
