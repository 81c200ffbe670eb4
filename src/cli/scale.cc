#include "cli/command.h"
#include "cli/progress.h"
#include "util/units.h"

namespace thaw::cli {
namespace {

struct ScaleOptions {
  std::string pod, count, timeout = "5m";
  bool wait = false, json = false;
};

int scale(Context& context, const ScaleOptions& options) {
  nlohmann::json body{{"replicas", number(options.count, "N", 0, 1'000'000)}};
  std::int64_t timeout = duration_us(options.timeout, "--timeout");
  if (options.wait) body["wait"] = format_duration(timeout);
  auto client = context.client();
  nlohmann::json pod;
  {
    std::int64_t after = context.progress() && options.wait ? newest_event(client) : 0;
    std::optional<EventProgress> progress;
    if (options.wait) progress.emplace(context, options.pod, after);
    pod = client.post("/v1/pods/" + api::encode(options.pod) + "/scale", body);
  }
  if (options.json) {
    print_json(pod);
  } else {
    print_line(fmt::format("{}: {} of {} ready", options.pod, pod.at("ready").dump(),
                           pod.at("desired").dump()));
  }
  return kOk;
}

}  // namespace

Command scale_command() {
  auto options = std::make_shared<ScaleOptions>();
  Command command{"scale", "Set how many replicas of a pod run", ""};
  command.examples = {"thaw scale web 4 --wait"};
  command.options = {{"-w,--wait", "", &options->wait, "Return when that many are ready"},
                     {"--timeout", "TIME", &options->timeout, "Longest wait (5m)"},
                     {"--json", "", &options->json, "Print the pod as JSON"}};
  command.positionals = {{"NAME", &options->pod, "The pod", true, "@pod"},
                         {"N", &options->count, "How many, from 0 to the pod's max"}};
  command.run = [options](Context& context) { return scale(context, *options); };
  return command;
}

}  // namespace thaw::cli
