// The timeline of one start.
#include "cli/command.h"
#include "util/clock.h"

namespace thaw::cli {
namespace {

constexpr int kBar = 40;

struct TraceOptions {
  bool chrome = false;
  std::string replica;
};

// The trace event format of Chrome's about:tracing and Perfetto: complete events, microseconds.
// Phases on one line, their parts on another, since parts of shim and CRIU may overlap.
nlohmann::json chrome_trace(const nlohmann::json& replica) {
  auto events = nlohmann::json::array();
  auto name = [&](const char* what, int thread, const std::string& text) {
    events.push_back(
        {{"name", what}, {"ph", "M"}, {"pid", 1}, {"tid", thread}, {"args", {{"name", text}}}});
  };
  name("process_name", 0,
       replica.at("pod").get<std::string>() + " " + replica.at("id").get<std::string>());
  name("thread_name", 1, "phases");
  name("thread_name", 2, "parts");
  for (const auto& phase : replica.at("phases")) {
    std::string text = phase.at("name");
    std::int64_t start = phase.at("start_us"), end = phase.at("end_us");
    if (end == 0 && text != "ready") continue;  // not over
    bool part = text.find('/') != std::string::npos;
    nlohmann::json event{{"name", text},
                         {"cat", part ? "part" : "phase"},
                         {"ph", end ? "X" : "i"},
                         {"ts", start},
                         {"pid", 1},
                         {"tid", part ? 2 : 1}};
    end ? event["dur"] = end - start : event["s"] = "p";
    events.push_back(event);
  }
  return {{"traceEvents", events},
          {"displayTimeUnit", "ms"},
          {"otherData",
           {{"pod", replica.at("pod")},
            {"replica", replica.at("id")},
            {"started_from", replica.at("started_from")},
            {"outcome", replica.at("outcome")}}}};
}

int trace(Context& context, const TraceOptions& options) {
  auto replica = context.client().get("/v1/replicas/" + api::encode(options.replica));
  if (options.chrome) {
    print_json(chrome_trace(replica));
    return kOk;
  }
  std::string outcome = text_of(replica.at("outcome"), "");
  print_line(fmt::format(
      "replica {} of {}, started from {}{}, {}", replica.at("id").get<std::string>(),
      replica.at("pod").get<std::string>(), replica.at("started_from").get<std::string>(),
      outcome.empty() ? "" : " (" + outcome + ")", replica.at("state").get<std::string>()));
  if (auto reason = text_of(replica.at("reason"), ""); !reason.empty()) print_line(reason);
  // Until it was ready; what came after is no part of the start.
  std::int64_t whole = 1;
  bool ready = false;
  for (const auto& phase : replica.at("phases")) {
    if (ready) break;
    ready = phase.at("name") == "ready";
    std::int64_t start = phase.at("start_us"), end = phase.at("end_us");
    whole = std::max({whole, start, ready ? start : end});
  }
  std::vector<nlohmann::json> phases(replica.at("phases").begin(), replica.at("phases").end());
  // Parts are written down when their phase is over; here they stand below it.
  std::stable_sort(phases.begin(), phases.end(), [](const auto& a, const auto& b) {
    auto start = [](const auto& phase) {
      return phase.at("start_us").template get<std::int64_t>();
    };
    return start(a) < start(b);
  });
  Table table({"START", "TOOK", "PHASE", ""});
  for (const auto& phase : phases) {
    std::string text = phase.at("name");
    std::int64_t start = phase.at("start_us"), end = phase.at("end_us");
    if (auto slash = text.find('/'); slash != std::string::npos)
      text = "  " + text.substr(slash + 1);
    std::string bar;
    if (start <= whole) {
      auto column = [&](std::int64_t us) {
        return static_cast<std::size_t>(std::clamp<std::int64_t>(us * kBar / whole, 0, kBar));
      };
      std::size_t from = column(start), to = column(end ? end : start);
      bar = std::string(from, ' ') + std::string(std::max<std::size_t>(1, to - from), '#');
    }
    table.add({span(start), end ? span(end - start) : "-", text, bar});
  }
  table.print(context);
  return kOk;
}

}  // namespace

Command trace_command() {
  auto options = std::make_shared<TraceOptions>();
  Command command{"trace", "Show where the time of a replica's start went",
                  "Times count from the moment the replica was asked for."};
  command.examples = {"thaw trace web", "thaw trace --chrome 3f21 >trace.json"};
  command.options = {{"--chrome", "", &options->chrome,
                      "Print Chrome's trace format, for about:tracing or ui.perfetto.dev"}};
  command.positionals = {
      {"REPLICA", &options->replica, "An id, its beginning, or a pod", true, "@replica"}};
  command.run = [options](Context& context) { return trace(context, *options); };
  return command;
}

}  // namespace thaw::cli
