// The main path through the controller, with real containers and CRIU: cold start, dump, proof,
// restore, stop. The binary is its own shim.
#include "pods/controller.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "lifecycle/shim.h"
#include "util/error.h"
#include "util/file.h"
#include "util/process.h"
#include "util/source_dir.h"

namespace thaw::pods {
namespace {

std::string rootfs() {
  static const std::string path = [] {
    RunResult result = run({std::string(THAW_SOURCE_DIR) + "/scripts/rootfs", "example"},
                           Deadline::after_ms(600'000));
    return result.ok() ? trim(result.out) : std::string();
  }();
  return path;
}

// GET / over the published port; empty when the connection fails.
std::string get(std::uint16_t port, const std::string& path) {
  Fd socket(check(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket"));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (::connect(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0)
    return {};
  write_all(socket, "GET " + path + " HTTP/1.0\r\n\r\n");
  try {
    return read_all(socket);
  } catch (const Error&) {
    return {};
  }
}

class ControllerTest : public ::testing::Test {
 protected:
  ControllerTest() : base("/tmp/thaw-controller-" + random_hex()) { make_directories(base, 0700); }
  ~ControllerTest() override {
    if (controller) controller->shutdown(true);
    controller.reset();
    remove_tree(base);
  }
  void begin() {
    lifecycle::Settings settings;
    settings.data_dir = base + "/data";
    controller = std::make_unique<Controller>(settings);
    controller->start();
  }
  state::PodSpec model_server() {
    state::PodSpec spec;
    spec.name = "model";
    spec.rootfs = rootfs();
    spec.command = {"python3", "/app/server.py"};
    spec.env = {{"HEAP_MIB", "10"}};
    spec.mounts = {{std::string(THAW_SOURCE_DIR) + "/examples/model-server/app", "/app", true}};
    spec.ports = {{8000, 0, "127.0.0.1"}};
    spec.max_replicas = 4;
    spec.checkpoint.enabled = true;
    state::Condition when;
    when.kind = state::Condition::Kind::kHttp;
    when.port = 8000;
    when.path = "/health";
    spec.checkpoint.when = when;
    if (std::getenv("THAW_EAGER")) spec.checkpoint.memory = state::CheckpointSpec::Memory::kEager;
    return spec;
  }
  void print_events() {
    for (auto& event : controller->database().events(0, 1000))
      fmt::print("{} {} {} {} {}\n", event.id, event.type, event.replica, event.checkpoint,
                 event.message);
    for (auto& row : controller->replicas({}, true)) {
      fmt::print("{} {} {} exit={} {}\n", row.id, row.state, row.started_from,
                 row.exit_code.value_or(-1), row.reason);
      for (auto& phase : row.phases)
        fmt::print("    {:32} {:9.1f} {:9.1f} ms\n", phase.name, phase.start_us / 1e3,
                   (phase.end_us - phase.start_us) / 1e3);
    }
  }
  std::string base;
  std::unique_ptr<Controller> controller;
};

TEST_F(ControllerTest, ColdStartCheckpointProofRestore) {
  begin();
  DeployResult deployed = controller->deploy(model_server());
  ASSERT_TRUE(deployed.created);
  std::uint16_t port = deployed.pod.spec.ports.at(0).host;
  ASSERT_NE(port, 0);
  EXPECT_NO_THROW(controller->scale("model", 1, 60'000'000));
  EXPECT_THAT(get(port, "/"), ::testing::HasSubstr("200 OK"));
  for (int i = 0; i < 600; ++i) {
    auto list = controller->checkpoints("model");
    if (!list.empty() && (list[0].status == "available" || list[0].status == "failed")) break;
    controller->database().wait_events(controller->database().last_event_id(), 100'000);
  }
  auto list = controller->checkpoints("model");
  ASSERT_EQ(list.size(), 1u);
  EXPECT_EQ(list[0].status, "available") << list[0].reason;
  EXPECT_NO_THROW(controller->scale("model", 2, 60'000'000));
  auto rows = controller->replicas("model");
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0].started_from, "cold");
  EXPECT_EQ(rows[1].started_from, list[0].id) << rows[1].reason;
  EXPECT_EQ(rows[1].outcome, "Restored");
  EXPECT_NE(rows[0].address, rows[1].address);
  std::set<std::string> answers;
  for (int i = 0; i < 6; ++i) {
    std::string text = get(port, "/");
    for (auto& row : rows)
      if (text.find(row.id) != std::string::npos) answers.insert(row.id);
  }
  EXPECT_EQ(answers.size(), 2u);
  controller->stop("model");
  for (int i = 0; i < 100 && controller->pod("model").total; ++i)
    controller->database().wait_events(controller->database().last_event_id(), 100'000);
  EXPECT_EQ(controller->pod("model").total, 0);
  if (HasFailure() || std::getenv("THAW_VERBOSE")) print_events();
}

}  // namespace
}  // namespace thaw::pods

int main(int argc, char** argv) {
  if (argc > 1 && std::string(argv[1]) == "shim") return thaw::lifecycle::shim_main(argc, argv);
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
