#include "pods/spec.h"

#include "lifecycle/condition.h"
#include "network/links.h"
#include "pods/condition_spec.h"
#include "pods/document.h"
#include "pods/fields.h"
#include "pods/secret_store.h"
#include "util/error.h"

namespace thaw::pods {
namespace {

using nlohmann::json;
using state::CheckpointSpec;
using state::Mount;
using state::PodSpec;
using state::Port;
using state::Resources;
using state::Route;

constexpr std::int64_t kSecond = 1'000'000, kHour = 3600 * kSecond, kDay = 24 * kHour;
constexpr int kMaxReplicas = 1000;
constexpr std::size_t kMaxLinks = 250;  // addresses of one /24
constexpr std::uint64_t kMinMemory = 1 << 20;
constexpr std::int64_t kMaxPids = 1 << 22;  // the kernel's PID_MAX_LIMIT
const Text kAnyText{.empty_allowed = true};

// --- the tables
// -----------------------------------------------------------------------------------------------------

const std::vector<Field<Mount>>& mount_fields() {
  static const std::vector<Field<Mount>> fields = {
      field("source", &Mount::source, HostPath{},
            "File or folder of the host; a relative path is taken from the folder of the "
            "specification.",
            kRequired),
      field("target", &Mount::target, InnerPath{}, "Where the container sees it.", kRequired),
      field("readonly", &Mount::readonly, Flag{}, "The container cannot write to it."),
  };
  return fields;
}

const std::vector<Field<state::Secret>>& secret_fields() {
  using state::Secret;
  static const std::vector<Field<Secret>> fields = {
      field("name", &Secret::name,
            Text{"[A-Za-z0-9_][-A-Za-z0-9_.]{0,126}",
                 "a file name of letters, digits, '-', '_' and '.'"},
            "Its name below /run/thaw/secrets.", kRequired),
      field("file", &Secret::file, HostPath{},
            "File of the host that holds it; read at every start."),
      field("secret", &Secret::secret,
            Text{kSecretName, "the name of a secret: letters, digits, '-', '_', '.'"},
            "Name of a secret that the daemon keeps (`thaw secret set`); read at every start."),
  };
  return fields;
}

const std::vector<Field<Port>>& port_fields() {
  static const std::vector<Field<Port>> fields = {
      field("container", &Port::container, Integer<std::uint16_t>{1, 65535},
            "The TCP port that the program listens on.", kRequired),
      field("host", &Port::host, Integer<std::uint16_t>{0, 65535},
            "The port of the host; 0: Thaw chooses one at deploy."),
      field("address", &Port::address, IpAddress{},
            "The address of the host to publish on; 0.0.0.0 or :: for all."),
      field("protocol", &Port::protocol,
            RareChoice<Port::Protocol>{
                {{{"tcp", Port::Protocol::kTcp}, {"http", Port::Protocol::kHttp}}},
                Port::Protocol::kTcp},
            "What is spoken: a client that cannot be served is reset, or answered by a 503 that "
            "says why."),
      field(
          "client_address", &Port::client_address,
          RareChoice<Port::ClientAddress>{{{{"gateway", Port::ClientAddress::kGateway},
                                            {"keep", Port::ClientAddress::kKeep},
                                            {"proxy", Port::ClientAddress::kProxy}}},
                                          Port::ClientAddress::kGateway},
          "What the program sees as its client's address: the gateway's, the client's own, or the "
          "gateway's with the client's own in a PROXY protocol header."),
      field("idle_timeout", &Port::idle_timeout_us, OptionalDuration{{0, 30 * kDay}},
            "Time without a byte after which a connection is ended; 0s: never. The daemon's "
            "--idle-time when absent."),
  };
  return fields;
}

// The long form, or 8000, "9000:8000" and "0.0.0.0:9000:8000" as docker and podman have them.
struct PortType {
  Port read(const Place& at) const {
    if (at.node.kind != Node::Kind::kText) return Object<Port>{port_fields}.read(at);
    std::string text = at.text();
    constexpr const char* remedy =
        "write 8000, \"9000:8000\" (host:container), \"0.0.0.0:9000:8000\" or {container: 8000, "
        "host: 9000}";
    if (text.find('/') != std::string::npos)
      at.refuse(quote(text) + " names a protocol, and only TCP is published", remedy);
    std::vector<std::string> parts;  // from the right: container, host, address
    while (parts.size() < 2) {
      std::size_t colon = text.rfind(':');
      parts.push_back(colon == std::string::npos ? text : text.substr(colon + 1));
      if (colon == std::string::npos) break;
      text.resize(colon);
      if (parts.size() == 2) parts.push_back(text);
    }
    Node long_form = Node::map({});
    for (auto& part : parts)
      if (part.empty()) at.refuse(quote(at.text()) + " is not a port", remedy);
    auto is_number = [](const std::string& part) {
      return part.find_first_not_of("0123456789") == std::string::npos;
    };
    if (!is_number(parts[0]) || (parts.size() > 1 && !is_number(parts[1])))
      at.refuse(quote(at.text()) + " is not a port", remedy);
    long_form.items.push_back(Node::value(parts[0], false).named("container"));
    if (parts.size() > 1) long_form.items.push_back(Node::value(parts[1], false).named("host"));
    if (parts.size() > 2) {
      std::string address = parts[2];
      if (address.starts_with('[') && address.ends_with(']'))
        address = address.substr(1, address.size() - 2);
      long_form.items.push_back(Node::value(address).named("address"));
    }
    for (auto& item : long_form.items) item.line = at.node.line;
    return Object<Port>{port_fields}.read({at.reading, long_form, at.path});
  }
  json write(const Port& port) const { return Object<Port>{port_fields}.write(port); }
  json schema() const {
    return {{"anyOf",
             {Integer<int>{1, 65535}.schema(),
              {{"type", "string"}, {"pattern", "^((.+:)?[0-9]+:)?[0-9]+$"}},
              Object<Port>{port_fields}.schema()}}};
  }
};

// Lower case, since names of hosts have none.
struct HostName {
  std::string read(const Place& at) const {
    std::string name =
        Text{
            "(\\*\\.)?[A-Za-z0-9]([-A-Za-z0-9]*[A-Za-z0-9])?(\\.[A-Za-z0-9]([-A-Za-z0-9]*["
            "A-Za-z0-9])?)*",
            "a host's name, such as app.example.com or *.example.com"}
            .read(at);
    for (char& c : name) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
    return name;
  }
  json write(const std::string& value) const { return value.empty() ? json() : json(value); }
  json schema() const { return {{"type", "string"}, {"minLength", 1}}; }
};

const std::vector<Field<Route>>& route_fields() {
  static const std::vector<Field<Route>> fields = {
      field("host", &Route::host, HostName{},
            "The host that is asked for, or *.DOMAIN for all below a domain; any when absent."),
      field("path", &Route::path,
            Text{"/[^\\s?#]*", "a path that begins with '/', without '?' and '#'"},
            "Requests for this path and what is below it."),
      field("port", &Route::port, Integer<std::uint16_t>{1, 65535},
            "The port that the program listens on; the first of ports when absent."),
  };
  return fields;
}

struct RouteType : Object<Route> {
  Route read(const Place& at) const {
    Route route = Object::read(at);
    while (route.path.size() > 1 && route.path.back() == '/') route.path.pop_back();
    if (!route.port) route.port = at.reading.default_port;
    if (!route.port)
      at.refuse("it names no port, and the pod has no ports", "add port: 8000, or ports: [8000]");
    return route;
  }
  json schema() const {
    json result = Object::schema();
    result["properties"]["port"].erase("default");
    return result;
  }
};

const Text kPodName{
    "[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?",
    "a DNS label: at most 63 lower-case letters, digits and '-', a letter or digit at either end"};

const std::vector<Field<Resources>>& resource_fields() {
  static const std::vector<Field<Resources>> fields = {
      field("cpu", &Resources::cpu, Cores{}, "Cores at most, such as 1.5 or 500m; 0: no limit."),
      field("memory", &Resources::memory, Bytes{kMinMemory},
            "Memory at most, such as 2GiB; 0: no limit."),
      field("pids", &Resources::pids, Integer<std::uint64_t>{1, kMaxPids},
            "Processes and threads at most."),
      field("gpu", &Resources::gpu, Integer<int>{0, 64}, "Number of GPUs."),
  };
  return fields;
}

const std::vector<Field<PodSpec>>& replica_fields() {
  static const std::vector<Field<PodSpec>> fields = {
      field("min", &PodSpec::min_replicas, Integer<int>{0, kMaxReplicas},
            "Replicas that always run; with 0 the first request starts one. 1 when absent."),
      field("max", &PodSpec::max_replicas, Integer<int>{1, kMaxReplicas},
            "Replicas at most. The larger of min and 1 when absent."),
      field("standby", &PodSpec::standby, Integer<int>{0, kMaxReplicas},
            "Replicas restored ahead of time and frozen, beside those that run."),
      field("standby_warm", &PodSpec::standby_warm, Flag{},
            "A standby answers its probe before it is frozen; false: it waits before its first "
            "instruction."),
      field("concurrency", &PodSpec::concurrency, Integer<int>{1, 100'000},
            "Connections for each replica before another one is started."),
      field("hard", &PodSpec::hard, RareFlag{},
            "No replica gets more connections than concurrency; the others wait until one has "
            "room."),
      field("keep_warm", &PodSpec::keep_warm_us, Duration{0, kDay},
            "Time without traffic after which replicas beyond min go."),
      field("drain", &PodSpec::drain_us, Duration{0, kDay},
            "Time that a replica's connections have to end when scaling or a new version takes it "
            "away; with `thaw stop` it is stop_grace."),
      field("scale_down_delay", &PodSpec::scale_down_delay_us, Duration{0, kDay},
            "Time with less traffic after which the replicas it does not need go."),
  };
  return fields;
}

// {min: 0, max: 4}, or a plain number for both.
struct Replicas : Object<PodSpec> {
  void read(const Place& at, PodSpec& spec) const {
    if (at.node.kind == Node::Kind::kText) {
      spec.min_replicas = spec.max_replicas = Integer<int>{0, kMaxReplicas}.read(at);
      if (!spec.max_replicas)
        at.refuse("0 is minimum and maximum, so that none could ever run",
                  "write {min: 0, max: 1} to start one at the first request");
      return;
    }
    read_into(at, spec);
    if (!at.node.find("max")) spec.max_replicas = std::max(spec.min_replicas, 1);
  }
  json schema() const {
    json object = Object::schema();
    for (const char* key : {"min", "max"}) object["properties"][key].erase("default");
    return {{"anyOf", {Integer<int>{1, kMaxReplicas}.schema(), object}}};
  }
};

struct When {  // may be absent
  std::optional<state::Condition> read(const Place& at) const { return ConditionType{}.read(at); }
  json write(const std::optional<state::Condition>& condition) const {
    return condition ? ConditionType{}.write(*condition) : json();
  }
  json schema() const { return ConditionType{}.schema(); }
};

const std::vector<Field<state::Alive>>& alive_fields() {
  using state::Alive;
  static const std::vector<Field<Alive>> fields = {
      field("probe", &Alive::probe, ConditionType{},
            "What must hold again and again: http, tcp, exec, file or python.", kRequired),
      field("every", &Alive::every_us, Duration{100'000, kHour}, "Time between two probes."),
      field("timeout", &Alive::timeout_us, Duration{100'000, kHour}, "How long one may take."),
      field("failures", &Alive::failures, Integer<int>{1, 1000},
            "How many in a row must fail before the replica is killed."),
  };
  return fields;
}

struct AliveType : Object<state::Alive> {  // may be absent
  std::optional<state::Alive> read(const Place& at) const {
    state::Alive alive = Object::read(at);
    if (lifecycle::readiness_probe(alive.probe) != alive.probe)
      at.refuse("its probe holds what cannot be asked again",
                "use http, tcp, exec, file, python, or all or any of them");
    return alive;
  }
  json write(const std::optional<state::Alive>& alive) const {
    return alive ? Object::write(*alive) : json();
  }
};

const std::vector<Field<CheckpointSpec>>& checkpoint_fields() {
  using C = CheckpointSpec;
  static const std::vector<Field<C>> fields = {
      field("enabled", &C::enabled, Flag{},
            "Checkpoint the first warm replica and start later ones from it. True when absent and "
            "`when` is given."),
      field("when", &C::when, When{},
            "The condition that must hold before a replica counts as warm."),
      field("timeout", &C::timeout_us, Duration{kSecond, kDay}, "How long the condition may take."),
      field("on_timeout", &C::on_timeout,
            Choice<C::OnTimeout>{{{"serve", C::OnTimeout::kServe}, {"fail", C::OnTimeout::kFail}}},
            "What becomes of a replica whose condition did not hold in time: it serves without a "
            "checkpoint, or it fails."),
      field("verify", &C::verify, Flag{},
            "Prove a new checkpoint by restoring it once before it is offered."),
      field("memory", &C::memory,
            Choice<C::Memory>{{{"lazy", C::Memory::kLazy},
                               {"background", C::Memory::kBackground},
                               {"eager", C::Memory::kEager}}},
            "Bring memory back when it is touched, the same and the rest at leisure afterwards, or "
            "all of it before the replica resumes."),
      field("before_checkpoint", &C::before_checkpoint, ListOf<Text>{kAnyText},
            "A program to run in the replica before it is dumped. When it fails there is no dump."),
      field("after_restore", &C::after_restore, ListOf<Text>{kAnyText},
            "A program to run in a restored replica before its gate opens, such as one that makes "
            "it draw other random numbers than its siblings. When it fails so has the restore."),
  };
  return fields;
}

// A condition without `enabled` means that a checkpoint is wanted.
struct Checkpoint : Object<CheckpointSpec> {
  CheckpointSpec read(const Place& at) const {
    CheckpointSpec spec = Object::read(at);
    if (!at.node.find("enabled")) spec.enabled = spec.when.has_value();
    return spec;
  }
  json schema() const {
    json result = Object::schema();
    result["properties"]["enabled"].erase("default");
    return result;
  }
};

Field<PodSpec> routes_field() {
  Field<PodSpec> routes =
      field("routes", &PodSpec::routes, RareList<RouteType>{{{{route_fields}}}},
            "Requests of the daemon's shared HTTP port (--front) that come to this pod.");
  routes.read = [read = routes.read](const Place& at, PodSpec& spec) {
    at.reading.default_port = spec.ports.empty() ? 0 : spec.ports[0].container;
    read(at, spec);
  };
  return routes;
}

const std::vector<Field<PodSpec>>& pod_fields() {
  static const std::vector<Field<PodSpec>> fields = [] {
    std::vector<Field<PodSpec>> table = {
        field("name", &PodSpec::name, kPodName, "The pod's name, a DNS label.", kRequired),
        field("image", &PodSpec::image, ImageReference{},
              "The image, such as docker://python:3.12 or oci:./images/app:1; this or rootfs."),
        field("rootfs", &PodSpec::rootfs, HostPath{},
              "A folder to use as the root file system; this or image."),
        field("command", &PodSpec::command, ListOf<Text>{kAnyText},
              "What to run; the image's ENTRYPOINT and CMD when absent."),
        field("args", &PodSpec::args, ListOf<Text>{kAnyText},
              "Arguments after the command, or in place of the image's CMD."),
        field("env", &PodSpec::env, Variables{},
              "Environment variables, beside those of the image."),
        field("workdir", &PodSpec::workdir, InnerPath{},
              "Working folder; the image's when absent."),
        field("user", &PodSpec::user,
              Text{"[^\\s:]+(:[^\\s:]+)?", "of the form user or user:group, by number or by name"},
              "Who runs the command, such as \"1000:1000\"; the image's when absent."),
        field("mounts", &PodSpec::mounts, ListOf<Object<Mount>>{{mount_fields}},
              "Files and folders of the host; they do not belong to a checkpoint."),
        field("secrets", &PodSpec::secrets, ListOf<Object<state::Secret>>{{secret_fields}},
              "Secrets, of files of the host or of the daemon's, that are shown below "
              "/run/thaw/secrets; in memory, in no checkpoint."),
        field("ports", &PodSpec::ports, ListOf<PortType>{},
              "Published TCP ports; the first one is the default of http and tcp conditions."),
        routes_field(),
        field(
            "network", &PodSpec::network,
            RareChoice<PodSpec::Network>{
                {{{"nat", PodSpec::Network::kNat}, {"none", PodSpec::Network::kNone}}},
                PodSpec::Network::kNat},
            "Whether replicas reach the outside, through the host's addresses; clients reach them "
            "in both cases."),
        field("links", &PodSpec::links, RareList<Text>{{kPodName, 0, kMaxLinks}},
              "Pods that this one reaches, by their names; from other pods it is cut off."),
        field("resources", &PodSpec::resources, Object<Resources>{resource_fields},
              "Limits of each replica."),
    };
    Replicas replicas{{replica_fields}};
    table.push_back({"replicas", "How many run.", false,
                     [=](const Place& at, PodSpec& spec) { replicas.read(at, spec); },
                     [=](const PodSpec& spec) { return replicas.write(spec); },
                     [=] { return replicas.schema(); }});
    for (Field<PodSpec> conditional :
         {field("checkpoint", &PodSpec::checkpoint, Checkpoint{{checkpoint_fields}},
                "When to checkpoint, and how to restore."),
          field("ready", &PodSpec::ready, When{},
                "What must hold before a replica gets traffic; checkpoint.when when absent, or "
                "that one of its ports listens."),
          field("alive", &PodSpec::alive, AliveType{{alive_fields}},
                "What must hold while it gets traffic, or else it is killed and replaced.")}) {
      conditional.read = [read = conditional.read](const Place& at, PodSpec& spec) {
        at.reading.default_port = spec.ports.empty() ? 0 : spec.ports[0].container;
        read(at, spec);
      };
      table.push_back(std::move(conditional));
    }
    table.push_back(field("idle", &PodSpec::idle,
                          RareChoice<PodSpec::Idle>{{{{"stop", PodSpec::Idle::kStop},
                                                      {"freeze", PodSpec::Idle::kFreeze},
                                                      {"checkpoint", PodSpec::Idle::kCheckpoint}}},
                                                    PodSpec::Idle::kStop},
                          "What becomes of replicas beyond min that nobody uses: they are stopped, "
                          "frozen where they are, or kept in a checkpoint of their own; the next "
                          "request finds the last two as it left them."));
    table.push_back(field("stop_grace", &PodSpec::stop_grace_us, Duration{0, kHour},
                          "Time from SIGTERM to SIGKILL."));
    return table;
  }();
  return fields;
}

// --- what one field alone cannot know
// ---------------------------------------------------------------------------------

class Checks {
 public:
  Checks(const Reading& reading, const PodSpec& spec) : reading_(reading), spec_(spec) {}

  void run() const {
    program();
    variables();
    mounts();
    ports();
    routes();
    links();
    secrets();
    if (spec_.min_replicas > spec_.max_replicas)
      refuse("replicas",
             "min " + std::to_string(spec_.min_replicas) + " is more than max " +
                 std::to_string(spec_.max_replicas),
             "raise max or lower min");
    if (spec_.checkpoint.enabled && !spec_.checkpoint.when)
      refuse("checkpoint", "it is enabled, but says not when",
             "add when, such as when: {http: {path: /health}}, or enabled: false");
  }

 private:
  [[noreturn]] void refuse(const std::string& path, std::string cause, std::string remedy) const {
    throw Error(Code::kInvalid, "read the pod specification", reading_.locate(path),
                std::move(cause), std::move(remedy));
  }

  void program() const {
    if (spec_.image.empty() == spec_.rootfs.empty())
      refuse(
          spec_.image.empty() ? "" : "rootfs",
          spec_.image.empty() ? "it has neither image nor rootfs" : "it has both image and rootfs",
          "give exactly one of them");
    if (!spec_.rootfs.empty() && spec_.command.empty())
      refuse("rootfs", "a rootfs has no command of its own", "add command");
    if (!spec_.command.empty() && spec_.command[0].empty())
      refuse("command[0]", "the program's name is empty", "write the program to run");
  }

  void variables() const {
    static constexpr std::string_view kOurs[] = {"THAW_POD", "THAW_REPLICA",
                                                 "THAW_CHECKPOINT_ENABLED",
                                                 "THAW_CHECKPOINT_CONDITION", "NOTIFY_SOCKET"};
    for (std::string_view name : kOurs)
      if (spec_.env.contains(std::string(name)))
        refuse("env." + std::string(name), "Thaw sets this variable itself", "leave it out");
  }

  static bool within(const std::string& path, const std::string& folder) {
    return path == folder || folder == "/" || path.starts_with(folder + "/");
  }

  void mounts() const {
    for (std::size_t i = 0; i < spec_.mounts.size(); ++i) {
      const std::string& target = spec_.mounts[i].target;
      std::string path = "mounts[" + std::to_string(i) + "].target";
      if (target == "/") refuse(path, "/ is the root file system", "use rootfs for that");
      for (const char* ours : {"/proc", "/sys", "/run/thaw"})
        if (within(target, ours))
          refuse(path, std::string(ours) + " belongs to Thaw", "mount it elsewhere");
      if (target == "/dev") refuse(path, "/dev belongs to Thaw", "mount it elsewhere");
      for (std::size_t j = 0; j < i; ++j) {
        const std::string& earlier = spec_.mounts[j].target;
        std::string which = "mounts[" + std::to_string(j) + "]";
        if (earlier == target)
          refuse(path, target + " is the target of " + which + ", too",
                 "give each mount a target of its own");
        if (within(earlier, target))
          refuse(path, target + " would hide " + earlier + " of " + which,
                 "put this mount before that one");
      }
    }
  }

  void ports() const {
    auto any = [](const Port& port) { return port.address == "0.0.0.0" || port.address == "::"; };
    for (std::size_t i = 0; i < spec_.ports.size(); ++i)
      for (std::size_t j = 0; j < i; ++j) {
        const Port &a = spec_.ports[j], &b = spec_.ports[i];
        std::string path = "ports[" + std::to_string(i) + "]",
                    which = "ports[" + std::to_string(j) + "]";
        if (a == b) refuse(path, "it is the same as " + which, "leave one of them out");
        bool overlap = a.address == b.address || any(a) || any(b);
        if (a.host && a.host == b.host && overlap)
          refuse(path, "port " + std::to_string(b.host) + " of the host is taken by " + which,
                 "give each its own host port or address");
      }
  }

  void routes() const {
    for (std::size_t i = 0; i < spec_.routes.size(); ++i)
      for (std::size_t j = 0; j < i; ++j)
        if (spec_.routes[i].host == spec_.routes[j].host &&
            spec_.routes[i].path == spec_.routes[j].path)
          refuse("routes[" + std::to_string(i) + "]",
                 "it matches the same requests as routes[" + std::to_string(j) + "]",
                 "leave one of them out");
  }

  void secrets() const {
    for (std::size_t i = 0; i < spec_.secrets.size(); ++i) {
      const state::Secret& one = spec_.secrets[i];
      std::string path = "secrets[" + std::to_string(i) + "]";
      if (one.file.empty() == one.secret.empty())
        refuse(path, one.file.empty() ? "neither file nor secret is given" : "it has a file, too",
               "give file, a file of the host, or secret, the name of one that is kept");
      for (std::size_t j = 0; j < i; ++j)
        if (one.name == spec_.secrets[j].name)
          refuse(path + ".name", "two secrets have this name", "give each a name of its own");
    }
  }

  void links() const {
    for (std::size_t i = 0; i < spec_.links.size(); ++i) {
      std::string path = "links[" + std::to_string(i) + "]";
      if (spec_.links[i] == spec_.name) refuse(path, "it is the pod itself", "leave it out");
      for (std::size_t j = 0; j < i; ++j)
        if (spec_.links[i] == spec_.links[j])
          refuse(path, "it is the same as links[" + std::to_string(j) + "]",
                 "leave one of them out");
      for (std::size_t j = 0; j < i; ++j)
        if (network::link_address(spec_.links[i]) == network::link_address(spec_.links[j]))
          refuse(path, "its address is that of links[" + std::to_string(j) + "] by chance",
                 "give one of the pods another name");
    }
    if (!spec_.links.empty() && spec_.network == PodSpec::Network::kNone)
      refuse("links", "a pod with network: none reaches nothing",
             "leave out links, or network: none");
  }

  const Reading& reading_;
  const PodSpec& spec_;
};

// People bring the files that they have.
void refuse_foreign(const Place& at) {
  const Node* kind = at.node.find("kind");
  if (kind || at.node.find("apiVersion")) {
    std::string what = kind && kind->kind == Node::Kind::kText ? " (kind: " + kind->text + ")" : "";
    at.refuse("this is a Kubernetes manifest" + what + ", not a pod specification of Thaw",
              "write name, image, command, ports and checkpoint at the top level; on a cluster, "
              "name Thaw as the manifest's runtimeClassName instead");
  }
  if (at.node.find("services"))
    at.refuse(
        "this is a Compose file, not a pod specification of Thaw",
        "write one file for each service, with name, image, command and ports at the top level");
}

PodSpec read(const Node& document, Reading& reading) {
  reading.lines[""] = document.line;
  Place root{reading, document, ""};
  root.expect(Node::Kind::kMap, "a mapping with name, image, command, ports and so on");
  refuse_foreign(root);
  PodSpec spec = Object<PodSpec>{pod_fields}.read(root);
  Checks(reading, spec).run();
  return spec;
}

}  // namespace

PodSpec parse_spec(std::string_view text, const std::string& file, const std::string& base_dir) {
  Node document = parse_document(text, file);
  Reading reading{.file = file, .base_dir = base_dir};
  return read(document, reading);
}

json to_json(const PodSpec& spec) { return Object<PodSpec>{pod_fields}.write(spec); }

PodSpec from_json(const json& value) {
  Node document = document_of(value);
  Reading reading;
  return read(document, reading);
}

// By reading what would be written: so a specification made by hand, as by the command line, meets
// the same checks as a file.
void validate(const PodSpec& spec, const std::string& file) {
  json written = to_json(spec);
  try {
    written.dump();
  } catch (const json::exception&) {
    throw Error(Code::kInvalid, "read the pod specification", file,
                "it holds text that is not UTF-8");
  }
  Node document = document_of(written);
  Reading reading{.file = file};
  const json plain = to_json(read(document, reading));
  for (auto& [key, value] : written.items())
    if (plain.at(key) != value)
      throw Error(Code::kInvalid, "read the pod specification", reading.locate(key),
                  "it is not in its plain form",
                  "write " + quote(plain.at(key).dump()) + " in place of " + quote(value.dump()));
}

json json_schema() {
  json schema = Object<PodSpec>{pod_fields}.schema();
  schema["$schema"] = "https://json-schema.org/draft/2020-12/schema";
  schema["title"] = "Pod specification of Thaw";
  schema["oneOf"] = json::array({{{"required", {"image"}}}, {{"required", {"rootfs", "command"}}}});
  schema["$defs"] = {{"condition", ConditionType::definition()}};
  return schema;
}

}  // namespace thaw::pods
