#include "api/json.h"
#include "cli/command.h"

namespace thaw::cli {
namespace {

struct EventsOptions {
  bool follow = false, json = false;
  std::string pod, after;
};

void show(const nlohmann::json& event) {
  print_line(fmt::format("{}  {:<22}  {:<12}  {:<12}  {}", event.at("time").get<std::string>(),
                         event.at("type").get<std::string>(), text_of(event.at("pod")),
                         text_of(event.at("replica"), text_of(event.at("checkpoint")).c_str()),
                         text_of(event.at("message"), "")));
}

int show_events(Context& context, const EventsOptions& options) {
  auto client = context.client();
  std::int64_t after = options.after.empty() ? 0 : number(options.after, "--after", 0, INT64_MAX);
  if (options.follow) {
    client.events(api::with_query(
                      "/v1/events",
                      {{"follow", "true"}, {"pod", options.pod}, {"after", std::to_string(after)}}),
                  [&](const nlohmann::json& event) {
                    options.json ? print_line(api::dump(event)) : show(event);
                    return true;
                  });
    return kOk;
  }
  nlohmann::json all = nlohmann::json::array();
  for (;;) {
    auto page = client.get(api::with_query(
        "/v1/events",
        {{"pod", options.pod}, {"after", std::to_string(after)}, {"limit", "10000"}}));
    if (page.empty()) break;
    after = page.back().at("id");
    for (auto& event : page) options.json ? all.push_back(event) : show(event);
  }
  if (options.json) print_json(all);
  return kOk;
}

}  // namespace

Command events_command() {
  auto options = std::make_shared<EventsOptions>();
  Command command{"events", "Show what happened", ""};
  command.examples = {"thaw events -f --pod web", "thaw events --json --after 120"};
  command.options = {
      {"-f,--follow", "", &options->follow, "Go on with new events"},
      {"--pod", "NAME", &options->pod, "Only of this pod", "@pod"},
      {"--after", "ID", &options->after, "Only events after this one"},
      {"--json", "", &options->json, "Print a JSON array; with -f one object a line"}};
  command.run = [options](Context& context) { return show_events(context, *options); };
  return command;
}

}  // namespace thaw::cli
