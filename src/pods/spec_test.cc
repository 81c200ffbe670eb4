// The cases are data: tests/spec/NAME.yaml or .json, and beside it NAME.yaml.expect with what is
// expected of it: the specification as to_json writes it, or the message. Relative paths are taken
// from /base/dir.
#include "pods/spec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "util/error.h"
#include "util/file.h"
#include "util/source_dir.h"

namespace thaw::pods {
namespace {

using nlohmann::json;
using state::Condition;
using state::PodSpec;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

const std::string kCases = std::string(THAW_SOURCE_DIR) + "/tests/spec/";

std::vector<std::string> cases() {
  std::vector<std::string> names;
  for (auto& entry : std::filesystem::directory_iterator(kCases))
    if (entry.path().extension() != ".expect") names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

std::string message_of(const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::kInvalid) << error.what();
    return error.what();
  }
  return "no error";
}

std::string message_of(std::string_view text) {
  return message_of([&] { parse_spec(text, "pod.yaml", "/base/dir"); });
}

PodSpec spec_of(const std::string& name) {
  return parse_spec(read_file(kCases + name), name, "/base/dir");
}

class SpecCase : public ::testing::TestWithParam<std::string> {};

TEST_P(SpecCase, ReadsAsExpected) {
  std::string expected = trim(read_file(kCases + GetParam() + ".expect"));
  if (!expected.starts_with('{')) {
    EXPECT_EQ(message_of([&] { spec_of(GetParam()); }), expected);
    return;
  }
  PodSpec spec = spec_of(GetParam());
  EXPECT_EQ(to_json(spec), json::parse(expected)) << to_json(spec).dump(2);
  // What is written is read back the same, in all three ways.
  EXPECT_EQ(from_json(to_json(spec)), spec);
  EXPECT_EQ(from_json(json::parse(to_json(spec).dump())), spec);
  EXPECT_EQ(parse_spec(to_json(spec).dump(2), "again", ""), spec);
  validate(spec, "again");
}

INSTANTIATE_TEST_SUITE_P(Files, SpecCase, ::testing::ValuesIn(cases()), [](auto& info) {
  std::string name = info.param;
  for (char& c : name)
    if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
  return name;
});

TEST(Spec, NamesFileLineAndKeyInTheObject) {
  try {
    parse_spec("name: a\nimage: docker://x\nresources:\n  memory: 2GX\n", "dir/pod.yaml", "/");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::kInvalid);
    EXPECT_EQ(error.object(), "dir/pod.yaml:4: resources.memory");
    EXPECT_THAT(error.remedy(), HasSubstr("2GiB"));
  }
}

TEST(Spec, RelativePathsNeedABaseFolder) {
  EXPECT_THAT(message_of([] { parse_spec("name: a\nrootfs: r\ncommand: [x]\n", "pod.yaml", ""); }),
              HasSubstr("'r' is a relative path"));
  EXPECT_THAT(message_of([] {
                from_json({{"name", "a"}, {"image", "oci:./x"}});
              }),
              HasSubstr("relative path"));
}

TEST(Spec, LocalImagesKeepTheirTransportAndTag) {
  auto image = [](const std::string& text) {
    return parse_spec("name: a\nimage: \"" + text + "\"\n", "pod.yaml", "/base").image;
  };
  EXPECT_EQ(image("oci:x:1"), "oci:/base/x:1");
  EXPECT_EQ(image("oci:../x"), "oci:/x");
  EXPECT_EQ(image("oci-archive:/a/b.tar:tag"), "oci-archive:/a/b.tar:tag");
  EXPECT_EQ(image("docker-archive:b.tar:r:1"), "docker-archive:/base/b.tar:r:1");
  EXPECT_EQ(image("dir:./x:y"), "dir:/base/x:y");
  EXPECT_EQ(image("docker://localhost:5000/x:1"), "docker://localhost:5000/x:1");
}

