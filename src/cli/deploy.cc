#include "cli/command.h"
#include "cli/deploy_spec.h"
#include "cli/image_reference.h"
#include "cli/progress.h"
#include "cli/python.h"
#include "pods/spec.h"
#include "util/units.h"

namespace thaw::cli {
namespace {

struct DeployOptions {
  SpecFlags spec;
  std::string timeout = "15m";
  bool wait = false, no_wait = false, dry_run = false, json = false, quiet = false;
};

// The daemon knows when as many as are wanted are ready, and why not. How many that is stays as it
// was unless the user says: what connections call for at the moment is no lasting wish.
nlohmann::json start(Context& context, api::Client& client, const DeployOptions& options,
                     const nlohmann::json& result) {
  const auto& pod = result.at("pod");
  std::string path = "/v1/pods/" + api::encode(pod.at("name").get<std::string>()) + "/scale";
  nlohmann::json body;
  if (!options.spec.replicas.empty())
    body["replicas"] = number(options.spec.replicas, "--replicas", 0, 1'000'000);
  if (options.no_wait && options.spec.replicas.empty()) return pod;
  if (options.no_wait) return client.post(path, body);
  body["wait"] = format_duration(duration_us(options.timeout, "--timeout"));
  EventProgress progress(context, pod.at("name"), result.at("last_event"));
  return client.post(path, body);
}

void report(const DeployOptions& options, const nlohmann::json& pod) {
  if (options.json) return print_json(pod);
  if (options.quiet) return print_line(pod.at("name").get<std::string>());
  print_error(fmt::format("{}: {} of {} ready", pod.at("name").get<std::string>(),
                          pod.at("ready").dump(), pod.at("desired").dump()));
  for (auto& port : pod.at("ports")) {
    if (!port.at("url").is_null()) print_line(port.at("url").get<std::string>());
  }
}

// All that a pod is stands in the Python file; what is left is how to deploy it.
int deploy_python(Context& context, const DeployOptions& options) {
  SpecFlags only_file;
  only_file.file = options.spec.file;
  if (options.spec != only_file) {
    throw Error(Code::kInvalid, "deploy", options.spec.file,
                "flags that change the specification do not go with a pod in Python",
                "change the Pod(...) in the file");
  }
  auto seconds = duration_us(options.timeout, "--timeout") / 1'000'000;
  std::vector<std::string> words{"deploy", options.spec.file, "--timeout", std::to_string(seconds)};
  if (options.no_wait) words.push_back("--no-wait");
  if (options.dry_run) words.push_back("--dry-run");
  if (options.json) words.push_back("--json");
  if (options.quiet) words.push_back("--quiet");
  return run_python(context, words);
}

int deploy(Context& context, const DeployOptions& options) {
  duration_us(options.timeout, "--timeout");  // before anything is changed
  if (options.wait && options.no_wait) {
    throw Error(Code::kInvalid, "deploy", {}, "--wait and --no-wait contradict each other",
                "give one of them");
  }
  if (is_python_pod(options.spec.file)) return deploy_python(context, options);
  nlohmann::json spec = pods::to_json(build_spec(options.spec));
  auto client = context.client();
  // The daemon imports an image that it does not have by itself, but cannot tell how far it is.
  if (!options.dry_run && context.progress() &&
      !text_of(spec.value("image", nlohmann::json()), "").empty()) {
    auto images = client.get("/v1/images");
    bool there = std::any_of(images.begin(), images.end(), [&](const auto& row) {
      return row.at("reference") == spec.at("image");
    });
    if (!there) import_image(context, spec.at("image"));
  }
  auto result = client.post(options.dry_run ? "/v1/pods?dry_run=true" : "/v1/pods", spec);
  if (options.dry_run) {
    print_json(result.at("spec"));
    return kOk;
  }
  for (auto& warning : result.at("warnings")) print_error("warning: " + warning.get<std::string>());
  const auto& checkpoint = result.at("pod").at("checkpoint");
  if (checkpoint.at("enabled") && !checkpoint.at("effective") && result.at("warnings").empty()) {
    print_error("warning: no checkpoints: " +
                text_of(checkpoint.at("reason"), "not possible here"));
  }
  report(options, start(context, client, options, result));
  return kOk;
}

}  // namespace

Command deploy_command() {
  auto options = std::make_shared<DeployOptions>();
  SpecFlags& spec = options->spec;
  Command command{"deploy", "Create a pod, or change it to a new specification",
                  "From a file (YAML or JSON, - for stdin), from flags, from a file with flags "
                  "laid over it, or from a pod that is written in Python (app.py:pod). Waits "
                  "until the replicas are ready, showing what happens when stderr is a terminal, "
                  "and prints the URLs."};
  command.examples = {"thaw deploy pod.yaml", "thaw deploy app.py:pod",
                      "thaw deploy --name web --rootfs DIR --port 8000 --checkpoint-when "
                      "http:/health -- python3 app.py"};
  command.options = {
      {"--name", "NAME", &spec.name, "The pod's name"},
      {"--image", "REFERENCE", &spec.image,
       "docker://, oci:, oci-archive:, docker-archive: or dir:", "@file"},
      {"--rootfs", "DIR", &spec.rootfs, "A root file system instead of an image", "@directory"},
      {"-p,--port", "[HOST:]PORT", &spec.ports, "Publish a port of the container; repeatable"},
      {"--checkpoint-when", "COND", &spec.checkpoint_when,
       "Checkpoint when this holds: http:/health, tcp:8000, file:/path, log:REGEX, "
       "python:module:function, exec:COMMAND, notify, workers:N, after:5s"},
      {"-e,--env", "NAME[=VALUE]", &spec.env,
       "An environment variable, this shell's value without =; repeatable"},
      {"-v,--mount", "SRC:DST[:ro]", &spec.mounts, "Mount a host path; repeatable"},
      {"-u,--user", "USER[:GROUP]", &spec.user, "Names of the image or numbers"},
      {"-w,--workdir", "DIR", &spec.workdir, "Working directory in the container"},
      {"--cpu", "CORES", &spec.cpu, "Limit, such as 1.5"},
      {"--memory", "SIZE", &spec.memory, "Limit, such as 2GiB"},
      {"--pids", "N", &spec.pids, "Limit of processes"},
      {"--gpu", "N", &spec.gpu, "GPUs"},
      {"--min", "N", &spec.min, "Least replicas"},
      {"--max", "N", &spec.max, "Most replicas"},
      {"--replicas", "N", &spec.replicas, "Scale to N after the deploy"},
      {"--idle", "HOW", &spec.idle,
       "What becomes of replicas that nobody uses: stop, freeze or checkpoint"},
      {"--wait", "", &options->wait, "Wait until the replicas are ready (the default)"},
      {"--no-wait", "", &options->no_wait, "Return when the pod is written down"},
      {"--timeout", "TIME", &options->timeout, "Longest wait (15m)"},
      {"--dry-run", "", &options->dry_run, "Check only, and print the whole specification"},
      {"--json", "", &options->json, "Print the pod as JSON"},
      {"-q,--quiet", "", &options->quiet, "Print the name only"}};
  command.positionals = {
      {"FILE", &spec.file, "A pod specification, - for stdin; or FILE.py:NAME", false, "@file"}};
  command.rest = &spec.command;
  command.rest_name = "COMMAND...";
  command.run = [options](Context& context) { return deploy(context, *options); };
  return command;
}

}  // namespace thaw::cli
