#include "lifecycle/plan.h"

#include <sys/utsname.h>

#include <set>
#include <sstream>

#include "network/links.h"
#include "util/error.h"
#include "util/file.h"

namespace thaw::lifecycle {
namespace {

using nlohmann::json;

json condition_digest(const state::Condition& condition) {
  json children = json::array();
  for (const auto& child : condition.children) children.push_back(condition_digest(child));
  return {static_cast<int>(condition.kind),
          condition.port,
          condition.path,
          condition.status,
          condition.argv,
          condition.pattern,
          condition.callable,
          condition.workers,
          condition.after_us,
          children};
}

// "KEY=VALUE" list with later values winning, order kept.
class Variables {
 public:
  void set(const std::string& key, const std::string& value) {
    for (auto& [known, old] : list_)
      if (known == key) {
        old = value;
        return;
      }
    list_.emplace_back(key, value);
  }
  bool has(const std::string& key) const {
    return std::any_of(list_.begin(), list_.end(), [&](auto& entry) { return entry.first == key; });
  }
  std::vector<std::string> strings() const {
    std::vector<std::string> all;
    for (auto& [key, value] : list_) all.push_back(key + "=" + value);
    return all;
  }

 private:
  std::vector<std::pair<std::string, std::string>> list_;
};

const char* condition_name(state::Condition::Kind kind) {
  constexpr const char* names[] = {"http",   "tcp",     "exec",  "file", "log", "python",
                                   "notify", "workers", "after", "all",  "any"};
  return names[static_cast<int>(kind)];
}

// Why no replica can be dumped here; "": one can.
std::string no_dump(const state::PodSpec& spec, const std::string& criu_missing) {
  if (spec.resources.gpu > 1)
    return fmt::format(
        "resources.gpu is {}: a tree that uses more than one GPU cannot be checkpointed",
        spec.resources.gpu);
  return criu_missing;
}

}  // namespace

std::string cpu_features() {
  std::string flags;
  std::istringstream lines(read_file("/proc/cpuinfo"));
  for (std::string line; std::getline(lines, line) && flags.empty();)
    if (line.rfind("flags", 0) == 0) flags = line.substr(line.find(':') + 1);
  std::istringstream words(flags);
  std::set<std::string> sorted{std::istream_iterator<std::string>(words), {}};
  std::string joined;
  for (const std::string& flag : sorted) joined += flag + " ";
  return joined;
}

json host_class(const std::string& criu_version) {
  struct utsname kernel;
  ::uname(&kernel);
  std::string model;
  std::istringstream lines(read_file("/proc/cpuinfo"));
  for (std::string line; std::getline(lines, line);) {
    if (line.rfind("model name", 0) == 0 && model.empty())
      model = trim(line.substr(line.find(':') + 1));
  }
  return {{"arch", kernel.machine},
          {"cpu", model},
          {"cpu_features", sha256_hex(cpu_features())},
          {"kernel", kernel.release},
          {"criu", criu_version}};
}

std::string program_digest(const state::PodSpec& spec, const std::string& image_id) {
  json mounts = json::array();
  for (const auto& mount : spec.mounts)
    mounts.push_back({mount.source, mount.target, mount.readonly});
  json secrets = json::array();
  for (const auto& secret : spec.secrets) {
    secrets.push_back({secret.name, secret.file});
    if (!secret.secret.empty()) secrets.back().push_back(secret.secret);
  }
  // A pod's memory holds what it was told and read: it is for no other pod, however alike.
  json all = {spec.name,
              image_id,
              spec.command,
              spec.args,
              spec.env,
              spec.workdir,
              spec.user,
              mounts,
              secrets,
              spec.resources.cpu,
              spec.resources.memory,
              spec.resources.pids,
              spec.resources.gpu,
              spec.checkpoint.before_checkpoint,
              spec.checkpoint.when ? condition_digest(*spec.checkpoint.when) : json()};
  // What is rare does not change the others' digests.
  if (!spec.links.empty()) all.push_back({"links", spec.links});
  if (spec.network == state::PodSpec::Network::kNone) all.push_back("network: none");
  return sha256_hex(all.dump());
}

std::string fingerprint(const std::string& program, const json& host) {
  return sha256_hex(program + host.dump());
}

Effective effective_checkpoint(const state::PodSpec& spec, const std::string& criu_missing) {
  if (!spec.checkpoint.enabled)
    return {false,
            spec.checkpoint.when ? "checkpoint.enabled is false" : "checkpoint.when is not given"};
  if (auto why = no_dump(spec, criu_missing); !why.empty()) return {false, why};
  if (!spec.checkpoint.when) return {false, "checkpoint.when is missing"};
  return {true, ""};
}

Effective effective_pause(const state::PodSpec& spec, const std::string& criu_missing) {
  if (spec.idle != state::PodSpec::Idle::kCheckpoint) return {false, "idle is not checkpoint"};
  std::string why = no_dump(spec, criu_missing);
  return {why.empty(), why};
}

PodPlan make_plan(const state::PodSpec& spec, std::int64_t version, const image::Image* image,
                  const json& host, const std::string& criu_missing, const Settings& settings) {
  PodPlan plan;
  plan.spec = spec;
  plan.version = version;
  plan.image_config = json::object();
  if (image) {
    plan.image_id = image->id;
    plan.rootfs = image->rootfs;
    plan.image_config = image->config;
  } else {
    std::error_code error;
    plan.rootfs = std::filesystem::canonical(spec.rootfs, error);
    if (error || !std::filesystem::is_directory(plan.rootfs))
      throw Error(Code::kInvalid, "use rootfs", spec.rootfs, "it is not a directory",
                  "give the folder of an unpacked root filesystem");
    plan.image_id = image::directory_digest(plan.rootfs);
  }
  // CRIU compares mount points with real paths: a link on the way breaks every restore.
  for (auto& mount : plan.spec.mounts) {
    std::error_code error;
    std::string real = std::filesystem::canonical(mount.source, error);
    if (error)
      throw Error(Code::kInvalid, "mount", mount.source, error.message(),
                  "give an existing file or directory as the mount's source");
    mount.source = real;
  }
  for (state::Secret secret : plan.spec.secrets) {
    bool kept = !secret.secret.empty();
    if (kept) secret.file = settings.sealed_dir() + "/" + secret.secret;
    // One that could not be sealed yet, for want of the key or of room.
    if (std::string plain = settings.secrets_dir() + "/" + secret.secret;
        kept && !exists(secret.file) && exists(plain)) {
      secret.file = plain;
      secret.secret.clear();
    }
    if (!std::filesystem::is_regular_file(secret.file))
      throw Error(
          Code::kInvalid, "use secret", secret.name,
          kept ? "none of the name " + secret.secret + " is kept" : secret.file + " is not a file",
          kept ? "keep it with `thaw secret set`" : "write the secret into that file");
    if (!secret.secret.empty()) runtime::secret_value(secret, settings.key_file());
    plan.secrets.push_back(std::move(secret));
  }
  plan.secrets_key = settings.key_file();
  std::string user = spec.user.empty() ? plan.image_config.value("User", "") : spec.user;
  plan.user = image::resolve_user(plan.rootfs, user);
  runtime::CgroupLayout layout = runtime::CgroupLayout::detect();
  plan.limits = runtime::enforceable(
      spec.resources, [&](const std::string& controller) { return layout.has(controller); });
  plan.program = program_digest(plan.spec, plan.image_id);
  plan.fingerprint = fingerprint(plan.program, host);
  plan.checkpoint = effective_checkpoint(spec, criu_missing);
  plan.pause = effective_pause(spec, criu_missing);
  if (command_of(plan).empty())
    throw Error(Code::kInvalid, "run pod", spec.name, "there is no command",
                "give `command`, or use an image that has an ENTRYPOINT or CMD");
  return plan;
}

std::vector<std::string> command_of(const PodPlan& plan) {
  std::vector<std::string> argv;
  auto add = [&](const json& list) {
    if (list.is_array())
      for (const json& word : list) argv.push_back(word);
  };
  const auto& spec = plan.spec;
  if (!spec.command.empty()) {
    argv = spec.command;
  } else {
    add(plan.image_config.value("Entrypoint", json()));
    if (spec.args.empty()) add(plan.image_config.value("Cmd", json()));
  }
  argv.insert(argv.end(), spec.args.begin(), spec.args.end());
  return argv;
}

std::optional<state::Condition> ready_condition(const state::PodSpec& spec) {
  if (spec.ready || spec.checkpoint.when || spec.ports.empty()) return spec.ready;
  std::set<std::uint16_t> ports;
  for (const auto& port : spec.ports) ports.insert(port.container);
  state::Condition any{.kind = state::Condition::Kind::kAny};
  for (std::uint16_t port : ports)
    any.children.push_back({.kind = state::Condition::Kind::kTcp, .port = port});
  return any.children.size() == 1 ? any.children[0] : any;
}

runtime::ContainerSpec container_of(const PodPlan& plan, const std::string& replica,
                                    const std::string& hostname, const std::string& started_from,
                                    const std::vector<std::string>& layers) {
  runtime::ContainerSpec container;
  container.argv = command_of(plan);
  Variables variables;
  if (plan.image_config.contains("Env") && plan.image_config["Env"].is_array())
    for (const json& text : plan.image_config["Env"]) {
      std::string entry = text;
      if (auto equals = entry.find('='); equals != std::string::npos)
        variables.set(entry.substr(0, equals), entry.substr(equals + 1));
    }
  for (auto& [key, value] : plan.spec.env) variables.set(key, value);
  if (!variables.has("PATH"))
    variables.set("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
  if (!variables.has("HOME")) variables.set("HOME", plan.user.home);
  variables.set("THAW_POD", plan.spec.name);
  variables.set("THAW_REPLICA", replica);
  variables.set("THAW_CHECKPOINT_ENABLED", plan.checkpoint.enabled ? "true" : "false");
  if (plan.spec.checkpoint.when)
    variables.set("THAW_CHECKPOINT_CONDITION", condition_name(plan.spec.checkpoint.when->kind));
  variables.set("NOTIFY_SOCKET", "/run/thaw/notify");
  container.env = variables.strings();
  container.cwd =
      !plan.spec.workdir.empty() ? plan.spec.workdir : plan.image_config.value("WorkingDir", "/");
  if (container.cwd.empty()) container.cwd = "/";
  container.uid = plan.user.uid;
  container.gid = plan.user.gid;
  container.groups = plan.user.groups;
  container.hostname = hostname;
  container.identity = json{{"pod", plan.spec.name},
                            {"replica", replica},
                            {"hostname", hostname},
                            {"generation", replica},
                            {"started_from", started_from}}
                           .dump() +
                       "\n";
  container.lowers = layers;
  container.lowers.push_back(plan.rootfs);
  container.mounts = plan.spec.mounts;
  container.secrets = plan.secrets;
  container.secrets_key = plan.secrets_key;
  container.resources = plan.limits.resources;
  // Of its own workspace also by the short name.
  std::size_t mark = plan.spec.name.find(state::kWorkspaceMark);
  std::string prefix = mark == std::string::npos
                           ? ""
                           : plan.spec.name.substr(0, mark + state::kWorkspaceMark.size());
  for (const std::string& pod : plan.spec.links) {
    container.hosts.emplace_back(network::link_address(pod), pod);
    if (!prefix.empty() && pod.starts_with(prefix))
      container.hosts.emplace_back(network::link_address(pod), pod.substr(prefix.size()));
  }
  container.cut_off = plan.spec.network == state::PodSpec::Network::kNone;
  return container;
}

}  // namespace thaw::lifecycle
