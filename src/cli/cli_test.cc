#include "cli/run.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>

#include "api/memory_backend.h"
#include "cli/completion.h"
#include "cli/deploy_spec.h"
#include "cli/parser.h"
#include "util/source_dir.h"

namespace thaw::cli {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing::StartsWith;

struct Result {
  int code = 0;
  std::string out, err;
};

// The program, in this process.
Result thaw(std::vector<std::string> words) {
  words.insert(words.begin(), "thaw");
  std::vector<char*> argv;
  for (auto& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  Result result;
  result.code = run(static_cast<int>(words.size()), argv.data());
  result.out = testing::internal::GetCapturedStdout();
  result.err = testing::internal::GetCapturedStderr();
  return result;
}

class Cli : public testing::Test {
 protected:
  Result run(std::vector<std::string> words) {
    words.insert(words.begin(), {"--host", server_.server->addresses()[0].text()});
    return thaw(std::move(words));
  }
  api::TestServer server_;
};

TEST_F(Cli, ListsForPeopleAndPrograms) {
  Result table = run({"ls"});
  EXPECT_EQ(table.code, 0);
  EXPECT_THAT(table.out, StartsWith("NAME  VERSION  READY"));
  EXPECT_THAT(table.out, HasSubstr("127.0.0.1:9000->8000"));
  EXPECT_EQ(json::parse(run({"ls", "--json"}).out)[0]["name"], "web");
  EXPECT_EQ(run({"ls", "-q"}).out, "web\n");

  table = run({"ps", "-a"});
  EXPECT_THAT(table.out, HasSubstr("READY-IN"));
  EXPECT_THAT(table.out, HasSubstr("1.50s"));
  EXPECT_EQ(json::parse(run({"ps", "--json"}).out)[0]["phases"][0]["name"], "preparing");
  EXPECT_EQ(run({"ps", "-q", "web"}).out, "0123456789ab\n");
  EXPECT_EQ(run({"ps", "nobody"}).code, kNotFound);

  EXPECT_EQ(run({"checkpoint", "ls", "-q"}).out, "ccccccccccc1\n");
  EXPECT_EQ(run({"image", "ls", "-q"}).out, std::string(64, 'a') + "\n");
  EXPECT_EQ(json::parse(run({"events", "--json", "--pod", "web"}).out).size(), 1u);
  EXPECT_THAT(run({"events", "--after", "1"}).out, HasSubstr("pod.deployed"));
}

TEST_F(Cli, ActsAndSaysWhat) {
  EXPECT_EQ(run({"scale", "web", "2", "--wait", "--timeout", "30s"}).out, "web: 0 of 1 ready\n");
  EXPECT_EQ(server_.backend.scaled_to, 2);
  EXPECT_EQ(server_.backend.waited_us, 30'000'000);
  EXPECT_EQ(run({"stop", "web"}).out, "web\n");
  EXPECT_EQ(run({"stop", "0123"}).out, "0123\n");
  EXPECT_EQ(run({"rm", "-f", "web"}).out, "web\n");
  EXPECT_EQ(run({"checkpoint", "create", "web"}).out, "ccccccccccc1\n");
  EXPECT_EQ(json::parse(run({"checkpoint", "inspect", "ccc"}).out)["manifest"]["tree"], 1);
  EXPECT_EQ(run({"checkpoint", "rm", "ccc"}).code, 0);
  EXPECT_EQ(run({"image", "import", "oci:fine"}).out, std::string(64, 'a') + "\n");
  EXPECT_EQ(run({"image", "rm", "oci:fine"}).code, 0);
  EXPECT_EQ(server_.backend.removed_image,
            "oci:" + std::filesystem::current_path().string() + "/fine");
  EXPECT_THAT(run({"version"}).out, HasSubstr("daemon  0."));
}

TEST_F(Cli, ShowsLogsWithTheirStreamsApart) {
  write_file_atomic(server_.backend.log_file(),
                    "2026-01-01T00:00:00Z stdout F one\n2026-01-01T00:00:01Z stderr P tw\n"
                    "2026-01-01T00:00:01Z stderr F o\n");
  server_.backend.end_replica();
  for (bool follow : {false, true}) {
    Result logs = follow ? run({"logs", "-f", "web"}) : run({"logs", "web"});
    EXPECT_EQ(logs.out, "one\n");
    EXPECT_EQ(logs.err, "two\n");
  }
  EXPECT_EQ(run({"logs", "-t", "--tail", "1", "web"}).err,
            "2026-01-01T00:00:01Z tw2026-01-01T00:00:01Z o\n");
  EXPECT_EQ(run({"logs", "--tail", "x", "web"}).code, kUsage);
}

TEST_F(Cli, ExecEndsWithTheProgramsOwnCode) {
  EXPECT_EQ(run({"exec", "web", "--", "sh", "-c", "exit 42"}).code, 42);
  EXPECT_EQ(run({"exec", "web", "true"}).code, 0);
  Result echo =
      run({"exec", "web", "--", "sh", "-c", "echo out; echo err >&2; cat"});  // no -i: no input
  EXPECT_EQ(echo.out, "out\n");
  EXPECT_EQ(echo.err, "err\n");
  EXPECT_EQ(run({"exec", "web", "--", "sh", "-c", "kill -9 $$"}).code, 137);
  EXPECT_EQ(run({"exec", "web"}).code, kUsage);
  EXPECT_EQ(run({"exec", "nobody", "--", "true"}).code, kNotFound);
}

TEST_F(Cli, DeploysFromFlags) {
  std::string rootfs = server_.directory + "/rootfs";
  make_directories(rootfs);
  Result result = run({"deploy", "--name", "web", "--rootfs", rootfs, "--port", "9000:8000",
                       "--replicas", "3", "--checkpoint-when", "http:/health", "-e", "MODE=fast",
                       "--no-wait", "--", "python3", "-c", "x"});
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.err, HasSubstr("warning: a warning"));
  EXPECT_EQ(result.out, "http://127.0.0.1:9000\n");
  ASSERT_EQ(server_.backend.deployed.size(), 1u);
  const state::PodSpec& spec = server_.backend.deployed[0];
  EXPECT_EQ(spec.command, (std::vector<std::string>{"python3", "-c", "x"}));
  EXPECT_EQ(spec.env.at("MODE"), "fast");
  EXPECT_EQ(spec.max_replicas, 3);
  EXPECT_TRUE(spec.checkpoint.enabled);
  EXPECT_EQ(spec.checkpoint.when->port, 8000);
  EXPECT_EQ(server_.backend.scaled_to, 3);
}

TEST_F(Cli, DeployWaitsAndChecksFirst) {
  std::string file = server_.directory + "/pod.yaml";
  make_directories(server_.directory + "/app");
  write_file_atomic(
      file,
      "name: web\nrootfs: ./app\ncommand: [serve]\nmounts: [{source: ./app, target: /app}]\n");
  EXPECT_EQ(run({"deploy", file, "--timeout", "1m", "-q"}).out, "web\n");
  EXPECT_EQ(server_.backend.waited_us, 60'000'000);
  EXPECT_EQ(server_.backend.deployed[0].rootfs, server_.directory + "/app");
  EXPECT_EQ(server_.backend.deployed[0].mounts[0].source, server_.directory + "/app");

  EXPECT_EQ(json::parse(run({"deploy", file, "--dry-run"}).out)["name"], "web");
  write_file_atomic(file, "name: web\nrootfs: /srv\ncommand: [serve]\ncolour: red\n");
  Result bad = run({"deploy", file});
  EXPECT_EQ(bad.code, kUsage);
  EXPECT_THAT(bad.err, HasSubstr("colour"));
  EXPECT_EQ(run({"deploy", server_.directory + "/none.yaml"}).code, kNotFound);
  EXPECT_EQ(run({"deploy"}).code, kUsage);
  EXPECT_EQ(run({"deploy", file, "--timeout", "soon"}).code, kUsage);
  EXPECT_EQ(server_.backend.deployed.size(), 1u);
}

TEST_F(Cli, RefusesWithAnExitCodeAndOneSentence) {
  struct Case {
    int code;
    std::vector<std::string> words;
    std::string says;
  } cases[] = {
      {kUsage, {"frobnicate"}, "thaw --help"},
      {kUsage, {"ls", "--colour"}, "thaw ls --help"},
      {kUsage, {}, "a command is missing"},
      {kUsage, {"checkpoint"}, "a command is missing"},
      {kUsage, {"ls", "--", "x"}, "nothing after --"},
      {kUsage, {"scale", "web"}, "thaw scale --help"},
      {kUsage, {"scale", "web", "-1"}, "whole number"},
      {kUsage, {"scale", "web", "many"}, "whole number"},
      {kUsage, {"completion", "tcsh"}, "bash, zsh or fish"},
      {kUsage, {"image", "import", "bad"}, "no transport"},
      {kFailed, {"image", "import", "oci:/breaks"}, "torn"},
      {kNotFound, {"scale", "nobody", "1"}, "existing: web"},
      {kNotFound, {"stop", "nobody"}, "existing: web"},
      {kNotFound, {"logs", "nobody"}, "nobody"},
      {kNotFound, {"rm", "nobody", "web"}, "existing: web"},
      {kConflict, {"rm", "web"}, "use force"},
  };
  for (auto& one : cases) {
    Result result = run(one.words);
    SCOPED_TRACE(testing::PrintToString(one.words) + result.err);
    EXPECT_EQ(result.code, one.code);
    EXPECT_THAT(result.err, StartsWith("thaw: "));
    EXPECT_THAT(result.err, HasSubstr(one.says));
  }
}

TEST(CliAlone, SaysHowToStartADaemon) {
  Result result = thaw({"ps", "--host", "unix:/nowhere/thaw.sock"});
  EXPECT_EQ(result.code, kNoDaemon);
  EXPECT_THAT(result.err, HasSubstr("no such file; start it with `thaw daemon` (as root)"));
  ::setenv("THAW_HOST", "tcp:127.0.0.1:1", 1);
  EXPECT_THAT(thaw({"ps"}).err, HasSubstr("'tcp:127.0.0.1:1': nothing listens there"));
  ::setenv("THAW_HOST", "nonsense", 1);
  EXPECT_EQ(thaw({"ps"}).code, kUsage);
  ::unsetenv("THAW_HOST");
  EXPECT_EQ(thaw({"version", "--host", "unix:/nowhere/thaw.sock"}).code, 0);
  EXPECT_EQ(thaw({"daemon", "--log-level", "loud"}).code, kUsage);
  EXPECT_EQ(thaw({"daemon", "--log-format", "xml"}).code, kUsage);
  EXPECT_EQ(thaw({"daemon", "--listen", "http://x"}).code, kUsage);
}

TEST(CliAlone, HelpAndSchemaNeedNoDaemon) {
  EXPECT_THAT(thaw({"--help"}).out, HasSubstr("Usage: thaw [OPTIONS] COMMAND ..."));
  EXPECT_THAT(thaw({"exec", "-h"}).out,
              HasSubstr("Usage: thaw exec [OPTIONS] REPLICA [PROGRAM...] [-- PROGRAM...]"));
  EXPECT_THAT(thaw({"deploy", "--help"}).out, HasSubstr("--checkpoint-when COND"));
  EXPECT_THAT(thaw({"checkpoint", "ls", "-h"}).out, HasSubstr("thaw checkpoint ls"));
  EXPECT_THAT(thaw({"--version"}).out, StartsWith("thaw "));
  EXPECT_TRUE(json::parse(thaw({"schema"}).out).is_object());
}

TEST(DeploySpec, ReadsPortsAndMounts) {
  EXPECT_EQ(parse_port("8000"), (state::Port{8000, 0, "127.0.0.1"}));
  EXPECT_EQ(parse_port("9000:8000"), (state::Port{8000, 9000, "127.0.0.1"}));
  EXPECT_EQ(parse_port("0.0.0.0:9000:8000"), (state::Port{8000, 9000, "0.0.0.0"}));
  EXPECT_EQ(parse_port("[::1]:9000:8000"), (state::Port{8000, 9000, "::1"}));
  for (auto text : {"", "x", "0", "70000", "1:", ":1", "a:b:c", "-1", "123456789012"}) {
    EXPECT_THROW(parse_port(text), Error) << text;
  }
  EXPECT_EQ(parse_mount("/a:/b"), (state::Mount{"/a", "/b", false}));
  EXPECT_EQ(parse_mount("/a:/b:ro"), (state::Mount{"/a", "/b", true}));
  EXPECT_EQ(parse_mount("app:/b:rw").source, std::filesystem::current_path().string() + "/app");
  for (auto text : {"", "/a", "/a:b", ":/b", "/a:/b:rx", "/a:/b:ro:ro"}) {
    EXPECT_THROW(parse_mount(text), Error) << text;
  }
}

TEST(Table, AlignsAndCuts) {
  Table table({"NAME", "REASON"});
  table.add({"müller", "because of a very long story"});
  EXPECT_EQ(table.text(), "NAME    REASON\nmüller  because of a very long story\n");
  EXPECT_EQ(table.text(20), "NAME    REASON\nmüller  because of …\n");
  EXPECT_EQ(age(0, 5), "-");
  EXPECT_EQ(age(1, 200'000'001), "3m");
  EXPECT_EQ(span(1'240'000), "1.24s");
}

TEST(Docs, AreWhatTheCommandsSay) {
  Command root = thaw_command();
  std::string source = THAW_SOURCE_DIR;
  constexpr const char* remedy = "run `thaw docs .` in the source folder";
  EXPECT_EQ(read_file(source + "/completions/thaw.bash"), completion_script(root, "bash"))
      << remedy;
  EXPECT_EQ(read_file(source + "/completions/_thaw"), completion_script(root, "zsh")) << remedy;
  EXPECT_EQ(read_file(source + "/completions/thaw.fish"), completion_script(root, "fish"))
      << remedy;
  auto pages = man_pages(root);
  for (auto& [name, text] : pages) EXPECT_EQ(read_file(source + "/man/" + name), text) << remedy;
  for (auto& entry : std::filesystem::directory_iterator(source + "/man")) {
    EXPECT_TRUE(pages.contains(entry.path().filename())) << entry.path();
  }
}

TEST(Completion, CompletesInBash) {
  std::string script = std::string(THAW_SOURCE_DIR) + "/completions/thaw.bash";
  auto complete = [&](const std::string& words, int at) {
    auto result =
        thaw::run({"bash", "-c",
                   "thaw() { echo web; echo wide; }; source " + script + "; COMP_WORDS=(" + words +
                       "); COMP_CWORD=" + std::to_string(at) + "; _thaw; echo ${COMPREPLY[*]}"},
                  Deadline::after_ms(10'000));
    EXPECT_TRUE(result.ok()) << result.why();
    return trim(result.out);
  };
  EXPECT_EQ(complete("thaw che", 1), "checkpoint");
  EXPECT_EQ(complete("thaw checkpoint i", 2), "inspect");
  EXPECT_EQ(complete("thaw scale w", 2), "web wide");
  EXPECT_EQ(complete("thaw events --pod we", 3), "web");
  EXPECT_EQ(complete("thaw daemon --log-format j", 3), "json");
  EXPECT_EQ(complete("thaw ps --a", 2), "--all");
  EXPECT_EQ(complete("thaw completion f", 2), "fish");
}

// As people type it: in a zsh with a terminal of its own. It ends when what is expected appears.
TEST(Completion, CompletesInZsh) {
  auto appears = [](const std::string& typed, const std::string& expected) {
    auto result = thaw::run({"zsh", "-fc", R"(
zmodload zsh/zpty
zpty z zsh -fi
zpty -w z "PS1=; fpath=($1 \$fpath); autoload -Uz compinit; compinit -uD; thaw() { print web; print wide }; print set''up"
zpty -r z out '*setup*'
zpty -wn z "$2"$'\t'
zpty -r z out "*$3*")",
                             "zsh", std::string(THAW_SOURCE_DIR) + "/completions", typed, expected},
                            Deadline::after_ms(10'000));
    EXPECT_TRUE(result.ok()) << typed << ": " << result.why();
  };
  appears("thaw che", "thaw checkpoint");
  appears("thaw checkpoint i", "thaw checkpoint inspect");
  appears("thaw scale w", "web*wide");
  appears("thaw events --pod we", "--pod web");
  appears("thaw daemon --log-format j", "--log-format json");
  appears("thaw ps --a", "thaw ps --all");
  appears("thaw completion f", "thaw completion fish");
}

TEST(Completion, CompletesInFish) {
  auto complete = [](const std::string& typed) {
    auto result = thaw::run({"fish", "--no-config", "-c",
                             "function thaw; echo web; echo wide; end; source $argv[1]; "
                             "complete -C $argv[2] | cut -f1",
                             std::string(THAW_SOURCE_DIR) + "/completions/thaw.fish", typed},
                            Deadline::after_ms(10'000));
    EXPECT_TRUE(result.ok()) << result.why();
    return trim(result.out);
  };
  EXPECT_EQ(complete("thaw che"), "checkpoint");
  EXPECT_EQ(complete("thaw checkpoint i"), "inspect");
  EXPECT_EQ(complete("thaw scale w"), "web\nwide");
  EXPECT_EQ(complete("thaw events --pod we"), "web");
  EXPECT_EQ(complete("thaw daemon --log-format j"), "json");
  EXPECT_EQ(complete("thaw ps --a"), "--all");
  EXPECT_EQ(complete("thaw completion f"), "fish");
}

}  // namespace
}  // namespace thaw::cli
