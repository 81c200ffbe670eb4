#include "pods/metrics.h"

#include "util/log.h"

namespace thaw::pods {
namespace {

constexpr int kPage = 500;
constexpr std::int64_t kTurnUs = 1'000'000;

// How a restore under way ended when no event of it says so: by what came next.
bool restoring(const std::string& state) { return state == "restoring" || state == "validating"; }

std::string escaped(const std::string& text) {
  std::string result;
  for (char c : text) {
    if (c == '\\' || c == '"') result += '\\';
    result += c == '\n' ? ' ' : c;
  }
  return result;
}

std::string labelled(std::string_view name,
                     std::initializer_list<std::pair<std::string_view, std::string>> labels) {
  std::string text(name);
  if (labels.size() == 0) return text;
  char separator = '{';
  for (auto& [key, value] : labels) {
    text += fmt::format("{}{}=\"{}\"", separator, key, escaped(value));
    separator = ',';
  }
  return text + "}";
}

// A sample line: `name{key="value",…} number`.
std::string metric(std::string_view name,
                   std::initializer_list<std::pair<std::string_view, std::string>> labels,
                   std::int64_t value) {
  return fmt::format("{} {}\n", labelled(name, labels), value);
}

}  // namespace

void Metrics::Histogram::add(double seconds) {
  for (std::size_t i = 0; i < kBounds.size(); ++i)
    if (seconds <= kBounds[i]) {
      ++buckets[i];
      break;
    }
  ++count;
  sum += seconds;
}

Metrics::Metrics(state::Database& database)
    : database_(database), seen_(database.last_event_id()), thread_([this] { loop(); }) {}

Metrics::~Metrics() {
  close();
  thread_.join();
}

void Metrics::close() { closing_ = true; }

void Metrics::loop() {
  while (!closing_) {
    std::int64_t seen = INT64_MAX;
    try {
      std::scoped_lock lock(mutex_);
      catch_up();
      seen = seen_;
    } catch (const std::exception& error) {
      // Tried again in a turn.
      log::warn("events could not be counted", {{"error", error.what()}});
    }
    // Rows of ended replicas are kept for a while only, so they are read as soon as they end.
    database_.wait_events(seen, kTurnUs);
  }
}

void Metrics::catch_up() {
  for (;;) {
    auto events = database_.events(seen_, kPage);
    for (const auto& event : events) {
      count(event);
      seen_ = event.id;
    }
    if (events.size() < static_cast<std::size_t>(kPage)) return;
  }
}

void Metrics::count(const state::EventRow& event) {
  ++counters_[labelled("thaw_events_total", {{"type", event.type}})];
  count_checkpoint(event);
  if (event.type == "memory.compressed" || event.type == "memory.inflated")
    rests_[event.type == "memory.inflated" ? "way=\"inflate\"" : "way=\"compress\""].add(
        static_cast<double>(event.data.value("took_us", std::int64_t{0})) / 1e6);
  if (event.type == "replica.fallback" || event.type == "replica.preparing")
    if (std::string outcome = event.data.value("outcome", ""); !outcome.empty())
      ++counters_[labelled("thaw_restores_total", {{"outcome", outcome}})];
  std::string from = event.data.value("from", ""), to = event.data.value("to", "");
  if (to.empty() || to == "preparing") return;
  bool over = to == "stopped" || to == "failed";
  if (!over && to != "ready" && !restoring(from)) return;
  auto row = database_.replica(event.replica);
  if (!row) return;
  if (restoring(from) && to != "validating") {
    std::string outcome = to == "ready"           ? "Restored"
                          : !row->outcome.empty() ? row->outcome
                          : row->intent == "stop" ? "StoppedByUser"
                                                  : "AppFailed";
    ++counters_[labelled("thaw_restores_total", {{"outcome", outcome}})];
  }
  if (over) ++counters_[labelled("thaw_replica_ends_total", {{"state", to}})];
  if (to == "ready" && from != "checkpointing" && from != "pausing")
    count_phases(*row, from == "paused");
  // A cold start with a dump is ready when that is over.
  if (to == "ready" && from == "checkpointing" && row->phases.size() > 1) {
    int ready = 0;
    for (const auto& phase : row->phases) ready += phase.name == "ready";
    if (ready == 1) count_phases(*row, false);
  }
}

void Metrics::count_checkpoint(const state::EventRow& event) {
  if (event.type.rfind("checkpoint.", 0) != 0) return;
  std::string status = event.type.substr(11);
  if (status == "retry") return;  // somebody's word, no status
  ++counters_[labelled("thaw_checkpoint_changes_total", {{"status", status}})];
  if (event.data.value("evicted", false))
    ++counters_[std::string("thaw_checkpoint_evictions_total")];
  if (status == "sealed")
    if (auto row = database_.checkpoint(event.checkpoint)) {
      dumps_["part=\"whole\""].add(static_cast<double>(row->dump_us) / 1e6);
      dumps_["part=\"frozen\""].add(static_cast<double>(row->freeze_us) / 1e6);
    }
  if (status == "verifying") proof_began_[event.checkpoint] = event.time_us;
  auto began = proof_began_.find(event.checkpoint);
  if (status == "verifying" || began == proof_began_.end()) return;
  std::string result = status == "available" ? "passed"
                       : status == "failed"  ? "failed"
                                             : "given up";
  proofs_[fmt::format("result=\"{}\"", result)].add(
      static_cast<double>(event.time_us - began->second) / 1e6);
  proof_began_.erase(began);
}

// `thawed`: it was frozen.
void Metrics::count_phases(const state::ReplicaRow& replica, bool thawed) {
  std::string from = thawed ? "frozen" : replica.started_from == "cold" ? "cold" : "checkpoint";
  for (const auto& phase : replica.phases) {
    if (phase.name == "ready")
      starts_[fmt::format("started_from=\"{}\"", from)].add(static_cast<double>(phase.start_us) /
                                                            1e6);
    else if (phase.end_us)
      phases_[fmt::format("phase=\"{}\",started_from=\"{}\"", escaped(phase.name), from)].add(
          static_cast<double>(phase.end_us - phase.start_us) / 1e6);
  }
}

std::string Metrics::text() {
  std::scoped_lock lock(mutex_);
  catch_up();
  std::string text, last;
  for (auto& [name, value] : counters_) {
    std::string family = name.substr(0, name.find('{'));
    if (family != last) text += fmt::format("# TYPE {} counter\n", family);
    last = family;
    text += fmt::format("{} {}\n", name, value);
  }
  auto histograms = [&](const char* name, const char* help,
                        const std::map<std::string, Histogram>& all) {
    text += fmt::format("# HELP {} {}\n# TYPE {} histogram\n", name, help, name);
    for (auto& [labels, histogram] : all) {
      std::int64_t sum = 0;
      for (std::size_t i = 0; i < kBounds.size(); ++i) {
        sum += histogram.buckets[i];
        text += fmt::format("{}_bucket{{{},le=\"{}\"}} {}\n", name, labels, kBounds[i], sum);
      }
      text += fmt::format("{}_bucket{{{},le=\"+Inf\"}} {}\n", name, labels, histogram.count);
      text += fmt::format("{}_sum{{{}}} {}\n", name, labels, histogram.sum);
      text += fmt::format("{}_count{{{}}} {}\n", name, labels, histogram.count);
    }
  };
  histograms("thaw_phase_seconds", "Phases of a start, and their parts", phases_);
  histograms("thaw_start_seconds", "From the request to the open gate", starts_);
  histograms("thaw_dump_seconds", "Dumps, and how long the replica was frozen for them", dumps_);
  histograms("thaw_proof_seconds", "Proofs of new checkpoints", proofs_);
  histograms("thaw_rest_seconds", "Memory of checkpoints that was compressed, or inflated again",
             rests_);
  return text;
}

std::string gauges(const std::vector<PodView>& pods, const std::vector<state::ReplicaRow>& replicas,
                   const std::vector<state::CheckpointRow>& checkpoints,
                   const lifecycle::StoreSize& store) {
  std::string text;
  auto family = [&](const char* name, const char* help) {
    text += fmt::format("# HELP {} {}\n# TYPE {} gauge\n", name, help, name);
  };
  auto of_pods = [&](const char* name, const char* help, auto value) {
    family(name, help);
    for (const PodView& pod : pods) text += metric(name, {{"pod", pod.row.name}}, value(pod));
  };
  of_pods("thaw_connections_held", "Clients that wait for a replica",
          [](const PodView& pod) { return pod.held; });
  of_pods("thaw_connections_active", "Clients that are connected to a replica",
          [](const PodView& pod) { return pod.active; });
  of_pods("thaw_pod_desired", "Replicas that are wanted",
          [](const PodView& pod) { return pod.desired; });
  of_pods("thaw_dump_failures", "Dumps of the present version that failed in a row",
          [](const PodView& pod) { return pod.dump_failures; });
  std::map<std::pair<std::string, std::string>, std::int64_t> states, statuses;
  for (const auto& row : replicas)
    if (row.ended_us == 0) ++states[{row.pod, row.state}];
  family("thaw_replicas", "Replicas by their state");
  for (auto& [key, count] : states)
    text += metric("thaw_replicas", {{"pod", key.first}, {"state", key.second}}, count);
  std::int64_t compressed = 0;
  for (const auto& row : checkpoints) compressed += row.compressed;
  for (const auto& row : checkpoints) ++statuses[{row.pod, row.status}];
  family("thaw_checkpoints", "Checkpoints by their status");
  for (auto& [key, count] : statuses)
    text += metric("thaw_checkpoints", {{"pod", key.first}, {"status", key.second}}, count);
  family("thaw_checkpoints_compressed", "Checkpoints whose memory is compressed");
  text += metric("thaw_checkpoints_compressed", {}, compressed);
  auto of_store = [&](const char* name, const char* help, std::uint64_t bytes) {
    family(name, help);
    text += metric(name, {}, static_cast<std::int64_t>(bytes));
  };
  of_store("thaw_store_bytes", "Bytes of the checkpoints on disk", store.used);
  of_store("thaw_store_quota_bytes", "Bytes that checkpoints may take; 0 is no limit", store.quota);
  of_store("thaw_store_free_bytes", "Bytes free on their file system", store.free);
  return text;
}

}  // namespace thaw::pods
