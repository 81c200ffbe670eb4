// What the daemon counts, for Prometheus. Counters and histograms are made of the events, so what
// is counted is what is written down: nothing that happens is missed, and nothing else is counted.
#pragma once

#include <array>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "lifecycle/checkpoints.h"
#include "pods/controller.h"
#include "state/database.h"

namespace thaw::pods {

class Metrics {
 public:
  // Counts what happens from now on, on a thread of its own. `database` outlives it.
  explicit Metrics(state::Database& database);
  ~Metrics();
  // The thread ends soon: at the next event, at the database's closing, or within a second.
  void close();

  // Prometheus' text format, version 0.0.4: counters and histograms. Everything counted whose event
  // had happened when it was called.
  std::string text();

 private:
  static constexpr std::array<double, 15> kBounds = {
      0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 120};
  struct Histogram {
    std::array<std::int64_t, kBounds.size()> buckets{};  // not cumulative
    std::int64_t count = 0;
    double sum = 0;
    void add(double seconds);
  };

  void loop();
  void catch_up();
  void count(const state::EventRow& event);
  void count_phases(const state::ReplicaRow& replica, bool thawed);
  void count_checkpoint(const state::EventRow& event);

  state::Database& database_;
  std::mutex mutex_;
  std::int64_t seen_;
  std::map<std::string, std::int64_t> counters_;  // by name with labels
  std::map<std::string, Histogram> phases_, starts_, dumps_, proofs_, rests_;
  std::map<std::string, std::int64_t> proof_began_;  // by checkpoint, wall clock
  std::atomic<bool> closing_ = false;
  std::thread thread_;
};

// What is now, in the same format.
std::string gauges(const std::vector<PodView>& pods, const std::vector<state::ReplicaRow>& replicas,
                   const std::vector<state::CheckpointRow>& checkpoints,
                   const lifecycle::StoreSize& store);

}  // namespace thaw::pods
