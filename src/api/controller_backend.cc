#include "api/controller_backend.h"

namespace thaw::api {
namespace {

class ControllerBackend final : public Backend {
 public:
  explicit ControllerBackend(pods::Controller& controller)
      : controller_(controller), tokens_(controller.database()) {}

  pods::DeployResult deploy(const state::PodSpec& spec) override {
    return controller_.deploy(spec);
  }
  std::vector<pods::PodView> pods() override { return controller_.pods(); }
  pods::PodView pod(const std::string& name) override { return controller_.pod(name); }
  pods::PodView scale(const std::string& name, std::optional<int> replicas,
                      std::int64_t wait_us) override {
    return controller_.scale(name, replicas, wait_us);
  }
  void stop(const std::string& name) override { controller_.stop(name); }
  void remove(const std::string& name, bool force) override { controller_.remove(name, force); }

  std::vector<state::ReplicaRow> replicas(const std::string& pod, bool all) override {
    return controller_.replicas(pod, all);
  }
  state::ReplicaRow replica(const std::string& id) override { return controller_.replica(id); }
  void stop_replica(const std::string& id) override { controller_.stop_replica(id); }
  std::string log_path(const std::string& replica) override {
    return controller_.log_path(replica);
  }
  pods::ExecStream exec(const std::string& replica, const std::vector<std::string>& argv,
                        bool terminal, int rows, int columns) override {
    return controller_.exec(replica, argv, terminal, rows, columns);
  }

  std::vector<state::CheckpointRow> checkpoints(const std::string& pod) override {
    return controller_.checkpoints(pod);
  }
  state::CheckpointRow checkpoint(const std::string& id) override {
    return controller_.checkpoint(id);
  }
  nlohmann::json inspect_checkpoint(const std::string& id) override {
    return controller_.inspect_checkpoint(id);
  }
  state::CheckpointRow create_checkpoint(const std::string& pod) override {
    return controller_.create_checkpoint(pod);
  }
  state::CheckpointRow verify_checkpoint(const std::string& id) override {
    return controller_.verify_checkpoint(id);
  }
  state::CheckpointRow compress_checkpoint(const std::string& id) override {
    return controller_.compress_checkpoint(id);
  }
  void remove_checkpoint(const std::string& id) override { controller_.remove_checkpoint(id); }
  pods::PodView retry_checkpoint(const std::string& pod) override {
    return controller_.retry_checkpoint(pod);
  }

  state::ImageRow import_image(const std::string& reference,
                               const std::function<void(const std::string&)>& progress) override {
    return controller_.import_image(reference, progress);
  }
  std::vector<state::ImageRow> images() override { return controller_.images(); }
  void remove_image(const std::string& id) override { controller_.remove_image(id); }

  bool put_secret(const std::string& name, std::string_view value) override {
    return controller_.put_secret(name, value);
  }
  std::vector<pods::SecretRow> secrets() override { return controller_.secrets(); }
  void remove_secret(const std::string& name) override { controller_.remove_secret(name); }

  std::vector<pods::CheckResult> doctor() override { return controller_.doctor(); }
  std::string metrics() override { return controller_.metrics(); }
  Tokens& tokens() override { return tokens_; }

  std::vector<state::EventRow> events(std::int64_t after, int limit,
                                      const std::string& pod) override {
    return controller_.database().events(after, limit, pod);
  }
  std::int64_t last_event_id() override { return controller_.database().last_event_id(); }
  bool wait_events(std::int64_t after, std::int64_t timeout_us) override {
    return controller_.database().wait_events(after, timeout_us);
  }

 private:
  pods::Controller& controller_;
  Tokens tokens_;
};

}  // namespace

std::unique_ptr<Backend> make_controller_backend(pods::Controller& controller) {
  return std::make_unique<ControllerBackend>(controller);
}

}  // namespace thaw::api
