// version and schema.
#include "util/version.h"

#include "cli/command.h"
#include "pods/spec.h"

namespace thaw::cli {
namespace {

int version(Context& context, bool json) {
  nlohmann::json daemon;
  try {
    daemon = context.client().get("/v1/version");
  } catch (const Error& error) {
    // Without a daemon there is still a client's version; an address that makes no sense is a
    // mistake all the same.
    if (exit_code_of(error) != kNoDaemon) throw;
  }
  if (json) {
    print_json({{"client", {{"version", kVersion}}}, {"daemon", daemon}});
    return kOk;
  }
  print_line(fmt::format("client  {}", kVersion));
  print_line("daemon  " +
             (daemon.is_null() ? "not running" : daemon.at("version").get<std::string>()));
  return kOk;
}

}  // namespace

Command version_command() {
  auto json = std::make_shared<bool>(false);
  Command command{"version", "Show the versions of this command and of the daemon", ""};
  command.options = {{"--json", "", json.get(), "Print JSON"}};
  command.run = [json](Context& context) { return version(context, *json); };
  return command;
}

Command schema_command() {
  Command command{"schema", "Print the JSON Schema of the pod specification",
                  "For editors and for checks in CI."};
  command.run = [](Context&) {
    print_json(pods::json_schema());
    return static_cast<int>(kOk);
  };
  return command;
}

}  // namespace thaw::cli
