// What the API serves. One real implementation (controller_backend.h); the tests have a small
// in-memory one. Thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "api/tokens.h"
#include "pods/controller.h"
#include "state/database.h"
#include "state/spec.h"

namespace thaw::api {

class Backend {
 public:
  virtual ~Backend() = default;

  virtual pods::DeployResult deploy(const state::PodSpec& spec) = 0;
  virtual std::vector<pods::PodView> pods() = 0;
  virtual pods::PodView pod(const std::string& name) = 0;
  virtual pods::PodView scale(const std::string& name, std::optional<int> replicas,
                              std::int64_t wait_us) = 0;
  virtual void stop(const std::string& name) = 0;
  virtual void remove(const std::string& name, bool force) = 0;

  virtual std::vector<state::ReplicaRow> replicas(const std::string& pod, bool all) = 0;
  virtual state::ReplicaRow replica(const std::string& id) = 0;
  virtual void stop_replica(const std::string& id) = 0;
  virtual std::string log_path(const std::string& replica) = 0;
  virtual pods::ExecStream exec(const std::string& replica, const std::vector<std::string>& argv,
                                bool terminal, int rows, int columns) = 0;

  virtual std::vector<state::CheckpointRow> checkpoints(const std::string& pod) = 0;
  virtual state::CheckpointRow checkpoint(const std::string& id) = 0;
  virtual nlohmann::json inspect_checkpoint(const std::string& id) = 0;
  virtual state::CheckpointRow create_checkpoint(const std::string& pod) = 0;
  virtual state::CheckpointRow verify_checkpoint(const std::string& id) = 0;
  virtual state::CheckpointRow compress_checkpoint(const std::string& id) = 0;
  virtual void remove_checkpoint(const std::string& id) = 0;
  virtual pods::PodView retry_checkpoint(const std::string& pod) = 0;

  virtual state::ImageRow import_image(const std::string& reference,
                                       const std::function<void(const std::string&)>& progress) = 0;
  virtual std::vector<state::ImageRow> images() = 0;
  virtual void remove_image(const std::string& id) = 0;

  virtual bool put_secret(const std::string& name, std::string_view value) = 0;
  virtual std::vector<pods::SecretRow> secrets() = 0;
  virtual void remove_secret(const std::string& name) = 0;

  virtual std::vector<pods::CheckResult> doctor() = 0;
  virtual std::string metrics() = 0;
  virtual Tokens& tokens() = 0;

  // As in state/database.h.
  virtual std::vector<state::EventRow> events(std::int64_t after, int limit,
                                              const std::string& pod) = 0;
  virtual std::int64_t last_event_id() = 0;
  virtual bool wait_events(std::int64_t after, std::int64_t timeout_us) = 0;
};

}  // namespace thaw::api
