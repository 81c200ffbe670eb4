#include "cli/command.h"
#include "cli/listing.h"
#include "util/clock.h"

namespace thaw::cli {
namespace {

struct PsOptions {
  Listing listing;
  bool all = false;
  std::string pod;
};

int list_replicas(Context& context, const PsOptions& options) {
  auto client = context.client();
  auto replicas = client.get(
      api::with_query("/v1/replicas", {{"pod", options.pod}, {"all", options.all ? "true" : ""}}));
  return show_listing(context, options.listing, replicas, "id", [&] {
    std::map<std::string, std::string> ports;
    nlohmann::json pods = client.get("/v1/pods");
    for (auto& pod : pods) ports[pod.at("name")] = ports_text(pod.at("ports"));
    Table table({"REPLICA", "POD", "STATE", "STARTED-FROM", "AGE", "READY-IN", "ADDRESS", "PORTS",
                 "REASON"});
    std::int64_t now = wall_us();
    for (auto& replica : replicas) {
      std::string state = replica.at("state");
      if (!replica.at("exit_code").is_null()) state += " (" + replica.at("exit_code").dump() + ")";
      bool open = replica.at("gate_open");
      table.add({replica.at("id"), replica.at("pod"), state, replica.at("started_from"),
                 age(replica.at("created_us"), now),
                 replica.at("ready_in_us").is_null() ? "-" : span(replica.at("ready_in_us")),
                 text_of(replica.at("address")), open ? ports[replica.at("pod")] : "-",
                 text_of(replica.at("reason"), "")});
    }
    for (auto& pod : pods) {
      const nlohmann::json& loop = pod.at("crash_loop");
      if (loop.is_null() || (!options.pod.empty() && options.pod != pod.at("name"))) continue;
      std::int64_t left = std::max<std::int64_t>(0, loop.at("until_us").get<std::int64_t>() - now);
      table.add({"-", pod.at("name"), "crash loop", "-", "-", "-", "-", "-",
                 fmt::format("{} replicas failed in a row, the next starts in {}: {}",
                             loop.at("failures").dump(), span(left), text_of(loop.at("reason")))});
    }
    return table;
  });
}

}  // namespace

Command ps_command() {
  auto options = std::make_shared<PsOptions>();
  Command command{
      "ps", "List replicas",
      "Replicas that run, oldest first; with -a also those that have ended. A pod whose "
      "replicas fail one after another has a line of its own, with the time of the "
      "next start."};
  command.options = {{"-a,--all", "", &options->all, "Also replicas that have ended"}};
  for (auto& option : listing_options(options->listing, "ids")) command.options.push_back(option);
  command.positionals = {{"POD", &options->pod, "Only of this pod", false, "@pod"}};
  command.run = [options](Context& context) { return list_replicas(context, *options); };
  return command;
}

}  // namespace thaw::cli
