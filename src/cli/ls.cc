#include "cli/command.h"
#include "cli/listing.h"
#include "util/clock.h"

namespace thaw::cli {
namespace {

std::string checkpoint_text(const nlohmann::json& checkpoint) {
  if (!checkpoint.at("enabled")) return "off";
  if (!checkpoint.at("effective")) return "impossible";
  return text_of(checkpoint.at("id"), "none yet");
}

int list_pods(Context& context, const Listing& listing) {
  auto pods = context.client().get("/v1/pods");
  return show_listing(context, listing, pods, "name", [&] {
    bool problems =
        std::ranges::any_of(pods, [](auto& pod) { return !pod.at("problem").is_null(); });
    std::vector<std::string> header{"NAME",       "VERSION", "READY",  "STANDBY", "PAUSED",
                                    "CHECKPOINT", "HELD",    "ACTIVE", "AGE",     "PORTS"};
    if (problems) header.push_back("PROBLEM");
    Table table(header);
    std::int64_t now = wall_us();
    for (auto& pod : pods) {
      std::string ready = fmt::format("{}/{}", pod.at("ready").dump(), pod.at("desired").dump());
      if (pod.at("stopped")) ready += " stopped";
      std::vector<std::string> row{pod.at("name"),
                                   pod.at("version").dump(),
                                   ready,
                                   pod.at("standby").dump(),
                                   pod.at("paused").dump(),
                                   checkpoint_text(pod.at("checkpoint")),
                                   pod.at("connections").at("held").dump(),
                                   pod.at("connections").at("active").dump(),
                                   age(pod.at("created_us"), now),
                                   ports_text(pod.at("ports"))};
      if (problems) row.push_back(text_of(pod.at("problem"), "-"));
      table.add(std::move(row));
    }
    return table;
  });
}

}  // namespace

std::string ports_text(const nlohmann::json& ports) {
  std::string text;
  for (auto& port : ports) {
    text +=
        fmt::format("{}{}:{}->{}", text.empty() ? "" : ", ", port.at("address").get<std::string>(),
                    port.at("host").dump(), port.at("container").dump());
  }
  return text.empty() ? "-" : text;
}

std::vector<Option> listing_options(Listing& listing, const std::string& key) {
  return {{"--json", "", &listing.json, "Print the API's JSON array"},
          {"-q,--quiet", "", &listing.quiet, "Print " + key + " only"}};
}

int show_listing(const Context& context, const Listing& listing, const nlohmann::json& rows,
                 const char* key, const std::function<Table()>& table) {
  if (listing.json) {
    print_json(rows);
  } else if (listing.quiet) {
    for (auto& row : rows) print_line(row.at(key).get<std::string>());
  } else {
    table().print(context);
  }
  return kOk;
}

Command ls_command() {
  auto options = std::make_shared<Listing>();
  Command command{"ls", "List pods", ""};
  command.options = listing_options(*options, "names");
  command.run = [options](Context& context) { return list_pods(context, *options); };
  return command;
}

}  // namespace thaw::cli
