// stop and rm: both take several names, go on after a failure, and end with the first failure's
// exit code.
#include "cli/command.h"
#include "cli/progress.h"

namespace thaw::cli {
namespace {

struct Options {
  std::vector<std::string> names;
  bool force = false;
};

int for_each(const Context& context, api::Client& client, const std::vector<std::string>& names,
             const std::function<void(const std::string&)>& work) {
  int result = kOk;
  for (auto& name : names) {
    try {
      // A program may take its grace time.
      EventProgress progress(context, name, context.progress() ? newest_event(client) : 0);
      work(name);
      progress.finish();
      print_line(name);
    } catch (const Error& error) {
      print_error("thaw: " + std::string(error.what()));
      if (result == kOk) result = exit_code_of(error);
      if (result == kNoDaemon) return result;
    }
  }
  return result;
}

void stop_one(api::Client& client, const std::string& name) {
  try {
    client.post("/v1/pods/" + api::encode(name) + "/stop");
  } catch (const Error& no_pod) {
    if (no_pod.code() != Code::kNotFound) throw;
    try {
      client.post("/v1/replicas/" + api::encode(name) + "/stop");
    } catch (const Error& no_replica) {
      if (no_replica.code() != Code::kNotFound) throw;
      throw no_pod;  // knows the names that exist
    }
  }
}

}  // namespace

Command stop_command() {
  auto options = std::make_shared<Options>();
  Command command{"stop", "Stop all replicas of a pod, or one replica",
                  "SIGTERM, then SIGKILL after the pod's grace time. A stopped pod stays deployed "
                  "and starts again when "
                  "it is scaled or deployed. When one replica is stopped, its pod goes on "
                  "with one less."};
  command.positionals = {{"NAME", &options->names, "Pods, or replica ids", true, "@pod"}};
  command.run = [options](Context& context) {
    auto client = context.client();
    return for_each(context, client, options->names,
                    [&](const std::string& name) { stop_one(client, name); });
  };
  return command;
}

Command rm_command() {
  auto options = std::make_shared<Options>();
  Command command{"rm", "Remove pods", ""};
  command.options = {{"-f,--force", "", &options->force, "Stop running replicas first"}};
  command.positionals = {{"NAME", &options->names, "Pods", true, "@pod"}};
  command.run = [options](Context& context) {
    auto client = context.client();
    return for_each(context, client, options->names, [&](const std::string& name) {
      client.remove(api::with_query("/v1/pods/" + api::encode(name),
                                    {{"force", options->force ? "true" : ""}}));
    });
  };
  return command;
}

}  // namespace thaw::cli
