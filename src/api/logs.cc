#include <deque>

#include "api/handlers.h"
#include "api/json.h"
#include "api/log_reader.h"
#include "util/clock.h"
#include "util/units.h"

namespace thaw::api {
namespace {

// inotify tells of new lines; that the replica ended is asked for this often, and whenever a writer
// closed the file.
constexpr int kTurnMs = 1000;
constexpr std::int64_t kHeartbeatUs = 15'000'000;

std::int64_t since_us(Exchange& exchange) {
  std::string text = exchange.query("since");
  if (text.empty()) return 0;
  if (auto time = parse_rfc3339_us(text)) return *time;
  if (auto age = parse_duration_us(text)) return wall_us() - *age;
  throw Error(Code::kInvalid, "read the query's", "since",
              "'" + text + "' is neither a time nor a duration",
              "give one such as 10m or 2026-11-23T17:34:46Z");
}

// The last `tail` whole lines (all when negative), with the pieces that belong to them.
class Tail {
 public:
  Tail(std::int64_t tail, std::int64_t since) : tail_(tail), since_(since) {}
  bool wanted(const LogEntry& entry) const {
    return since_ == 0 || parse_rfc3339_us(entry.time).value_or(INT64_MAX) >= since_;
  }
  void add(const LogEntry& entry) {
    if (!wanted(entry)) return;
    entries_.push_back(entry);
    whole_ += entry.partial ? 0 : 1;
    while (tail_ >= 0 && whole_ > tail_) {
      whole_ -= entries_.front().partial ? 0 : 1;
      entries_.pop_front();
    }
  }
  std::deque<LogEntry> take() { return std::move(entries_); }

 private:
  std::int64_t tail_, since_;
  std::int64_t whole_ = 0;
  std::deque<LogEntry> entries_;
};

void follow(Exchange& exchange, LogReader& reader, const std::string& id, const Tail& filter) {
  Deadline heartbeat = Deadline::after_us(kHeartbeatUs);
  bool alive = true;
  while (alive) {
    // The order matters: whoever has ended by now has written all that the read below will find.
    bool ended = exchange.backend().replica(id).ended_us != 0;
    reader.drain_watch();
    reader.read([&](const LogEntry& entry) {
      if (!filter.wanted(entry)) return true;
      heartbeat = Deadline::after_us(kHeartbeatUs);
      alive = exchange.write("data: " + dump(to_json(entry)) + "\n\n");
      return alive;
    });
    if (ended) {
      if (alive) exchange.write("event: end\ndata: {}\n\n");
      return;
    }
    if (heartbeat.passed()) {
      heartbeat = Deadline::after_us(kHeartbeatUs);
      alive = alive && exchange.write(": still here\n\n");
    }
    alive = alive && exchange.wait(reader.watch_fd(), kTurnMs);
  }
}

}  // namespace

void stream_logs(Exchange& exchange) {
  std::int64_t tail = exchange.query_number("tail", -1, 0, 1'000'000);
  std::int64_t since = since_us(exchange);
  bool following = exchange.query_flag("follow");
  state::ReplicaRow replica = exchange.backend().replica(exchange.path("id"));

  LogReader reader(exchange.backend().log_path(replica.id));
  if (following) reader.watch_fd();  // before the first read, so that nothing falls between
  Tail filter(tail, since);
  reader.read([&](const LogEntry& entry) {
    filter.add(entry);
    return true;
  });
  exchange.begin(200, following ? "text/event-stream" : "application/x-ndjson");
  std::string text;
  auto flush = [&] {
    bool alive = text.empty() || exchange.write(text);
    text.clear();
    return alive;
  };
  for (auto& entry : filter.take()) {
    std::string line = dump(to_json(entry));
    text += following ? "data: " + line + "\n\n" : line + "\n";
    if (text.size() > 64 * 1024 && !flush()) return;
  }
  if (!flush()) return;
  if (following) follow(exchange, reader, replica.id, filter);
}

}  // namespace thaw::api
