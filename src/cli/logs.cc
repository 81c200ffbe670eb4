#include <cstdio>

#include "api/json.h"
#include "cli/command.h"

namespace thaw::cli {
namespace {

struct LogsOptions {
  bool follow = false, times = false;
  std::string replica, tail, since;
};

// A pod's name means its newest running replica; when none runs, the one that ended last is what is
// wanted.
std::string replica_id(api::Client& client, const std::string& name) {
  try {
    return client.get("/v1/replicas/" + api::encode(name)).at("id");
  } catch (const Error& error) {
    if (error.code() != Code::kNotFound) throw;
    nlohmann::json ended = nlohmann::json::array();
    try {
      ended = client.get(api::with_query("/v1/replicas", {{"pod", name}, {"all", "true"}}));
    } catch (const Error&) {  // no such pod either: the first answer says it
    }
    if (ended.empty()) throw;
    return ended.back().at("id");
  }
}

void show(const nlohmann::json& entry, bool times) {
  std::FILE* out = entry.at("stream") == "stderr" ? stderr : stdout;
  std::string text = times ? entry.at("time").get<std::string>() + " " : "";
  text += entry.at("text").get<std::string>();
  if (!entry.value("partial", false)) text += "\n";
  if (std::fwrite(text.data(), 1, text.size(), out) != text.size() || std::fflush(out) != 0) {
    throw_errno("write", "log line");
  }
}

int show_logs(Context& context, const LogsOptions& options) {
  auto client = context.client();
  if (!options.tail.empty()) number(options.tail, "--tail", 0, 1'000'000);
  std::string path = api::with_query(
      "/v1/replicas/" + api::encode(replica_id(client, options.replica)) + "/logs",
      {{"follow", options.follow ? "true" : ""}, {"tail", options.tail}, {"since", options.since}});
  if (options.follow) {
    client.events(path, [&](const nlohmann::json& entry) {
      show(entry, options.times);
      return true;
    });
    return kOk;
  }
  client.stream("GET", path, nullptr, [&](std::string_view line) {
    auto entry = nlohmann::json::parse(line);
    if (entry.contains("error")) throw api::from_error_json(entry);
    show(entry, options.times);
    return true;
  });
  return kOk;
}

}  // namespace

Command logs_command() {
  auto options = std::make_shared<LogsOptions>();
  Command command{"logs", "Show what a replica wrote",
                  "What the replica wrote to stdout goes to stdout, to stderr to stderr. A pod's "
                  "name means its newest "
                  "replica. With -f the command ends when the replica does."};
  command.examples = {"thaw logs -f web", "thaw logs --tail 20 --since 10m web"};
  command.options = {
      {"-f,--follow", "", &options->follow, "Go on as it writes"},
      {"-n,--tail", "N", &options->tail, "Only the last N lines"},
      {"--since", "TIME", &options->since, "Only from then on: 10m, or 2026-11-23T17:34:46Z"},
      {"-t,--timestamps", "", &options->times, "Put the time before each line"}};
  command.positionals = {
      {"REPLICA", &options->replica, "A replica's id or a pod's name", true, "@replica"}};
  command.run = [options](Context& context) { return show_logs(context, *options); };
  return command;
}

}  // namespace thaw::cli
