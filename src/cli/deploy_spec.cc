#include "cli/deploy_spec.h"

#include <cstdlib>
#include <filesystem>

#include "cli/context.h"
#include "cli/image_reference.h"
#include "pods/spec.h"
#include "util/error.h"
#include "util/fd.h"
#include "util/file.h"
#include "util/units.h"

namespace thaw::cli {
namespace {

constexpr const char* kCommandLine = "command line";

Error wrong(const std::string& flag, const std::string& text, const std::string& cause,
            const std::string& remedy) {
  return Error(Code::kInvalid, "use " + flag, text, cause, remedy);
}

std::uint16_t port_number(const std::string& text, const std::string& whole) {
  bool digits = !text.empty() && text.find_first_not_of("0123456789") == std::string::npos;
  int value = digits && text.size() < 6 ? std::stoi(text) : 0;
  if (value < 1 || value > 65535) {
    throw wrong("--port", whole, "'" + text + "' is no port number",
                "give CONTAINER, HOST:CONTAINER or ADDRESS:HOST:CONTAINER, for example 9000:8000");
  }
  return static_cast<std::uint16_t>(value);
}

state::PodSpec read_spec(const std::string& file) {
  if (file.empty()) return {};
  if (file == "-") {
    Fd in(::dup(0));
    return pods::parse_spec(read_all(in, 1 << 20), "stdin", std::filesystem::current_path());
  }
  std::string directory = std::filesystem::path(absolute_path(file)).parent_path();
  return pods::parse_spec(read_file(file, 1 << 20), file, directory);
}

void set_resources(const SpecFlags& flags, state::Resources& resources) {
  if (!flags.cpu.empty()) {
    char* end = nullptr;
    resources.cpu = std::strtod(flags.cpu.c_str(), &end);
    if (*end || !(resources.cpu > 0) || resources.cpu > 1e6) {
      throw wrong("--cpu", flags.cpu, "it is no number of cores", "give one such as 1.5");
    }
  }
  if (!flags.memory.empty()) {
    auto bytes = parse_bytes(flags.memory);
    if (!bytes) throw wrong("--memory", flags.memory, "it is no size", "give one such as 512MiB");
    resources.memory = *bytes;
  }
  if (!flags.pids.empty()) {
    resources.pids = static_cast<std::uint64_t>(number(flags.pids, "--pids", 1, 4'194'304));
  }
  if (!flags.gpu.empty()) resources.gpu = static_cast<int>(number(flags.gpu, "--gpu", 0, 64));
}

void set_environment(const SpecFlags& flags, std::map<std::string, std::string>& env) {
  for (auto& entry : flags.env) {
    std::size_t equals = entry.find('=');
    std::string key = entry.substr(0, equals);
    if (key.empty()) throw wrong("--env", entry, "the name is missing", "give NAME=VALUE or NAME");
    if (equals != std::string::npos) {
      env[key] = entry.substr(equals + 1);
      continue;
    }
    const char* value = std::getenv(key.c_str());
    if (!value) {
      throw wrong("--env", entry, "it has no value, and this shell has no such variable",
                  "give NAME=VALUE or export it");
    }
    env[key] = value;
  }
}

void set_replicas(const SpecFlags& flags, state::PodSpec& spec) {
  if (!flags.min.empty())
    spec.min_replicas = static_cast<int>(number(flags.min, "--min", 0, 1'000'000));
  if (!flags.max.empty())
    spec.max_replicas = static_cast<int>(number(flags.max, "--max", 1, 1'000'000));
  if (!flags.replicas.empty()) {
    int count = static_cast<int>(number(flags.replicas, "--replicas", 0, 1'000'000));
    if (!flags.max.empty() && count > spec.max_replicas) {
      throw wrong("--replicas", flags.replicas, "it is above --max " + flags.max, "raise --max");
    }
    // Whoever asks for more than one and says nothing of a maximum does not mean the default of
    // one.
    spec.max_replicas = std::max(spec.max_replicas, count);
    if (flags.min.empty()) spec.min_replicas = std::min(spec.min_replicas, count);
  }
  if (flags.max.empty()) spec.max_replicas = std::max(spec.max_replicas, spec.min_replicas);
}

state::PodSpec::Idle idle_of(const std::string& text) {
  using Idle = state::PodSpec::Idle;
  for (auto& [name, value] : {std::pair("stop", Idle::kStop),
                              {"freeze", Idle::kFreeze},
                              {"checkpoint", Idle::kCheckpoint}})
    if (text == name) return value;
  throw wrong("--idle", text, "it is not known here", "give stop, freeze or checkpoint");
}

}  // namespace

state::Port parse_port(const std::string& text) {
  state::Port port;
  std::size_t last = text.rfind(':');
  port.container = port_number(last == std::string::npos ? text : text.substr(last + 1), text);
  if (last == std::string::npos) return port;
  std::string host = text.substr(0, last);
  std::size_t colon = host.rfind(':');
  port.host = port_number(colon == std::string::npos ? host : host.substr(colon + 1), text);
  if (colon == std::string::npos) return port;
  port.address = host.substr(0, colon);
  if (port.address.starts_with("[") && port.address.ends_with("]")) {
    port.address = port.address.substr(1, port.address.size() - 2);
  }
  return port;
}

state::Mount parse_mount(const std::string& text) {
  state::Mount mount;
  std::string rest = text;
  if (rest.ends_with(":ro") || rest.ends_with(":rw")) {
    mount.readonly = rest.ends_with(":ro");
    rest.resize(rest.size() - 3);
  }
  std::size_t colon = rest.find(':');
  if (colon == std::string::npos || colon == 0 || rest.find(':', colon + 1) != std::string::npos ||
      rest.substr(colon + 1, 1) != "/") {
    throw wrong("--mount", text, "it is not SOURCE:TARGET with an absolute TARGET",
                "give one such as ./app:/app:ro");
  }
  mount.source = absolute_path(rest.substr(0, colon));
  mount.target = rest.substr(colon + 1);
  return mount;
}

state::PodSpec build_spec(const SpecFlags& flags) {
  state::PodSpec spec = read_spec(flags.file);
  if (flags.file.empty() && flags.name.empty()) {
    throw Error(
        Code::kInvalid, "deploy", {}, "neither a file nor a --name is given",
        "give `thaw deploy pod.yaml`, or --name with --rootfs or --image and a command after --");
  }
  if (!flags.name.empty()) spec.name = flags.name;
  if (!flags.image.empty()) spec.image = absolute_reference(flags.image), spec.rootfs.clear();
  if (!flags.rootfs.empty()) spec.rootfs = absolute_path(flags.rootfs), spec.image = flags.image;
  if (!flags.command.empty()) spec.command = flags.command, spec.args.clear();
  if (!flags.user.empty()) spec.user = flags.user;
  if (!flags.workdir.empty()) spec.workdir = flags.workdir;
  for (auto& port : flags.ports) spec.ports.push_back(parse_port(port));
  for (auto& mount : flags.mounts) spec.mounts.push_back(parse_mount(mount));
  set_environment(flags, spec.env);
  set_resources(flags, spec.resources);
  set_replicas(flags, spec);
  if (!flags.idle.empty()) spec.idle = idle_of(flags.idle);
  if (!flags.checkpoint_when.empty()) {
    spec.checkpoint.when = pods::parse_condition_flag(flags.checkpoint_when, spec.ports);
    spec.checkpoint.enabled = true;
  }
  pods::validate(spec, flags.file.empty() ? kCommandLine : flags.file);
  return spec;
}

}  // namespace thaw::cli
