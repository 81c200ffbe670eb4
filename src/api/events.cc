#include "api/handlers.h"
#include "api/json.h"
#include "util/clock.h"

namespace thaw::api {
namespace {

constexpr int kPage = 500;
// How long a follower that went away keeps its thread, and the longest silence on the stream
// (proxies cut silent ones).
constexpr std::int64_t kTurnUs = 1'000'000;
constexpr std::int64_t kHeartbeatUs = 15'000'000;

std::int64_t start_after(Exchange& exchange) {
  std::int64_t after = exchange.query_number("after", 0, 0, INT64_MAX);
  const std::string& last = exchange.request().last_event_id;
  if (last.empty()) return after;
  if (last.size() > 18 || last.find_first_not_of("0123456789") != std::string::npos) {
    throw Error(Code::kInvalid, "read the header Last-Event-ID", last, "it is no event's id",
                "send the id of the last event received, or leave it out");
  }
  return std::max<std::int64_t>(after, std::stoll(last));
}

void follow(Exchange& exchange, std::int64_t after, const std::string& pod) {
  exchange.begin(200, "text/event-stream");
  exchange.write(
      ": events\n\n");  // headers and a first byte at once: the client knows that it listens
  Deadline heartbeat = Deadline::after_us(kHeartbeatUs);
  while (exchange.wait(-1, 0)) {
    // With a filter the newest event may be of another pod: what was looked at counts as seen, or
    // waiting would spin.
    std::int64_t newest = exchange.backend().last_event_id();
    auto rows = exchange.backend().events(after, kPage, pod);
    std::string text;
    for (auto& row : rows) {
      text += "id: " + std::to_string(row.id) + "\ndata: " + dump(to_json(row)) + "\n\n";
    }
    if (heartbeat.passed() && text.empty()) text = ": still here\n\n";
    if (!text.empty()) {
      heartbeat = Deadline::after_us(kHeartbeatUs);
      if (!exchange.write(text)) return;
    }
    if (!rows.empty()) after = std::max(after, rows.back().id);
    if (rows.size() == kPage) continue;
    after = std::max(after, newest);
    exchange.backend().wait_events(after, kTurnUs);
  }
}

}  // namespace

void stream_events(Exchange& exchange) {
  std::int64_t after = start_after(exchange);
  std::string pod = exchange.query("pod");
  int limit = static_cast<int>(exchange.query_number("limit", 1000, 1, 10'000));
  if (exchange.query_flag("follow")) {
    follow(exchange, after, pod);
    return;
  }
  nlohmann::json array = nlohmann::json::array();
  for (auto& row : exchange.backend().events(after, limit, pod)) array.push_back(to_json(row));
  exchange.reply(200, array);
}

}  // namespace thaw::api