TEST(Spec, LimitsTheDocument) {
  EXPECT_THAT(message_of(std::string((1 << 20) + 1, '#')), HasSubstr("larger than 1 MiB"));
  std::string deep = "a: " + std::string(40, '[') + std::string(40, ']');
  EXPECT_THAT(message_of(deep), HasSubstr("more than 32 levels"));
  EXPECT_THAT(message_of("{\"a\": " + std::string(40, '[') + std::string(40, ']') + "}"),
              HasSubstr("more than 32 levels"));
  EXPECT_THAT(message_of(std::string(1 << 20, '[')), HasSubstr("cannot read"));
  EXPECT_THAT(message_of(std::string_view("name: a\0b", 9)), HasSubstr("NUL"));
  EXPECT_THAT(message_of("name: \xff\n"), HasSubstr("UTF-8"));
  json nested = 1;
  for (int i = 0; i < 1000; ++i) nested = json::array({std::move(nested)});
  EXPECT_THAT(message_of([&] { from_json({{"name", nested}}); }), HasSubstr("32 levels"));
}

TEST(Spec, AliasesCannotGrowWithoutBound) {
  std::string bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n";
  for (char c = 'b'; c <= 'i'; ++c) {
    std::string before(1, static_cast<char>(c - 1));
    bomb += std::string(1, c) + ": &" + c + " [*" + before;
    for (int i = 0; i < 8; ++i) bomb += ", *" + before;
    bomb += "]\n";
  }
  EXPECT_THAT(message_of(bomb), HasSubstr("more than 100000 values"));
  std::string wide = "a: &a " + std::string(500'000, 'x') + "\nb: [*a";
  for (int i = 0; i < 50; ++i) wide += ", *a";
  EXPECT_THAT(message_of(wide + "]\n"), HasSubstr("aliases expanded"));
}

TEST(Spec, MessagesAreShortAndPrintable) {
  std::string message =
      message_of("name: \"" + std::string(10'000, 'x') + "\"\nimage: docker://x\n");
  EXPECT_LT(message.size(), 500u);
  message = message_of("name: \"\\e[31m\"\nimage: docker://x\n");
  EXPECT_EQ(message.find('\x1b'), std::string::npos);
  message = message_of("name: a\n? \"" + std::string(10'000, 'y') + "\\e\"\n: b\n");
  EXPECT_LT(message.size(), 700u);
}

TEST(Spec, ValidateChecksASpecificationMadeByHand) {
  PodSpec spec;
  spec.name = "a";
  spec.image = "docker://x";
  validate(spec, "the command line");
  auto message_with = [&](const std::function<void(PodSpec&)>& change) {
    PodSpec changed = spec;
    change(changed);
    return message_of([&] { validate(changed, "the command line"); });
  };
  EXPECT_THAT(message_with([](PodSpec& s) { s.name = "A"; }),
              HasSubstr("'the command line: name': 'A' is not a DNS label"));
  EXPECT_THAT(message_with([](PodSpec& s) { s.name.clear(); }),
              HasSubstr("the key 'name' is missing"));
  EXPECT_THAT(message_with([](PodSpec& s) { s.min_replicas = 2; }),
              HasSubstr("min 2 is more than max 1"));
  EXPECT_THAT(message_with([](PodSpec& s) { s.resources.pids = 0; }), HasSubstr("resources.pids"));
  EXPECT_THAT(message_with([](PodSpec& s) { s.resources.cpu = std::nan(""); }),
              HasSubstr("resources.cpu"));
  EXPECT_THAT(message_with([](PodSpec& s) {
                s.mounts = {{"/a", "b"}};
              }),
              HasSubstr("mounts[0].target"));
  EXPECT_THAT(message_with([](PodSpec& s) {
                s.mounts = {{"a", "/b"}};
              }),
              HasSubstr("'a' is a relative path"));
  EXPECT_THAT(message_with([](PodSpec& s) { s.workdir = "/app//x/"; }),
              HasSubstr("write '\"/app/x\"'"));
  EXPECT_THAT(message_with([](PodSpec& s) { s.env["A"] = "\xff"; }), HasSubstr("UTF-8"));
  EXPECT_THAT(message_with([](PodSpec& s) { s.checkpoint.enabled = true; }),
              HasSubstr("says not when"));
  EXPECT_THAT(message_with([](PodSpec& s) {
                s.checkpoint.when = Condition{.kind = Condition::Kind::kLog, .pattern = "("};
              }),
              HasSubstr("not a regular expression"));
  EXPECT_THAT(message_with(
                  [](PodSpec& s) { s.checkpoint.when = Condition{.kind = Condition::Kind::kTcp}; }),
              HasSubstr("checkpoint.when.tcp.port"));
}

TEST(Spec, ExtremeValuesComeBackTheSame) {
  PodSpec spec;
  spec.name = "a";
  spec.image = "docker://x";
  spec.command = {"sh", "", "true", "1.0", "null", "~", "a\nb\t\"'\\", "\xF0\x9F\x98\x80"};
  spec.env = {{"A", ""}, {"B", "no"}, {"C", "0x10"}, {"D", "line\nline"}};
  spec.resources = {.cpu = 1.0 / 3, .memory = (1ull << 60) - 1, .pids = 1 << 22, .gpu = 64};
  spec.checkpoint.timeout_us = 1'000'001;
  spec.stop_grace_us = 0;
  spec.checkpoint.when = Condition{.kind = Condition::Kind::kAfter, .after_us = 86'399'999'999};
  EXPECT_EQ(from_json(to_json(spec)), spec);
  EXPECT_EQ(parse_spec(to_json(spec).dump(), "again", ""), spec);
}

TEST(ConditionFlag, ShortForms) {
  std::vector<state::Port> ports = {{.container = 8000}, {.container = 9000}};
  auto json_of = [&](const std::string& text) {
    return condition_json(parse_condition_flag(text, ports)).dump();
  };
  EXPECT_EQ(json_of("http"), R"({"http":{"path":"/","port":8000,"status":200}})");
  EXPECT_EQ(json_of("http:/health"), R"({"http":{"path":"/health","port":8000,"status":200}})");
  EXPECT_EQ(json_of("http:9000"), R"({"http":{"path":"/","port":9000,"status":200}})");
  EXPECT_EQ(json_of("http:9000/a/b?c=d"),
            R"({"http":{"path":"/a/b?c=d","port":9000,"status":200}})");
  EXPECT_EQ(json_of("tcp"), R"({"tcp":{"port":8000}})");
  EXPECT_EQ(json_of("tcp:9000"), R"({"tcp":{"port":9000}})");
  EXPECT_EQ(json_of("file:/run/ready"), R"({"file":"/run/ready"})");
  EXPECT_EQ(json_of("log:listening on: [0-9]+"), R"({"log":"listening on: [0-9]+"})");
  EXPECT_EQ(json_of("python:app.health:ready"), R"({"python":"app.health:ready"})");
  EXPECT_EQ(json_of("exec:test -e  /ready"), R"({"exec":["test","-e","/ready"]})");
  EXPECT_EQ(json_of("notify"), R"({"notify":true})");
  EXPECT_EQ(json_of("workers:4"), R"({"workers":4})");
  EXPECT_EQ(json_of("after:1m30s"), R"({"after":"1m30s"})");
  EXPECT_EQ(json_of(R"({"any": [{"notify": true}, {"http": {"status": 204}}]})"),
            R"({"any":[{"notify":true},{"http":{"path":"/","port":8000,"status":204}}]})");
}

TEST(ConditionFlag, SaysWhatIsWrongAndWhichFormsThereAre) {
  auto message = [](const std::string& text) {
    return message_of([&] { parse_condition_flag(text, {}); });
  };
  for (const char* text : {"",           "htp:/x",    "http",        "tcp",
                           "tcp:0",      "tcp:x",     "http:health", "file:ready",
                           "file",       "log",       "log:",        "log:(",
                           "python:app", "exec",      "exec:",       "notify:1",
                           "workers",    "workers:0", "workers:x",   "after",
                           "after:soon", "{",         "{}",          "{\"http\": {\"prt\": 1}}"})
    EXPECT_THAT(message(text), HasSubstr("http:8000/health, tcp, tcp:8000")) << text;
  EXPECT_THAT(message("{\"http\": {\"prt\": 1}}"), HasSubstr("did you mean 'port'?"));
  EXPECT_THAT(message("tcp"), HasSubstr("it names no port, and the pod has no ports"));
}

TEST(ConditionText, IsOneLineForPeople) {
  auto text = [](const std::string& flag) {
    return describe(parse_condition_flag(flag, {{.container = 8000}}));
  };
  EXPECT_EQ(text("http:/health"), "http :8000/health is 200");
  EXPECT_EQ(text("tcp"), "tcp :8000 accepts connections");
  EXPECT_EQ(text("exec:test -e /x"), "exec test -e /x succeeds");
  EXPECT_EQ(text("file:/x"), "file /x exists");
  EXPECT_EQ(text("log:up"), "log matches /up/");
  EXPECT_EQ(text("python:m:f"), "python m:f returns true");
  EXPECT_EQ(text("workers:1"), "1 worker is ready");
  EXPECT_EQ(text("after:5s"), "after 5s");
  EXPECT_EQ(text(R"({"all": [{"notify": true}, {"any": [{"after": 1}, {"tcp": 1}]}]})"),
            "(notify READY=1 received and (after 1s or tcp :1 accepts connections))");
}

TEST(Docs, ExampleIsValidAndEveryKeyIsExplained) {
  std::string page = read_file(std::string(THAW_SOURCE_DIR) + "/docs/pod-spec.md");
  std::size_t begin = page.find("```yaml\n") + 8;
  parse_spec(std::string_view(page).substr(begin, page.find("```", begin) - begin),
             "docs/pod-spec.md", "/base/dir");
  json schema = json_schema();
  for (auto& [key, value] : schema["properties"].items()) {
    EXPECT_THAT(page, HasSubstr("`" + key)) << key;
    json inside = value.value("properties", json::object());
    for (auto& [inner, ignored] : inside.items())
      EXPECT_THAT(page, HasSubstr("`" + key + "." + inner + "`"));
  }
  for (auto& [key, value] : schema["$defs"]["condition"]["properties"].items())
    EXPECT_THAT(page, HasSubstr("`" + key + ": "));
}

TEST(Schema, HasEveryKeyOfTheTablesAndTheirDefaults) {
  json schema = json_schema();
  std::vector<std::string> keys;
  for (auto& [key, value] : schema["properties"].items()) {
    keys.push_back(key);
    EXPECT_TRUE(value.contains("description")) << key;
  }
  EXPECT_THAT(keys,
              ElementsAre("alive", "args", "checkpoint", "command", "env", "idle", "image", "links",
                          "mounts", "name", "network", "ports", "ready", "replicas", "resources",
                          "rootfs", "routes", "secrets", "stop_grace", "user", "workdir"));
  EXPECT_EQ(schema["required"], json::array({"name"}));
  EXPECT_EQ(schema["properties"]["stop_grace"]["default"], "10s");
  EXPECT_EQ(schema["properties"]["resources"]["properties"]["pids"]["default"], 1024);
  EXPECT_EQ(schema["$defs"]["condition"]["properties"].size(), 11u);
  EXPECT_EQ(schema["$defs"]["condition"]["properties"]["http"]["properties"]["path"]["default"],
            "/");
  EXPECT_EQ(schema["$defs"]["condition"]["properties"]["all"]["items"]["$ref"],
            "#/$defs/condition");
}

}  // namespace
}  // namespace thaw::pods
