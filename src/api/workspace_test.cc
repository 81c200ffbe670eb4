#include "api/workspace.h"

#include <gmock/gmock.h>

#include <set>

#include "api/json.h"
#include "api/memory_backend.h"
#include "api/routes.h"
#include "api/target.h"
#include "util/file.h"
#include "util/sealed.h"

namespace thaw::api {
namespace {

using ::testing::HasSubstr;

// The machine has the pod "web" of nobody's workspace, with a replica, a checkpoint, an image and
// events. `b` is what a token of workspace "b" reaches.
class Workspace : public ::testing::Test {
 protected:
  Workspace() {
    token_.workspace = "b";
    token_.scope = Scope::kDeploy;
    b_ = inside_workspace(all_, token_);
  }
  ~Workspace() override { std::filesystem::remove_all(directory_); }

  state::PodSpec spec(const std::string& name) {
    state::PodSpec spec;
    spec.name = name;
    spec.image = "docker://python:3.12";
    return spec;
  }
  std::string refused(const state::PodSpec& spec) {
    try {
      b_->deploy(spec);
      return "";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::kDenied) << error.what();
      return error.what();
    }
  }

  std::string directory_ = TestServer::make_directory();
  MemoryBackend all_{directory_};
  Token token_;
  std::unique_ptr<Backend> b_;
};

// An answer that is kept.
class Recorder final : public Exchange {
 public:
  Recorder(Request request, Backend& backend) : Exchange(std::move(request), backend) {}
  void reply(int status, const nlohmann::json& body) override {
    status_ = status;
    text_ += dump(body);
  }
  void begin(int status, std::string_view) override {
    status_ = status;
    begun_ = true;
  }
  bool write(std::string_view data) override {
    text_ += data;
    return true;
  }
  bool begun() const override { return begun_; }
  bool wait(int, int) override { return false; }
  Upgraded upgrade(std::string_view) override {
    status_ = 101;
    throw Error(Code::kInternal, "upgrade", "", "a session was opened");
  }
  int status_ = 0;
  bool begun_ = false;
  std::string text_;
};

// Every call there is, about every thing of others: not found, and nothing told.
TEST_F(Workspace, NoCallReachesWhatIsOthers) {
  std::string image = all_.images()[0].id;
  int asked = 0;
  for (const Route& route : routes()) {
    std::string pattern(route.pattern);
    std::size_t brace = pattern.find('{');
    std::vector<std::string> things{""};
    if (brace != std::string::npos)
      things = {"web", "0123456789ab", "0123", "ccccccccccc1", "cccc", image, "b--web", "--web"};
    for (const std::string& thing : things)
      for (const char* query : {"", "pod=web", "pod=--web"}) {
        Request request;
        request.method = route.method;
        request.target = pattern;
        if (brace != std::string::npos)
          request.target.replace(brace, pattern.find('}') - brace + 1, encode(thing));
        if (std::string_view(query).size()) {
          if (std::find(route.query.begin(), route.query.end(), "pod") == route.query.end())
            continue;
          request.target += "?" + std::string(query);
        }
        SCOPED_TRACE(request.method + " " + request.target);
        parse_target(request);
        request.scope = Scope::kDeploy;
        request.content_type = route.body == Body::kNone ? "" : "application/json";
        if (pattern.ends_with("/scale")) request.body = R"({"replicas": 3})";
        if (pattern.ends_with("/exec")) request.body = R"({"argv": ["true"]})";
        if (pattern.ends_with("/exec")) request.upgrade = "thaw-exec";
        if (pattern == "/v1/pods" && request.method == "POST")
          request.body = R"({"name": "web", "rootfs": "/srv/rootfs", "command": ["x"]})";
        Recorder exchange(request, *b_);
        int status = 0;
        std::string told;
        try {
          dispatch(exchange);
          status = exchange.status_;
          told = exchange.text_;
        } catch (const HttpError& error) {
          status = error.status();
          told = error.cause() + error.remedy();
        } catch (const Error& error) {
          status = http_status(error.code());
          told = error.cause() + error.remedy();
        }
        ++asked;
        bool listed = brace == std::string::npos && request.method == "GET";
        // What is in the path is not there; what is the machine's is refused.
        std::set<int> right{404, 403};
        if (brace == std::string::npos) right = {403, 400};
        if (request.method == "PUT") right = {400};  // its own it may make, though not an empty one
        EXPECT_TRUE(listed || right.count(status)) << status << " " << told;
        for (const char* secret : {"web", "0123456789ab", "ccccccccccc1", "srv/images"})
          EXPECT_EQ(told.find(secret), std::string::npos) << told;
      }
  }
  EXPECT_GT(asked, 100);
  EXPECT_TRUE(all_.deployed.empty());
  EXPECT_EQ(all_.scaled_to, -1);
  EXPECT_EQ(all_.exec_pid, 0);
  EXPECT_EQ(all_.removed_image, "");
}

TEST_F(Workspace, ItsOwnPodsHaveShortNames) {
  state::PodSpec given = spec("app");
  given.links = {"store"};
  pods::DeployResult result = b_->deploy(given);
  ASSERT_EQ(all_.deployed.size(), 1u);
  EXPECT_EQ(all_.deployed[0].name, "b--app");
  EXPECT_EQ(all_.deployed[0].links, std::vector<std::string>{"b--store"});
  EXPECT_EQ(result.pod.row.name, "app");
  EXPECT_EQ(result.pod.spec, given);
  all_.add_event("pod.deployed", "b--app");
  auto events = b_->events(0, 10, "");
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(events[0].pod, "app");
  EXPECT_EQ(b_->events(0, 10, "app").size(), 1u);
  EXPECT_EQ(b_->events(0, 10, "web").size(), 0u);
}

TEST_F(Workspace, NothingOfTheHostByDefault) {
  state::PodSpec pod = spec("x");
  pod.image.clear();
  pod.rootfs = "/";
  EXPECT_THAT(refused(pod), HasSubstr("no files of the host"));
  pod = spec("x");
  pod.mounts = {{"/etc", "/mnt", true}};
  EXPECT_THAT(refused(pod), HasSubstr("no files of the host"));
  pod = spec("x");
  pod.secrets = {{.name = "shadow", .file = "/etc/shadow"}};
  EXPECT_THAT(refused(pod), HasSubstr("no files of the host"));
  for (const char* image :
       {"oci:/etc", "dir:/etc", "oci-archive:/etc/passwd:x", "docker-archive:/etc/shadow",
        "docker-daemon:app:1", "containers-storage:app:1", "anything"}) {
    pod = spec("x");
    pod.image = image;
    EXPECT_NE(refused(pod), "") << image;
  }
  EXPECT_TRUE(all_.deployed.empty());
}

TEST_F(Workspace, ItsFoldersToReadOnly) {
  std::string folder = directory_ + "/given";
  make_directories(folder + "/app");
  write_file(folder + "/secret", "x");
  std::filesystem::create_symlink("/etc", folder + "/out");
  make_directories(directory_ + "/given-not");
  token_.folders = {folder};
  b_ = inside_workspace(all_, token_);
  state::PodSpec pod = spec("x");
  pod.mounts = {{folder + "/app", "/app", true}, {folder, "/all", true}};
  pod.secrets = {{.name = "key", .file = folder + "/secret"}};
  b_->deploy(pod);
  for (const std::string& path : {folder + "/out", folder + "/out/passwd", folder + "/../given-not",
                                  directory_ + "/given-not", directory_, folder + "/none"}) {
    pod = spec("x");
    pod.mounts = {{path, "/app", true}};
    EXPECT_THAT(refused(pod), HasSubstr("none of the folders")) << path;
  }
  pod = spec("x");
  pod.mounts = {{folder, "/app", false}};
  EXPECT_THAT(refused(pod), HasSubstr("read only"));
}

TEST_F(Workspace, ItsSecretsAreItsOwn) {
  all_.put_secret("key", "the machine's");
  all_.put_secret("a--key", "another's");
  EXPECT_TRUE(b_->put_secret("key", "b's"));
  EXPECT_FALSE(b_->put_secret("key", "b's, again"));
  ASSERT_EQ(b_->secrets().size(), 1u);
  EXPECT_EQ(b_->secrets()[0].name, "key");
  EXPECT_EQ(SealKey::read(directory_ + "/secrets.key")
                .unseal("b--key", read_file(directory_ + "/sealed/b--key")),
            "b's, again");
  EXPECT_THROW(b_->remove_secret("a--key"), Error);
  state::PodSpec pod = spec("x");
  pod.secrets = {{.name = "token", .secret = "key"}};
  EXPECT_EQ(b_->deploy(pod).pod.spec.secrets[0].secret, "key");
  EXPECT_EQ(all_.deployed.back().secrets[0].secret, "b--key");
  b_->remove_secret("key");
  EXPECT_EQ(all_.secrets().size(), 2u);
}

TEST_F(Workspace, TokensOfOne) {
  Tokens& tokens = all_.tokens();
  for (const char* name : {"-a", "a-", "a--b", "A", "a b", "aaaaaaaaaaaaaaaaaaaaa", "a/b"})
    EXPECT_THROW(tokens.create("t", Scope::kRead, name), Error) << name;
  EXPECT_THROW(tokens.create("t", Scope::kAdmin, "b"), Error);
  EXPECT_THROW(tokens.create("t", Scope::kRead, "", {"/tmp"}), Error);
  for (const char* folder : {"/", "relative", "/no/such/folder", "/etc/passwd"})
    EXPECT_THROW(tokens.create("t", Scope::kRead, "b", {folder}), Error) << folder;
  auto [text, kept] = tokens.create("t", Scope::kDeploy, "b", {directory_ + "/."});
  auto found = tokens.find(text);
  ASSERT_TRUE(found);
  EXPECT_EQ(found->workspace, "b");
  EXPECT_EQ(found->folders, std::vector<std::string>{directory_});
}

}  // namespace
}  // namespace thaw::api
