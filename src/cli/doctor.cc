#include "api/json.h"
#include "cli/command.h"
#include "pods/controller.h"

namespace thaw::cli {
namespace {

struct Options {
  bool json = false;
  lifecycle::Settings settings;
};

int doctor(Context& context, const Options& options) {
  auto checks = nlohmann::json::array();
  bool failed = false;
  for (auto& check : pods::run_doctor(options.settings)) {
    failed = failed || check.status == pods::CheckResult::Status::kFail;
    checks.push_back(api::to_json(check));
  }
  if (options.json) {
    print_json(checks);
    return failed ? kFailed : kOk;
  }
  Table table({"CHECK", "STATUS", "FOUND"});
  for (auto& check : checks) table.add({check.at("name"), check.at("status"), check.at("found")});
  table.print(context);
  for (auto& check : checks) {
    if (check.at("status") == "pass" || check.at("remedy").is_null()) continue;
    print_line(fmt::format("{}: {}", check.at("name").get<std::string>(),
                           check.at("remedy").get<std::string>()));
  }
  return failed ? kFailed : kOk;
}

}  // namespace

Command doctor_command() {
  auto options = std::make_shared<Options>();
  Command command{"doctor", "Check what this host can do, and say what to do about the rest",
                  "Needs no daemon. Exits with 1 when a check fails; a warning is no failure."};
  command.options = {
      {"--json", "", &options->json, "Print a JSON array"},
      {"--data-dir", "DIR", &options->settings.data_dir, "The daemon's data directory",
       "@directory"},
      {"--runtime", "RUNTIME", &options->settings.runtime, "The OCI runtime: a name or a path",
       "@file"},
      {"--criu", "DIR", &options->settings.criu_home, "Where CRIU is installed", "@directory"}};
  command.run = [options](Context& context) { return doctor(context, *options); };
  return command;
}

}  // namespace thaw::cli
