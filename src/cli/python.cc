#include "cli/python.h"

#include <unistd.h>

#include <cstdlib>
#include <filesystem>

#include "cli/command.h"
#include "util/error.h"
#include "util/file.h"
#include "util/units.h"

namespace thaw::cli {
namespace {

struct ServeOptions {
  std::string target, timeout = "15m";
};

// Where `make install` puts the package, and where it is in a source tree, seen from the program.
std::string package_folder() {
  std::error_code error;
  std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error) return {};
  for (const char* place : {"../lib/thaw/python", "../../sdk/python"}) {
    std::filesystem::path folder = (program.parent_path() / place).lexically_normal();
    if (exists((folder / "thaw/__main__.py").string())) return folder.string();
  }
  return {};
}

int serve(Context& context, const ServeOptions& options) {
  if (!is_python_pod(options.target)) {
    throw Error(Code::kInvalid, "serve", options.target, "it is not FILE.py:NAME",
                "name the file and the pod in it, such as app.py:pod; a YAML file is deployed with "
                "`thaw deploy`");
  }
  auto seconds = duration_us(options.timeout, "--timeout") / 1'000'000;
  return run_python(context,
                    {"serve", options.target, "--verbose", "--timeout", std::to_string(seconds)});
}

}  // namespace

bool is_python_pod(const std::string& argument) {
  auto colon = argument.rfind(':');
  return colon != std::string::npos && colon > 3 && argument.substr(colon - 3, 3) == ".py";
}

int run_python(const Context& context, const std::vector<std::string>& arguments) {
  std::string folder = package_folder();
  if (!folder.empty()) {
    const char* known = std::getenv("PYTHONPATH");
    std::string path = folder + (known && *known ? ":" + std::string(known) : "");
    ::setenv("PYTHONPATH", path.c_str(), 1);
  }
  std::vector<std::string> words{"python3", "-m", "thaw"};
  if (!context.host.empty()) words.insert(words.end(), {"--host", context.host});
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (auto& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  ::execvp("python3", argv.data());
  throw Error(Code::kUnsupported, "run", "python3", "it cannot be executed",
              "install python3 (3.9 or newer)");
}

Command serve_command() {
  auto options = std::make_shared<ServeOptions>();
  Command command{"serve",
                  "Deploy a pod that is written in Python, again whenever its code changes",
                  "Shows what the replicas write. Ctrl-C removes the pod, or stops it where it was "
                  "there before."};
  command.examples = {"thaw serve app.py:pod"};
  command.options = {{"--timeout", "TIME", &options->timeout, "Longest wait for a deploy (15m)"}};
  command.positionals = {
      {"FILE.py:NAME", &options->target, "The file, and the pod in it", true, "@file"}};
  command.run = [options](Context& context) { return serve(context, *options); };
  return command;
}

Command init_command() {
  auto folder = std::make_shared<std::string>(".");
  Command command{"init", "Write an example of a pod in Python to begin with",
                  "app.py, server.py and .thawignore. Files that are there are left alone."};
  command.examples = {"thaw init hello && thaw deploy hello/app.py:pod"};
  command.positionals = {{"FOLDER", folder.get(), "Where (.)", false, "@directory"}};
  command.run = [folder](Context& context) { return run_python(context, {"init", *folder}); };
  return command;
}

}  // namespace thaw::cli
