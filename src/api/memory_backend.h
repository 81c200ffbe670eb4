// For tests only. A test double of the backend: pods, replicas and events in memory, exec as plain
// child processes of the test. The real backend is tested with real containers elsewhere.
#pragma once

#include <condition_variable>
#include <filesystem>
#include <mutex>

#include "api/backend.h"
#include "api/client.h"
#include "api/server.h"
#include "util/error.h"
#include "util/file.h"
#include "util/process.h"

namespace thaw::api {

class MemoryBackend final : public Backend {
 public:
  explicit MemoryBackend(std::string directory)
      : directory_(std::move(directory)), database_(directory_ + "/tokens.db"), tokens_(database_) {
    state::PodSpec spec;
    spec.name = "web";
    spec.rootfs = "/srv/rootfs";
    spec.command = {"serve"};
    spec.ports = {{8000, 9000, "127.0.0.1"}};
    pods_.push_back(view(spec));
    state::ReplicaRow replica;
    replica.id = "0123456789ab";
    replica.pod = "web";
    replica.state = "ready";
    replica.started_from = "cold";
    replica.created_us = 1'700'000'000'000'000;
    replica.ready_us = replica.created_us + 1'500'000;
    replica.phases = {
        {"preparing", 0, 1000}, {"starting", 1000, 1'500'000}, {"ready", 1'500'000, 0}};
    replicas_.push_back(replica);
    checkpoint_.id = "ccccccccccc1";
    checkpoint_.pod = "web";
    checkpoint_.status = "available";
    checkpoint_.created_us = 1'700'000'000'000'000;
    image_.id = std::string(64, 'a');
    image_.reference = "oci:/srv/images/python:3.12";
    image_.created_us = 1'700'000'000'000'000;
    add_event("pod.deployed", "web");
    add_event("pod.deployed", "other");
  }

  static pods::PodView view(const state::PodSpec& spec) {
    pods::PodView pod;
    pod.row.name = spec.name;
    pod.row.desired = pod.desired = 1;
    pod.row.created_us = pod.row.updated_us = 1'700'000'000'000'000;
    pod.spec = spec;
    return pod;
  }
  void add_event(const std::string& type, const std::string& pod) {
    std::lock_guard lock(mutex_);
    state::EventRow row;
    row.id = static_cast<std::int64_t>(events_.size()) + 1;
    row.time_us = 1'700'000'000'000'000;
    row.type = type;
    row.pod = pod;
    row.message = "it happened";
    events_.push_back(row);
    changed_.notify_all();
  }
  void end_replica() {
    std::lock_guard lock(mutex_);
    replicas_[0].ended_us = 1'700'000'009'000'000;
  }
  std::string log_file() const { return directory_ + "/log"; }

  pods::DeployResult deploy(const state::PodSpec& spec) override {
    std::lock_guard lock(mutex_);
    deployed.push_back(spec);
    return {view(spec), true, true, {"a warning"}};
  }
  std::vector<pods::PodView> pods() override { return pods_; }
  pods::PodView pod(const std::string& name) override {
    if (name == "web") return pods_[0];
    throw Error(Code::kNotFound, "find pod", name, "there is none of this name", "existing: web");
  }
  pods::PodView scale(const std::string& name, std::optional<int> replicas,
                      std::int64_t wait_us) override {
    auto found = pod(name);
    if (replicas) scaled_to = *replicas;
    waited_us = wait_us;
    return found;
  }
  void stop(const std::string& name) override { pod(name); }
  void remove(const std::string& name, bool force) override {
    pod(name);
    if (force) return;
    throw Error(Code::kConflict, "remove pod", name, "1 replica runs", "stop it or use force");
  }
  std::vector<state::ReplicaRow> replicas(const std::string& pod, bool) override {
    return pod.empty() || pod == "web" ? replicas_ : std::vector<state::ReplicaRow>{};
  }
  state::ReplicaRow replica(const std::string& id) override {
    std::lock_guard lock(mutex_);
    if (replicas_[0].id.starts_with(id) || id == "web") return replicas_[0];
    throw Error(Code::kNotFound, "find replica", id, "there is none of this id", "see thaw ps -a");
  }
  void stop_replica(const std::string& id) override { replica(id); }
  std::string log_path(const std::string&) override { return log_file(); }
  pods::ExecStream exec(const std::string&, const std::vector<std::string>& argv, bool, int,
                        int) override {
    auto in = Fd::pipe(), out = Fd::pipe(), err = Fd::pipe();
    ProcessOptions options;
    options.descriptors = {{in.first.get(), 0}, {out.second.get(), 1}, {err.second.get(), 2}};
    auto process = std::make_shared<Process>(Process::spawn(argv, options));
    exec_pid = process->pid();
    pods::ExecStream stream;
    stream.input = std::move(in.second);
    stream.output = std::move(out.first);
    stream.error = std::move(err.first);
    stream.resize = [](int, int) {};
    stream.signal = [process](int signal) { process->kill(signal); };
    stream.wait = [process] { return *process->wait(Deadline::never()); };
    return stream;
  }
  std::vector<state::CheckpointRow> checkpoints(const std::string& pod) override {
    if (pod.empty() || pod == "web") return {checkpoint_};
    return {};
  }
  state::CheckpointRow checkpoint(const std::string& id) override {
    if (checkpoint_.id.starts_with(id)) return checkpoint_;
    throw Error(Code::kNotFound, "find checkpoint", id, "there is none of this id", "");
  }
  nlohmann::json inspect_checkpoint(const std::string& id) override {
    checkpoint(id);
    return {{"manifest", {{"tree", 1}}}};
  }
  state::CheckpointRow create_checkpoint(const std::string& name) override {
    pod(name);
    return checkpoint_;
  }
  state::CheckpointRow verify_checkpoint(const std::string& id) override { return checkpoint(id); }
  state::CheckpointRow compress_checkpoint(const std::string& id) override {
    return checkpoint(id);
  }
  void remove_checkpoint(const std::string& id) override { checkpoint(id); }
  pods::PodView retry_checkpoint(const std::string& name) override { return pod(name); }
  state::ImageRow import_image(const std::string& reference,
                               const std::function<void(const std::string&)>& progress) override {
    if (reference == "bad") throw Error(Code::kInvalid, "import", reference, "no transport", "");
    progress("one");
    if (reference == "oci:/breaks") throw Error(Code::kCorrupt, "import", reference, "torn", "");
    progress("two");
    return image_;
  }
  std::vector<state::ImageRow> images() override { return {image_}; }
  void remove_image(const std::string& id) override { removed_image = id; }
  std::vector<pods::CheckResult> doctor() override {
    return {{"kernel", pods::CheckResult::Status::kPass, "6.1", ""}};
  }
  bool put_secret(const std::string& name, std::string_view value) override {
    return secrets_.put(name, value);
  }
  std::vector<pods::SecretRow> secrets() override { return secrets_.list(); }
  void remove_secret(const std::string& name) override { secrets_.remove(name); }
  Tokens& tokens() override { return tokens_; }
  std::string metrics() override { return "thaw_store_bytes 0\n"; }
  std::vector<state::EventRow> events(std::int64_t after, int limit,
                                      const std::string& pod) override {
    std::lock_guard lock(mutex_);
    std::vector<state::EventRow> rows;
    for (auto& row : events_) {
      if (row.id <= after || (!pod.empty() && row.pod != pod)) continue;
      if (static_cast<int>(rows.size()) < limit) rows.push_back(row);
    }
    return rows;
  }
  std::int64_t last_event_id() override {
    std::lock_guard lock(mutex_);
    return static_cast<std::int64_t>(events_.size());
  }
  bool wait_events(std::int64_t after, std::int64_t timeout_us) override {
    std::unique_lock lock(mutex_);
    waits++;
    return changed_.wait_for(lock, std::chrono::microseconds(timeout_us),
                             [&] { return static_cast<std::int64_t>(events_.size()) > after; });
  }

  std::vector<state::PodSpec> deployed;
  int scaled_to = -1, exec_pid = 0, waits = 0;
  std::int64_t waited_us = -1;
  std::string removed_image;

 private:
  std::string directory_;
  state::Database database_;
  Tokens tokens_;
  pods::SecretStore secrets_{directory_ + "/sealed", directory_ + "/secrets",
                             directory_ + "/secrets.key"};
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<pods::PodView> pods_;
  std::vector<state::ReplicaRow> replicas_;
  std::vector<state::EventRow> events_;
  state::CheckpointRow checkpoint_;
  state::ImageRow image_;
};

// A backend, a server on a unix socket and on a loopback port, and a client of it.
struct TestServer {
  std::string directory = make_directory();
  MemoryBackend backend{directory};
  std::unique_ptr<Server> server;
  std::unique_ptr<Client> client;

  explicit TestServer(int max_connections = 256) {
    ServerOptions options;
    options.listen = {parse_address("unix:" + directory + "/thaw.sock", "test"),
                      parse_address("tcp:127.0.0.1:0", "test")};
    options.max_connections = max_connections;
    server = std::make_unique<Server>(backend, options);
    server->start();
    client = std::make_unique<Client>(server->addresses()[0]);
  }
  ~TestServer() {
    server.reset();
    std::filesystem::remove_all(directory);
  }
  static std::string make_directory() {
    std::string path = "/tmp/thaw-api-test-" + random_hex();
    make_directories(path, 0700);
    return path;
  }

  Fd connect(int listener = 0) {
    return connect_to(server->addresses()[listener], Deadline::after_ms(5000));
  }
  // The whole answer to a request as it stands.
  std::string raw(const std::string& request, int listener = 0) {
    Fd fd = connect(listener);
    write_all(fd, request);
    return read_all(fd);
  }
  std::string ask(const std::string& method, const std::string& target,
                  const std::string& body = {}, const std::string& headers = {}) {
    std::string length = body.empty() ? "" : fmt::format("Content-Length: {}\r\n", body.size());
    return raw(fmt::format("{} {} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{}{}\r\n{}",
                           method, target, length, headers, body));
  }
};

inline int status_of(const std::string& answer) {
  return answer.size() > 12 ? std::stoi(answer.substr(9, 3)) : 0;
}
inline nlohmann::json body_of(const std::string& answer) {
  return nlohmann::json::parse(answer.substr(answer.find("\r\n\r\n") + 4));
}

}  // namespace thaw::api
