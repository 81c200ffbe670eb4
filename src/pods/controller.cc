#include "pods/controller.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include <cerrno>
#include <span>
#include <tuple>

#include "checkpoint/criu_install.h"
#include "gateway/gateway.h"
#include "image/images.h"
#include "lifecycle/checkpoints.h"
#include "lifecycle/plan.h"
#include "lifecycle/replica.h"
#include "lifecycle/slots.h"
#include "lifecycle/turns.h"
#include "network/links.h"
#include "network/network.h"
#include "pods/memory_pressure.h"
#include "pods/metrics.h"
#include "pods/secret_store.h"
#include "pods/secrets.h"
#include "pods/spec.h"
#include "pods/traffic.h"
#include "util/error.h"
#include "util/fault.h"
#include "util/file.h"
#include "util/finally.h"
#include "util/holder.h"
#include "util/log.h"

namespace thaw::pods {
namespace {

using lifecycle::PodPlan;
using lifecycle::Replica;
using lifecycle::State;

constexpr int kKeptReplicas = 20;  // ended ones, for `thaw ps -a`
constexpr std::int64_t kFirstPauseUs = 1'000'000, kLongestPauseUs = 300'000'000;
constexpr std::uint64_t kDiskReserve = 256u << 20;  // left for what the daemon itself writes
constexpr std::int64_t kRefillPauseUs = 300'000;
constexpr std::int64_t kLeastCheckUs = 100'000;  // between two looks at what is in use
constexpr std::int64_t kLeastQuietUs = 1'000'000;
constexpr std::int64_t kExecWarmUs = 10'000'000, kExecWakeUs = 120'000'000;
constexpr std::int64_t kTroublePauseUs = 1'000'000;
constexpr std::int64_t kSettledUs =
    60'000'000;  // a replica that was ready this long has ended a crash loop

class GatewayGate : public lifecycle::Gate {
 public:
  GatewayGate(gateway::Gateway& gateway, Predecessors& predecessors)
      : gateway_(gateway), predecessors_(predecessors) {}
  void open(const state::PodSpec& spec, const std::string& replica, const Fd& netns,
            bool restored) override {
    gateway::Offer offer = offer_of(spec);
    offer.restored = restored;
    gateway_.open_gate(spec.name, replica, netns, offer);
    try {
      predecessors_.open(spec.name, replica, netns, offer);
    } catch (...) {
      gateway_.close_gate(spec.name, replica);
      throw;
    }
  }
  void close(const std::string& pod, const std::string& replica) override {
    gateway_.close_gate(pod, replica);
    predecessors_.close(pod, replica);
  }
  Fd drained(const std::string& replica) override { return gateway_.drained(replica); }
  void drop(const std::string& replica) override {
    gateway_.drop(replica);
    predecessors_.drop(replica);
  }
  void end_quiet(const std::string& replica, std::int64_t quiet_us) override {
    gateway_.end_quiet(replica, quiet_us);
  }

 private:
  gateway::Gateway& gateway_;
  Predecessors& predecessors_;
};

// A data directory has one daemon. Released by the kernel when the daemon dies, however it dies.
Fd lock_directory(const std::string& path) {
  // Group thaw must be able to pass through to the socket; what is secret below has its own mode.
  make_directories(path, 0711);
  Fd lock = Fd::open(path + "/lock", O_RDWR | O_CREAT, 0600);
  if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0)
    throw Error(Code::kConflict, "use data directory", path, "another thaw daemon uses it",
                "stop that one, or give another --data-dir");
  return lock;
}

void warn_of_secrets(const PodPlan& plan, std::vector<std::string>& warnings) {
  for (auto& [key, value] : plan.spec.env)
    if (looks_secret(key, value))
      warnings.push_back("env." + key +
                         " looks like a secret: the checkpoint holds it; give it as a file under "
                         "`secrets`");
  for (const nlohmann::json& entry : plan.image_config.value("Env", nlohmann::json::array()))
    if (std::string key = secret_name(entry.get<std::string>()); !key.empty())
      warnings.push_back("the image's variable " + key +
                         " looks like a secret: whoever has the image or a checkpoint has it");
}

constexpr const char* kNetworkLock = "the network instance's lock";  // with the holder

// The network's number that living replicas are bound to; -1, any that is free, when none is left:
// another daemon may have taken the last one meanwhile.
int preferred_instance(state::Database& database, const std::string& data_dir) {
  std::error_code none;
  std::filesystem::directory_iterator slots(data_dir + "/slots", none);
  std::string text = database.setting("network_instance");
  return text.empty() || slots == std::filesystem::directory_iterator() ? -1 : std::stoi(text);
}

std::string unique_match(const std::vector<std::string>& ids, const std::string& prefix,
                         const char* what) {
  std::string found;
  for (const std::string& id : ids) {
    if (id == prefix) return id;
    if (id.rfind(prefix, 0) != 0) continue;
    if (!found.empty())
      throw Error(Code::kInvalid, std::string("find ") + what, prefix, "several begin so",
                  "give more of its id");
    found = id;
  }
  return found;
}

}  // namespace

struct Controller::Impl {
  struct Pod {
    state::PodRow row;
    state::PodSpec spec;
    std::optional<PodPlan> plan;
    std::string broken;             // why there is no plan
    std::string unpublished;        // why nothing listens on its ports
    int mend_failures = 0;          // in a row
    std::int64_t mend_us = 0;       // monotonic: when both are tried again
    std::int64_t requested_us = 0;  // monotonic: the request that the next replicas are started for
    int failures = 0;               // in a row
    std::int64_t pause_until_us = 0;  // monotonic
    std::string last_failure;
    std::int64_t last_failure_us = 0;  // monotonic
    int demand = 0;  // replicas that its connections call for, beyond those that the user wants
    std::int64_t demand_check_us = 0;  // monotonic: when fewer may do
    // What goes goes for want of connections, not by the user's word: `idle` says how.
    bool unused = true;
    // The version before, as long as the present one does not serve, and how many it had.
    std::optional<PodPlan> earlier;
    std::int64_t earlier_count = 0, earlier_pause_until_us = 0;
    int earlier_failures = 0;
    bool ways_of_earlier = false;  // ports and routes of an earlier version are there, too
    int standby_failures = 0;
    std::int64_t standby_pause_us = 0;  // monotonic
  };

  explicit Impl(lifecycle::Settings wanted)
      : settings(std::move(wanted)),
        criu(find_criu()),
        host(lifecycle::host_class(criu.version)),
        predecessors(settings),
        lock_file(take_directory()),
        holder(settings.hold_listeners ? std::make_unique<Holder>(settings.private_dir())
                                       : nullptr),
        database(settings.database()),
        secrets(settings.sealed_dir(), settings.secrets_dir(), settings.key_file()),
        gateway(
            traffic_limits(settings), [this](const std::string& pod) { needs_more(pod); },
            holder.get()),
        front(make_front(settings, gateway, holder.get())),
        network(std::make_unique<network::Network>("/run/thaw",
                                                   preferred_instance(database, settings.data_dir),
                                                   holder ? holder->take(kNetworkLock) : Fd())),
        slots(settings, criu, *network),
        turns(static_cast<int>(std::max(1u, std::thread::hardware_concurrency()))),
        checkpoints(settings, database, slots, turns, host, [this] { signal_event(wake); }),
        gate(gateway, predecessors) {
    // One of the listening sockets has the instance's address.
    if (holder) holder->keep(kNetworkLock, network->lock());
    // Only a preference: a full disk must not keep the daemon from taking back its replicas.
    try {
      database.put_setting("network_instance", std::to_string(network->instance()));
    } catch (const Error& error) {
      log::warn("the network's number could not be written down", {{"error", error.what()}});
    }
  }

  ~Impl() { predecessors.leave(); }  // while there is a gateway

  checkpoint::CriuInstall find_criu() {
    try {
      checkpoint::CriuInstall install = checkpoint::find_criu(settings.criu_home);
      checkpoint::prime_kernel_cache(install);
      return install;
    } catch (const Error& error) {
      // Pods run without it, only never warm.
      criu_missing = error.what();
      log::warn("checkpoints are off", {{"reason", criu_missing}});
      return {};
    }
  }

  Fd take_directory() {
    if (settings.replace) predecessors.take_over();
    return lock_directory(settings.data_dir);
  }

  lifecycle::Settings settings;
  // What takes time and needs nothing of an earlier daemon comes first: that one serves meanwhile.
  std::string criu_missing;
  checkpoint::CriuInstall criu;
  nlohmann::json host;
  Predecessors predecessors;
  Fd lock_file;
  std::unique_ptr<Holder> holder;
  state::Database database;
  SecretStore secrets;
  Fd wake = Fd::event();    // readable: the reconciler has work
  Fd ending = Fd::event();  // readable: the daemon ends
  MemoryPressure pressure;
  std::mutex needy_mutex;
  std::set<std::string> needy;  // pods whose connections call for more replicas
  Links links{database};
  gateway::Gateway gateway;
  std::unique_ptr<front::Front> front;
  // After what a wrong setting makes fail: what it puts on the host stays when the daemon ends.
  std::unique_ptr<network::Network> network;  // until another daemon takes over
  lifecycle::Slots slots;
  lifecycle::Turns turns;
  lifecycle::Checkpoints checkpoints;
  GatewayGate gate;
  Metrics metrics{database};

  std::mutex mutex;
  std::condition_variable changed;
  std::map<std::string, Pod> pods;
  std::map<std::string, std::shared_ptr<Replica>> replicas;
  bool closing = false, running = false;
  std::vector<std::pair<state::ReplicaRow, std::string>> lost;  // with an earlier daemon, and why
  bool recovered = false;
  std::map<std::string, std::string> troubles;  // what the reconciler cannot do, and why; its own
  std::set<std::string> in_change;              // pods that are being deployed or removed
  std::thread reconciler, mender;

  lifecycle::Services services() { return {settings, database, slots, checkpoints, turns, gate}; }

  void poke() {
    std::scoped_lock lock(mutex);
    poke_locked();
  }

  void poke_locked() {
    changed.notify_all();
    signal_event(wake);
  }

  // On the gateway's thread, which others wait for while they hold our mutex.
  void needs_more(const std::string& pod, bool now = true) {
    {
      std::scoped_lock lock(needy_mutex);
      needy.insert(pod);
    }
    if (now) signal_event(wake);
  }

  Pod& find_pod(const std::string& name) {
    auto found = pods.find(name);
    if (found != pods.end()) return found->second;
    std::string known;
    for (auto& [other, pod] : pods) known += (known.empty() ? "" : ", ") + other;
    throw Error(Code::kNotFound, "find pod", name, "there is no such pod",
                known.empty() ? "deploy it first" : "there are: " + known);
  }

  // Without `import`: kUnavailable when the image is not in the store.
  PodPlan plan_for(const state::PodSpec& spec, std::int64_t version, bool import = true) {
    if (spec.image.empty())
      return lifecycle::make_plan(spec, version, nullptr, host, criu_missing, settings);
    auto row = database.image(spec.image);
    std::optional<image::Image> found;
    if (row)
      for (auto& candidate : image::list_images(settings.data_dir))
        if (candidate.id == row->id) found = candidate;
    if (!found && !import)
      throw Error(Code::kUnavailable, "run pod", spec.name,
                  "its image " + spec.image + " is not in the store", "wait until it is imported");
    if (!found) {
      found = image::import_image(settings.data_dir, spec.image, Deadline::after_ms(30 * 60'000),
                                  ending.get(), {}, image_limits());
      database.put_image({found->id, spec.image, found->bytes, wall_us(), found->config});
    }
    return lifecycle::make_plan(spec, version, &*found, host, criu_missing, settings);
  }

  // What one more image may take.
  image::UnpackLimits image_limits() {
    image::UnpackLimits limits{.bytes = settings.image_size};
    auto at_most = [&](std::uint64_t whole, std::uint64_t used, const std::string& bound) {
      std::uint64_t left = whole - std::min(whole, used);
      if (left >= limits.bytes) return;
      limits.bytes = std::max<std::uint64_t>(left, 1);
      limits.bound = bound;
    };
    if (settings.image_quota) {
      std::map<std::string, std::uint64_t> sizes;
      for (const auto& row : database.images()) sizes[row.id] = row.bytes;
      std::uint64_t used = 0;
      for (auto& [id, bytes] : sizes) used += bytes;
      at_most(settings.image_quota, used,
              "--image-quota, of which " + format_bytes(used) + " are in use");
    }
    struct statvfs disk {};
    if (::statvfs(settings.data_dir.c_str(), &disk) == 0) {
      at_most(static_cast<std::uint64_t>(disk.f_bavail) * disk.f_frsize, kDiskReserve,
              "what the disk has left");
      if (disk.f_files) limits.files = std::min<std::uint64_t>(limits.files, disk.f_favail);
    }
    return limits;
  }

  // Everything that leads clients to the pod; nothing has changed when it throws.
  // The ways to replicas of an `earlier` version stay as long as those serve.
  std::vector<gateway::PublishedPort> publish(const state::PodSpec& spec,
                                              const state::PodSpec* earlier = nullptr) {
    auto wanted = published_ports(spec);
    auto routes = routes_of(spec);
    if (earlier) keep_earlier(wanted, routes, *earlier);
    if (front) front->routes().check(spec.name, routes);
    auto ports = gateway.publish(spec.name, wanted, {spec.concurrency, spec.hard});
    if (front) front->routes().set(spec.name, routes);
    links.set(spec.name, spec.links);
    ports.resize(spec.ports.size());
    return ports;
  }

  void unpublish(const std::string& name) {
    if (front) front->routes().remove(name);
    links.set(name, {});
    gateway.unpublish(name);
  }

  // One deploy or removal of a pod at a time: whoever holds the result has its turn. Before any
  // lock on our mutex, and given back after it.
  auto change(const std::string& name) {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return closing || in_change.insert(name).second; });
    if (closing)
      throw Error(Code::kUnavailable, "change pod", name, "the daemon ends",
                  "ask again when it runs again");
    return Finally([this, name] {
      std::scoped_lock again(mutex);
      in_change.erase(name);
      changed.notify_all();
    });
  }

  // Written down first: what could not be written has not happened.
  void store(Pod& pod, state::PodRow row, const char* type = nullptr,
             const std::string& message = {}) {
    database.transaction([&] {
      database.put_pod(row);
      if (type) database.append_event({.type = type, .pod = row.name, .message = message});
    });
    pod.row = std::move(row);
  }

  static std::string failure_of(const std::function<void()>& work) {
    try {
      work();
      return {};
    } catch (const std::exception& error) {
      return error.what();
    }
  }

  void load_pods() {
    for (auto& row : database.pods()) {
      Pod& pod = pods[row.name];
      pod.row = row;
      pod.broken = failure_of([&] { pod.spec = from_json(row.spec); });
      if (!pod.broken.empty()) continue;
      // Either without the other: a replica that lives on is reached even when none could start.
      pod.unpublished = failure_of([&] { publish(pod.spec); });
      pod.broken = failure_of([&] { pod.plan = plan_for(pod.spec, row.version, false); });
      tell_problem(pod);
    }
  }

  void tell_problem(const Pod& pod) {
    std::string problem = problem_of(pod);
    if (!problem.empty())
      log::error("a pod cannot run", {{"pod", pod.row.name}, {"error", problem}});
    std::string why = failure_of([&] {
      database.append_event(
          {.type = problem.empty() ? "pod.mended" : "pod.problem",
           .pod = pod.row.name,
           .message = problem.empty() ? "nothing keeps it from running any more" : problem});
    });
    if (!why.empty()) log::warn("an event could not be written down", {{"error", why}});
  }

  static std::string problem_of(const Pod& pod) {
    return pod.unpublished + (pod.unpublished.empty() || pod.broken.empty() ? "" : "; ") +
           pod.broken;
  }

  // A port that another program has, an image that is not in the store, a mount that is missing:
  // what keeps a pod from running when the daemon starts is tried again, ever less often.
  void mend_loop() {
    std::unique_lock lock(mutex);
    while (!closing) {
      std::string name;
      std::int64_t at = INT64_MAX;
      for (auto& [other, pod] : pods)
        if (!problem_of(pod).empty() && !in_change.contains(other) && pod.mend_us < at)
          at = pod.mend_us, name = other;
      if (std::int64_t now = monotonic_us(); name.empty())
        changed.wait(lock);
      else if (at > now)
        changed.wait_for(lock, std::chrono::microseconds(at - now));
      else
        mend(name, lock);
    }
  }

  void mend(const std::string& name, std::unique_lock<std::mutex>& lock) {
    const Pod before = pods.at(name);
    std::optional<PodPlan> plan;
    std::string unpublished, broken;
    if (!before.unpublished.empty()) {
      in_change.insert(name);  // a deploy publishes, too
      lock.unlock();
      unpublished = failure_of([&] { publish(before.spec); });
      lock.lock();
      in_change.erase(name);
      changed.notify_all();
    }
    if (!before.broken.empty()) {
      lock.unlock();
      broken = failure_of([&] { plan = plan_for(before.spec, before.row.version); });
      lock.lock();
    }
    auto found = pods.find(name);
    // A deploy has mended it, or made another of it.
    if (closing || found == pods.end() || found->second.row.version != before.row.version) return;
    Pod& pod = found->second;
    if (!before.unpublished.empty()) pod.unpublished = unpublished;
    if (!pod.plan) {
      pod.plan = std::move(plan);
      pod.broken = broken;
    }
    bool fine = problem_of(pod).empty();
    pod.mend_failures = fine ? 0 : pod.mend_failures + 1;
    pod.mend_us = monotonic_us() + back_off_us(kFirstPauseUs, kLongestPauseUs, pod.mend_failures);
    if (problem_of(pod) != problem_of(before)) tell_problem(pod);
    poke_locked();
  }

  // For a replica that runs already. One of an earlier version makes no checkpoint: it would be
  // taken for one of the present version. Nor does one whose pod has no plan at the moment, since
  // its image, rootfs or a mount is not there; it runs on all the same.
  static PodPlan plan_of_living(const Pod& pod, std::int64_t version) {
    PodPlan plan = pod.plan.value_or(PodPlan{});
    plan.spec = pod.spec;
    plan.spec.name = pod.row.name;
    plan.version = version;
    if (!pod.plan)
      plan.checkpoint = {false, pod.broken};
    else if (version != pod.row.version)
      plan.checkpoint = {false, "it is of an earlier version"};
    return plan;
  }

  // One whose state is in a checkpoint: it needs no process, and none that was being restored.
  void adopt_paused(state::ReplicaRow row) {
    auto pod = pods.find(row.pod);
    if (pod == pods.end()) {
      lost.emplace_back(row, "its pod was gone when the daemon started");
      return;
    }
    row.slot.clear();
    row.pid = 0;
    PodPlan plan = plan_of_living(pod->second, row.version);
    std::string id = row.id;
    replicas.emplace(id, std::make_shared<Replica>(services(), std::move(plan), std::move(row),
                                                   nullptr, [this] { poke(); }));
  }

  // It waits in a checkpoint of its own, or was being restored from that.
  bool has_own_state(const state::ReplicaRow& row) {
    if (row.intent == "stop") return false;
    State state = lifecycle::parse_state(row.state).value_or(State::kFailed);
    if (state == State::kPaused) return row.slot.empty();
    auto checkpoint = database.checkpoint(row.started_from);
    bool half =
        state == State::kPreparing || state == State::kRestoring || state == State::kValidating;
    return half && checkpoint && checkpoint->status == "available" &&
           lifecycle::is_own(checkpoint->fingerprint);
  }

  // Replicas live on in their slots; each is taken back, or cleaned up and written down as ended.
  void adopt_replicas() {
    std::map<std::string, state::ReplicaRow> by_slot;
    for (auto& row : database.replicas()) {
      if (row.ended_us) continue;
      if (!row.slot.empty())
        by_slot.emplace(row.slot, row);
      else if (has_own_state(row))
        adopt_paused(row);
      else
        lost.emplace_back(row, "the daemon ended while it was " + row.state);
    }
    // All of them before anything is done with one: a daemon that has no room for that ends, and
    // whatever lives in them lives on.
    std::map<std::string, std::unique_ptr<lifecycle::Slot>> taken;
    for (const std::string& name : slots.found()) {
      taken[name] = slots.adopt(name);
      fault_point("adopt.slot");
    }
    for (auto& [name, slot] : taken) {
      auto found = by_slot.find(name);
      if (found == by_slot.end()) {
        slots.destroy(std::move(slot));
        continue;
      }
      state::ReplicaRow row = found->second;
      by_slot.erase(found);
      auto pod = pods.find(row.pod);
      State state = lifecycle::parse_state(row.state).value_or(State::kFailed);
      bool half = state == State::kPreparing || state == State::kStarting ||
                  state == State::kRestoring || state == State::kValidating;
      if (!slot || half || pod == pods.end()) {
        std::string why = half    ? "the daemon ended while it was " + row.state
                          : !slot ? "its shim was gone when the daemon started"
                                  : "its pod was gone when the daemon started";
        slots.destroy(std::move(slot));
        if (has_own_state(row))
          adopt_paused(row);
        else
          lost.emplace_back(row, why);
        continue;
      }
      PodPlan plan = plan_of_living(pod->second, row.version);
      std::string id = row.id;
      // What connections called for under the earlier daemon is not known any more; the replicas
      // that serve go as if their last connection had ended now.
      if (state != State::kStandby && state != State::kPaused && row.intent != "stop" &&
          row.version == pod->second.row.version)
        ++pod->second.demand;
      pod->second.demand_check_us = monotonic_us() + pod->second.spec.keep_warm_us;
      replicas.emplace(id, std::make_shared<Replica>(services(), std::move(plan), std::move(row),
                                                     std::move(slot), [this] { poke(); }));
    }
    for (auto& [name, row] : by_slot)
      if (has_own_state(row))
        adopt_paused(row);
      else
        lost.emplace_back(row, "its shim was gone when the daemon started");
  }

  // What an earlier daemon left. Again and again until it can be written down.
  void clean_up(std::int64_t& next_us) {
    if (!lost.empty())
      attempt("write down lost replicas", next_us, [this] {
        for (; !lost.empty(); lost.pop_back()) end_row(lost.back().first, lost.back().second);
      });
    if (!recovered) {
      attempt("remove stray logs", next_us, [this] { remove_stray_logs(); });
      recovered = attempt("recover checkpoints", next_us, [this] {
        checkpoints.recover([this](const std::string& name) -> std::optional<PodPlan> {
          auto found = pods.find(name);
          return found == pods.end() ? std::nullopt : found->second.plan;
        });
      });
    }
  }

  void end_row(state::ReplicaRow row, const std::string& reason) {
    row.state = row.intent == "stop" ? "stopped" : "failed";
    row.reason = reason;
    row.ended_us = wall_us();
    row.slot.clear();
    row.pid = 0;
    row.gate_open = false;
    database.transaction([&] {
      database.put_replica(row);
      database.append_event(
          {.type = "replica." + row.state, .pod = row.pod, .replica = row.id, .message = reason});
    });
  }

  void reconcile_loop() {
    std::unique_lock lock(mutex);
    while (!closing) {
      clear_event(wake);
      std::int64_t next_us = INT64_MAX;
      std::vector<std::shared_ptr<Replica>> gone = collect_ended();
      if (!gone.empty()) {
        lock.unlock();
        gone.clear();  // joins their threads
        attempt("prune replicas", next_us, [this] { forget_replicas(); });
        lock.lock();
        changed.notify_all();
      }
      std::set<std::string> needing;
      {
        std::scoped_lock needs(needy_mutex);
        needing.swap(needy);
      }
      clean_up(next_us);
      bool short_of_memory = false;
      attempt("look at the host's memory", next_us,
              [&] { short_of_memory = pressure.is_short(next_us); });
      for (auto& entry : pods) {
        const std::string& name = entry.first;
        Pod& pod = entry.second;
        bool called = needing.contains(name);
        bool done = attempt("reconcile pod " + name, next_us, [&] {
          follow_demand(pod, called, next_us);
          reconcile(pod, short_of_memory, next_us);
        });
        if (!done && called) needs_more(name, false);
      }
      // Given up after the standbys, which cost more.
      slots.set_most(short_of_memory ? 0 : settings.slots);
      if (closing) break;
      lock.unlock();
      pollfd fds[2] = {{wake.get(), POLLIN, 0}, {pressure.fd(), POLLPRI, 0}};
      Deadline deadline =
          next_us == INT64_MAX ? Deadline::never() : Deadline::after_us(next_us - monotonic_us());
      ::poll(fds, 2, deadline.poll_ms());
      if (fds[1].revents & POLLPRI) pressure.noticed();
      lock.lock();
    }
  }

  // Rows and logs of those that ended long ago.
  void forget_replicas() {
    for (const std::string& id : database.prune_replicas(kKeptReplicas)) remove_logs(id);
  }

  void remove_logs(const std::string& id) {
    try {
      remove_tree(settings.log_dir(id));
    } catch (const Error& error) {
      log::warn("a log could not be removed", {{"replica", id}, {"error", error.what()}});
    }
  }

  // Logs that no row knows: of a daemon that died in between, and of proofs.
  void remove_stray_logs() {
    std::string folder = settings.log_dir("");
    if (!exists(folder)) return;
    for (const auto& entry : std::filesystem::directory_iterator(folder))
      if (std::string id = entry.path().filename(); !database.replica(id)) remove_logs(id);
  }

  // A host that has no disk, memory or threads left must not end the daemon, and with it all
  // traffic: what one piece of a round could not do is tried again soon. False when it could not.
  bool attempt(const std::string& what, std::int64_t& next_us, const std::function<void()>& work) {
    std::string why;
    try {
      work();
    } catch (const std::exception& error) {
      why = error.what();
      next_us = std::min(next_us, monotonic_us() + kTroublePauseUs);
    }
    std::string& told = troubles[what];
    if (!why.empty() && why != told)
      log::error("the controller cannot do its work; it goes on trying",
                 {{"what", what}, {"error", why}});
    bool fine = why.empty();
    if (fine)
      troubles.erase(what);
    else
      told = why;
    return fine;
  }

  // Grows at once, shrinks when less was enough for a while.
  void follow_demand(Pod& pod, bool called, std::int64_t& next_us) {
    std::int64_t now = monotonic_us();
    if (called || (pod.demand && now >= pod.demand_check_us)) {
      gateway::Need need = gateway.need(pod.row.name, quiet_of(pod));
      int before = pod.demand;
      bool checked = pod.demand && now >= pod.demand_check_us;
      std::int64_t idle_until = need.idle_since_us + pod.spec.keep_warm_us;
      if (need.peak > pod.demand)
        pod.demand = need.peak;
      else if (checked)
        pod.demand = need.now == 0 && now >= idle_until ? 0 : std::max(need.peak, 1);
      if (pod.demand > before) pod.requested_us = now;
      if (pod.demand != before) pod.unused = true;
      if (pod.demand > 1)
        pod.demand_check_us = now + std::max(pod.spec.scale_down_delay_us, kLeastCheckUs);
      else if (need.peak)
        pod.demand_check_us = now + std::max(pod.spec.keep_warm_us, kLeastCheckUs);
      else
        pod.demand_check_us = std::max(idle_until, now);
      if (pod.demand != before)
        database.append_event({.type = "pod.demand",
                               .pod = pod.row.name,
                               .message = fmt::format("its connections call for {} replicas, "
                                                      "it was {}",
                                                      pod.demand, before)});
    }
    if (pod.demand) next_us = std::min(next_us, pod.demand_check_us);
  }

  std::int64_t desired(const Pod& pod) const {
    if (pod.row.stopped) return 0;
    return std::min<std::int64_t>(std::max<std::int64_t>(pod.row.desired, pod.demand),
                                  pod.spec.max_replicas);
  }

  std::vector<std::shared_ptr<Replica>> collect_ended() {
    std::vector<std::shared_ptr<Replica>> gone;
    for (auto at = replicas.begin(); at != replicas.end();) {
      if (!lifecycle::ended(at->second->state())) {
        ++at;
        continue;
      }
      state::ReplicaRow row = at->second->row();
      auto pod = pods.find(row.pod);
      if (pod != pods.end() && row.state == "failed" && at->second->resting()) {
        Pod& owner = pod->second;
        owner.standby_pause_us =
            monotonic_us() + back_off_us(kFirstPauseUs, kLongestPauseUs, ++owner.standby_failures);
      } else if (pod != pods.end() && row.state == "failed" &&
                 row.version != pod->second.row.version) {
        Pod& owner = pod->second;
        owner.earlier_pause_until_us =
            monotonic_us() + back_off_us(kFirstPauseUs, kLongestPauseUs, ++owner.earlier_failures);
      } else if (pod != pods.end() && row.state == "failed") {
        Pod& owner = pod->second;
        bool settled = row.ready_us && row.ended_us - row.ready_us > kSettledUs;
        owner.failures = settled ? 1 : owner.failures + 1;
        owner.pause_until_us =
            monotonic_us() + back_off_us(kFirstPauseUs, kLongestPauseUs, owner.failures);
        owner.last_failure = row.reason;
        owner.last_failure_us = monotonic_us();
        gateway.set_trouble(row.pod, "its last replica failed: " + row.reason);
        if (owner.failures > 1) tell_crash_loop(owner);
      }
      gone.push_back(std::move(at->second));
      at = replicas.erase(at);
    }
    return gone;
  }

  void tell_crash_loop(const Pod& pod) {
    std::int64_t pause_ms = (pod.pause_until_us - monotonic_us()) / 1000;
    database.append_event({.type = "pod.crash_loop",
                           .pod = pod.row.name,
                           .message = fmt::format("{} replicas failed in a row, the next starts in "
                                                  "{} ms: {}",
                                                  pod.failures, pause_ms, pod.last_failure),
                           .data = {{"failures", pod.failures}, {"pause_ms", pause_ms}}});
  }

  // A replica as it is now: it goes on changing while this looks at it.
  struct Seen {
    bool ready;
    std::int64_t created_us, ready_us;
    Replica* replica;
    std::int64_t in_flight = 0;
  };

  static std::int64_t quiet_of(const Pod& pod) {
    return std::max(pod.spec.keep_warm_us, kLeastQuietUs);
  }

  // Those that are not ready go first, then those with the fewest connections, which may take long
  // to finish, then the youngest.
  void let_some_go(const Pod& pod, std::vector<Seen>& current, std::int64_t count,
                   std::int64_t& next_us) {
    for (Seen& one : current) one.in_flight = gateway.in_flight(one.replica->row().id);
    std::sort(current.begin(), current.end(), [](const Seen& a, const Seen& b) {
      return std::tuple(a.ready, a.in_flight, -a.created_us) <
             std::tuple(b.ready, b.in_flight, -b.created_us);
    });
    bool unused = pod.unused && !pod.row.stopped;
    // Connections at rest keep no replica of a pod that is not used at all.
    auto quiet_us = unused && desired(pod) == 0 ? std::optional(quiet_of(pod)) : std::nullopt;
    bool pauses = unused && pod.spec.idle != state::PodSpec::Idle::kStop;
    for (const Seen& one : std::span(current).first(static_cast<std::size_t>(count)))
      if (pauses && one.ready_us) {
        // One that goes on from a pause, or whose pause was cut short, has a state, too: it is
        // asked when it is ready.
        if (!one.ready) continue;
        if (std::int64_t again_us = one.replica->pause(quiet_us); again_us)
          next_us = std::min(next_us, again_us);
      } else {
        one.replica->stop(pod.row.stopped ? "the pod was stopped" : "scaled down", drain_of(pod),
                          quiet_us);
      }
  }

  // As many as are missing go on. What holds memory is given up when that is short.
  void use_paused(Pod& pod, std::vector<Replica*>& paused, std::int64_t& missing,
                  std::int64_t requested_us, bool short_of_memory) {
    // Those whose processes are there before those that are to be restored.
    std::stable_partition(paused.begin(), paused.end(),
                          [](Replica* replica) { return replica->row().pid != 0; });
    for (Replica* replica : paused) {
      if (pod.row.stopped)
        replica->stop("the pod was stopped");
      else if (missing > 0 && replica->resume(requested_us))
        --missing;
      else if (short_of_memory && replica->state() == State::kPaused && replica->row().pid)
        replica->stop("memory is short");
    }
  }

  void reconcile(Pod& pod, bool short_of_memory, std::int64_t& next_us) {
    std::int64_t wanted = desired(pod);
    std::vector<Seen> current;
    std::vector<Replica*> old, standbys, paused;
    std::int64_t ready = 0;
    for (auto& [id, replica] : replicas) {
      state::ReplicaRow row = replica->row();
      if (row.pod != pod.row.name || lifecycle::ended(replica->state())) continue;
      if (row.intent == "stop") {
        // One that drains hurries when the user wants the pod stopped.
        if (pod.row.stopped) replica->stop("the pod was stopped");
        continue;
      }
      if (row.version != pod.row.version)
        old.push_back(replica.get());
      else if (replica->resting())
        // Those that wait already, before those that are still being restored.
        standbys.insert(row.state == "standby" ? standbys.begin() : standbys.end(), replica.get());
      else if (replica->paused())
        paused.push_back(replica.get());
      else
        current.push_back({row.gate_open, row.created_us, row.ready_us, replica.get()});
    }
    for (const auto& one : current) ready += one.ready;
    // One that lives has ended a crash loop.
    for (const auto& one : current)
      if (std::int64_t settles = one.ready_us + kSettledUs - wall_us(); one.ready && settles <= 0)
        forget_failures(pod);
      else if (one.ready && pod.failures)
        next_us = std::min(next_us, monotonic_us() + settles);
    if (!standbys.empty() && standbys.front()->state() == State::kStandby) pod.standby_failures = 0;
    std::int64_t missing = wanted - static_cast<std::int64_t>(current.size());
    std::int64_t now = monotonic_us();
    std::int64_t requested = pod.requested_us ? pod.requested_us : now;
    use_paused(pod, paused, missing, requested, short_of_memory);
    for (; missing > 0 && !standbys.empty(); standbys.erase(standbys.begin()))
      if (standbys.front()->take(requested)) {
        --missing;
        // The next is made when the one that is needed now has had the machine for a moment.
        pod.standby_pause_us = std::max(pod.standby_pause_us, now + kRefillPauseUs);
      }
    for (; missing > 0 && pod.plan; --missing) {
      if (pod.pause_until_us > now) {
        next_us = std::min(next_us, pod.pause_until_us);
        break;
      }
      add_replica(*pod.plan, requested, false);
    }
    if (missing < 0) let_some_go(pod, current, -missing, next_us);
    if (ready < wanted) keep_earlier_serving(pod, old, wanted, next_us);
    if (ready >= wanted) {
      pod.earlier.reset();
      for (Replica* replica : old)
        replica->stop(wanted ? "a new version has taken over" : "the pod was stopped",
                      drain_of(pod));
      if (pod.ways_of_earlier && !in_change.contains(pod.row.name)) {
        publish(pod.spec);
        pod.ways_of_earlier = false;
      }
    }
    keep_standbys(pod, standbys, short_of_memory, next_us);
  }

  // The version before loses nothing as long as the present one does not serve.
  void keep_earlier_serving(Pod& pod, const std::vector<Replica*>& old, std::int64_t wanted,
                            std::int64_t& next_us) {
    if (!pod.earlier) return;
    std::int64_t now = monotonic_us(), have = 0;
    for (Replica* replica : old) have += !replica->resting() && !replica->paused();
    for (; have < std::min(wanted, pod.earlier_count); ++have) {
      if (pod.earlier_pause_until_us > now) {
        next_us = std::min(next_us, pod.earlier_pause_until_us);
        return;
      }
      add_replica(*pod.earlier, now, false);
    }
  }

  // What serves while a new version is on its way.
  void remember_earlier(Pod& pod) {
    std::int64_t serving = 0;
    for (auto& [id, replica] : replicas) {
      state::ReplicaRow row = replica->row();
      serving += row.pod == pod.row.name && row.version == pod.row.version && row.gate_open &&
                 row.intent != "stop";
    }
    // Otherwise the present one has never served, and the one before it does.
    if (!serving && pod.earlier) return;
    pod.earlier = serving ? pod.plan : std::nullopt;
    pod.earlier_count = serving;
    pod.earlier_failures = 0;
    pod.earlier_pause_until_us = 0;
  }

  static std::optional<std::int64_t> drain_of(const Pod& pod) {
    return pod.row.stopped ? std::nullopt : std::optional(pod.spec.drain_us);
  }

  void keep_standbys(Pod& pod, std::vector<Replica*>& standbys, bool short_of_memory,
                     std::int64_t& next_us) {
    std::size_t wanted = static_cast<std::size_t>(pod.spec.standby);
    std::string why = "fewer standbys are wanted";
    if (pod.row.stopped) {
      wanted = 0;
      why = "the pod was stopped";
    } else if (short_of_memory) {
      wanted = 0;
      why = "memory is short";
    }
    for (; standbys.size() > wanted; standbys.pop_back()) standbys.back()->stop(why);
    if (standbys.size() >= wanted || !pod.plan || !pod.plan->checkpoint.enabled ||
        checkpoints.offered(pod.plan->fingerprint).empty())
      return;
    if (std::int64_t now = monotonic_us(); pod.standby_pause_us > now) {
      next_us = std::min(next_us, pod.standby_pause_us);
      return;
    }
    for (std::size_t i = standbys.size(); i < wanted; ++i)
      add_replica(*pod.plan, monotonic_us(), true);
  }

  void add_replica(const PodPlan& plan, std::int64_t requested_us, bool standby) {
    std::string id = random_hex(12);
    replicas.emplace(id, std::make_shared<Replica>(
                             services(), plan, id, requested_us, [this] { poke(); }, standby));
  }

  // Replicas of a pod that have not ended, standbys too.
  int count(const std::string& pod) {
    int found = 0;
    for (auto& [id, replica] : replicas)
      if (replica->row().pod == pod && !lifecycle::ended(replica->state())) ++found;
    return found;
  }

  // Replicas of the pod as it is declared now that serve.
  int ready(const Pod& pod) {
    int found = 0;
    for (auto& [id, replica] : replicas) {
      state::ReplicaRow row = replica->row();
      found += row.pod == pod.row.name && row.version == pod.row.version &&
               replica->state() == State::kReady && row.intent != "stop";
    }
    return found;
  }

  void forget_failures(Pod& pod) {
    if (!pod.failures && pod.last_failure.empty()) return;
    pod.failures = 0;
    pod.pause_until_us = 0;
    pod.last_failure.clear();
    gateway.set_trouble(pod.row.name, "");
  }

  void scale_to(Pod& pod, int replicas, std::int64_t now) {
    state::PodRow row = pod.row;
    row.desired = replicas;
    row.stopped = false;
    row.updated_us = wall_us();
    store(pod, std::move(row), "pod.scaled", fmt::format("{} replicas are wanted", replicas));
    fault_point("scale.written");
    pod.requested_us = now;
    forget_failures(pod);
    // From now on the user's word counts; those who wait at the gate are still served.
    pod.demand = gateway.need(pod.row.name, quiet_of(pod)).held;
    pod.unused = false;
    stop_paused(pod, replicas);
    pod.demand_check_us = now + pod.spec.keep_warm_us;
    poke_locked();
  }

  // Those that are paused beyond a number that the user has given.
  void stop_paused(const Pod& pod, std::int64_t wanted) {
    std::vector<Replica*> paused;
    for (auto& [id, replica] : replicas) {
      state::ReplicaRow row = replica->row();
      if (row.pod != pod.row.name || row.version != pod.row.version || row.intent == "stop" ||
          lifecycle::ended(replica->state()) || replica->resting())
        continue;
      if (replica->paused())
        paused.push_back(replica.get());
      else
        --wanted;
    }
    for (Replica* replica : paused)
      if (--wanted < 0) replica->stop("scaled down");
  }

  PodView view(Pod& pod) {
    PodView view;
    view.row = pod.row;
    view.problem = problem_of(pod);
    view.spec = pod.spec;
    view.desired = desired(pod);
    for (auto& [id, replica] : replicas) {
      if (replica->row().pod != pod.row.name || lifecycle::ended(replica->state())) continue;
      if (replica->resting()) {
        if (replica->state() == State::kStandby) ++view.standby;
        continue;
      }
      if (replica->state() == State::kPaused && replica->row().intent != "stop") {
        ++view.paused;
        continue;
      }
      ++view.total;
      if (replica->state() == State::kReady) ++view.ready;
    }
    if (pod.plan) {
      view.checkpoint_effective = pod.plan->checkpoint.enabled;
      view.checkpoint_reason = pod.plan->checkpoint.reason;
      view.checkpoint = checkpoints.offered(pod.plan->fingerprint);
      // With a checkpoint there is nothing to wait for; failures count on until one has proven
      // good.
      auto pause = database.backoff(pod.plan->fingerprint);
      if (pause && view.checkpoint.empty()) {
        view.dump_failures = pause->failures;
        view.dump_pause_until_us = pause->until_us;
        view.dump_failure = pause->reason;
      }
    } else {
      view.checkpoint_reason = pod.broken;
    }
    view.crash_failures = pod.failures;
    view.crash_until_us =
        wall_us() + std::max<std::int64_t>(0, pod.pause_until_us - monotonic_us());
    view.crash_reason = pod.last_failure;
    auto traffic = gateway.traffic(pod.row.name);
    view.held = traffic.held;
    view.active = traffic.active;
    return view;
  }

  // One that is paused goes on, for a while at least.
  void wake_paused(const std::string& id, std::unique_lock<std::mutex>& lock) {
    auto found = replicas.find(id);
    if (found == replicas.end() || !found->second->paused()) return;
    std::shared_ptr<Replica> replica = found->second;
    state::ReplicaRow row = replica->row();
    if (!replica->resume(monotonic_us())) return;
    int serving = 0;
    for (auto& [other_id, other] : replicas)
      serving += other->row().pod == row.pod && !other->resting() && !other->paused() &&
                 !lifecycle::ended(other->state());
    Pod& pod = find_pod(row.pod);
    pod.demand = std::max(pod.demand, serving);
    pod.demand_check_us = std::max(pod.demand_check_us,
                                   monotonic_us() + std::max(pod.spec.keep_warm_us, kExecWarmUs));
    poke_locked();
    Deadline deadline = Deadline::after_us(kExecWakeUs);
    while (replica->state() != State::kReady && !lifecycle::ended(replica->state()) && !closing) {
      if (deadline.passed())
        throw Error(Code::kTimeout, "wake replica", id, "it is " + replica->row().state,
                    "see `thaw ps`");
      changed.wait_for(lock, std::chrono::microseconds(deadline.left_us()));
    }
  }

  Replica& live_replica(const std::string& id) {
    auto found = replicas.find(id);
    if (found == replicas.end())
      throw Error(Code::kConflict, "use replica", id, "it has ended", "see `thaw ps`");
    return *found->second;
  }

  // The daemon ends, or another takes its place: replicas are stopped, or run on without it.
  void let_go(bool stop_replicas) {
    running = false;
    {
      std::scoped_lock lock(mutex);
      closing = true;
      poke_locked();
    }
    signal_event(ending);
    fault_point("shutdown.begun");
    reconciler.join();
    mender.join();
    for (auto& [id, replica] : replicas) {
      try {
        if (stop_replicas)
          replica->stop("the daemon ends");
        else
          replica->detach();
      } catch (const std::exception& error) {
        // It is ended below all the same.
        log::warn("a stop could not be written down", {{"replica", id}, {"error", error.what()}});
      }
    }
    replicas.clear();
    fault_point("shutdown.detached");
    checkpoints.close();
    slots.close();
    // With no replica left nothing needs the host's side of the network; the next daemon makes it
    // anew.
    if (slots.found().empty()) network->destroy();
    metrics.close();
    database.close_waiters();
  }
};

Controller::Controller(lifecycle::Settings settings)
    : impl_(std::make_unique<Impl>(std::move(settings))) {}

Controller::~Controller() {
  if (impl_->running) shutdown(false);
}

void Controller::start() {
  fault_point("listeners.taken");
  try {
    impl_->load_pods();
    if (impl_->front) impl_->front->start();
    impl_->gateway.listen_for_links(network::link_listener(impl_->network->instance()),
                                    network::kLinkPort,
                                    [this](const std::string& replica, const std::string& link) {
                                      return impl_->links.find(replica, link);
                                    });
    // Before anything is decided about replicas: they may have connections there.
    impl_->predecessors.follow(impl_->gateway);
    impl_->adopt_replicas();
    impl_->network->remove_stray_interfaces();
    impl_->slots.start_refill();
    std::int64_t later = INT64_MAX;
    impl_->clean_up(later);
    impl_->running = true;
    impl_->reconciler = std::thread([this] { impl_->reconcile_loop(); });
    impl_->mender = std::thread([this] { impl_->mend_loop(); });
  } catch (...) {
    // What was taken back already lives on.
    for (auto& [id, replica] : impl_->replicas) replica->detach();
    throw;
  }
}

void Controller::shutdown(bool stop_replicas) {
  Impl& impl = *impl_;
  if (!impl.running) return;
  impl.let_go(stop_replicas);
  // Nobody is to come after this daemon, so nobody is to wait for one.
  impl.predecessors.end();
  if (impl.holder) impl.holder->dismiss();
}

Remainder Controller::hand_over(const std::function<void()>& end_requests) {
  Impl& impl = *impl_;
  fault_point("handover.begun");
  impl.let_go(false);
  end_requests();
  Fd changed = Fd::event();
  if (impl.front) impl.front->hand_over(changed);
  impl.gateway.hand_over(changed);
  if (impl.holder) impl.holder->leave();
  // The next daemon counts these for itself.
  impl.predecessors.leave();
  impl.network.reset();
  impl.lock_file.reset();
  fault_point("handover.released");
  return Remainder(impl.gateway, impl.front.get(), std::move(changed));
}

Holder* Controller::holder() { return impl_->holder.get(); }

state::Database& Controller::database() { return impl_->database; }
const lifecycle::Settings& Controller::settings() const { return impl_->settings; }

DeployResult Controller::deploy(const state::PodSpec& wanted) {
  Impl& impl = *impl_;
  state::PodSpec spec = wanted;
  validate(spec, spec.name);
  DeployResult result;
  auto turn = impl.change(spec.name);
  std::optional<Impl::Pod> before;
  {
    std::scoped_lock lock(impl.mutex);
    if (auto found = impl.pods.find(spec.name); found != impl.pods.end()) before = found->second;
  }
  result.created = !before;
  if (before)
    // A port that Thaw chose stays the same over versions.
    for (auto& port : spec.ports)
      for (const auto& old : before->spec.ports)
        if (port.host == 0 && old.container == port.container && old.address == port.address)
          port.host = old.host;
  PodPlan plan = impl.plan_for(spec, before ? before->row.version : 1);
  std::vector<gateway::PublishedPort> ports = impl.publish(spec, before ? &before->spec : nullptr);
  for (std::size_t i = 0; i < ports.size(); ++i) spec.ports[i].host = ports[i].host;
  plan.spec.ports = spec.ports;

  std::scoped_lock lock(impl.mutex);
  // Anything but the specification may have changed meanwhile.
  Impl::Pod pod = before ? impl.pods.at(spec.name) : Impl::Pod{};
  nlohmann::json json = to_json(spec);
  result.changed = result.created || pod.row.spec != json || pod.row.program != plan.program;
  bool crash_loop = pod.failures > 0;
  if (result.changed) {
    if (!result.created) impl.remember_earlier(pod);
    plan.version = result.created ? 1 : pod.row.version + 1;
    pod.row.name = spec.name;
    pod.row.version = plan.version;
    pod.row.spec = json;
    pod.row.program = plan.program;
    pod.row.desired = result.created ? spec.min_replicas
                                     : std::clamp<std::int64_t>(pod.row.desired, spec.min_replicas,
                                                                spec.max_replicas);
    pod.row.updated_us = wall_us();
    if (result.created) pod.row.created_us = pod.row.updated_us;
    pod.spec = spec;
    pod.ways_of_earlier = !result.created;
  }
  if (result.changed || !pod.plan) {
    plan.version = pod.row.version;
    pod.plan = plan;
    pod.broken.clear();
  }
  pod.unpublished.clear();
  if (result.changed || crash_loop) impl.forget_failures(pod);
  pod.row.stopped = false;
  pod.requested_us = monotonic_us();
  try {
    impl.database.transaction([&] {
      if (result.changed && !result.created) impl.database.clear_backoff(plan.fingerprint);
      impl.database.put_pod(pod.row);
      if (result.changed)
        impl.database.append_event(
            {.type = result.created ? "pod.deployed" : "pod.updated",
             .pod = spec.name,
             .message = fmt::format("version {} deployed", pod.row.version)});
      if (result.changed && !plan.limits.gap.empty())
        impl.database.append_event(
            {.type = "pod.unlimited", .pod = spec.name, .message = plan.limits.gap});
    });
  } catch (const Error&) {
    if (before)
      impl.publish(before->spec);
    else
      impl.unpublish(spec.name);
    throw;
  }
  fault_point("deploy.written");
  Impl::Pod& now = impl.pods.insert_or_assign(spec.name, std::move(pod)).first->second;
  // Of a client that came as soon as its port was there, and was nobody's yet.
  impl.needs_more(spec.name);
  if (!plan.limits.gap.empty()) result.warnings.push_back(plan.limits.gap + "; see `thaw doctor`");
  if (spec.checkpoint.enabled && !plan.checkpoint.enabled)
    result.warnings.push_back("checkpointing is off: " + plan.checkpoint.reason);
  if (spec.idle == state::PodSpec::Idle::kCheckpoint && !plan.pause.enabled)
    result.warnings.push_back("idle replicas are frozen, not checkpointed: " + plan.pause.reason);
  if (plan.checkpoint.enabled || plan.pause.enabled) warn_of_secrets(plan, result.warnings);
  result.pod = impl.view(now);
  impl.poke_locked();
  return result;
}

std::vector<PodView> Controller::pods() {
  std::scoped_lock lock(impl_->mutex);
  std::vector<PodView> all;
  for (auto& [name, pod] : impl_->pods) all.push_back(impl_->view(pod));
  return all;
}

PodView Controller::pod(const std::string& name) {
  std::scoped_lock lock(impl_->mutex);
  return impl_->view(impl_->find_pod(name));
}

PodView Controller::scale(const std::string& name, std::optional<int> replicas,
                          std::int64_t wait_us) {
  Impl& impl = *impl_;
  std::unique_lock lock(impl.mutex);
  Impl::Pod* pod = &impl.find_pod(name);
  if (replicas && (*replicas < 0 || *replicas > pod->spec.max_replicas))
    throw Error(Code::kInvalid, "scale pod", name,
                fmt::format("{} is not between 0 and replicas.max, which is {}", *replicas,
                            pod->spec.max_replicas),
                "give another number, or deploy it with a higher replicas.max");
  if (!pod->plan)
    throw Error(Code::kUnavailable, "scale pod", name, pod->broken, "deploy it again");
  std::int64_t asked = monotonic_us();
  if (replicas) impl.scale_to(*pod, *replicas, asked);
  if (wait_us <= 0) return impl.view(*pod);
  Deadline deadline = Deadline::after_us(wait_us);
  for (;;) {
    pod = &impl.find_pod(name);
    std::int64_t wanted = impl.desired(*pod);
    // Before the view, which then shows no fewer: replicas move while this looks at them.
    int ready = impl.ready(*pod);
    PodView now = impl.view(*pod);
    // A deploy is done when its replicas are ready: those of the version before may have
    // connections to finish for an hour. Who asks for fewer waits until the others are gone.
    if (ready == wanted && (now.total == wanted || !replicas)) return now;
    if (pod->last_failure_us > asked && ready < wanted)
      throw Error(Code::kUnavailable, "scale pod", name, pod->last_failure,
                  "see `thaw logs` and `thaw ps -a`");
    if (impl.closing)
      throw Error(Code::kUnavailable, "wait for pod", name, "the daemon ends",
                  "ask again when it runs again");
    if (deadline.passed())
      throw Error(Code::kTimeout, "scale pod", name,
                  fmt::format("{} of {} replicas are ready", ready, wanted), "see `thaw ps`");
    impl.changed.wait_for(lock, std::chrono::microseconds(deadline.left_us()));
  }
}

void Controller::stop(const std::string& name) {
  std::scoped_lock lock(impl_->mutex);
  Impl::Pod& pod = impl_->find_pod(name);
  state::PodRow row = pod.row;
  row.stopped = true;
  row.updated_us = wall_us();
  impl_->store(pod, std::move(row), "pod.stopped", "stop was asked for");
  impl_->poke_locked();
}

void Controller::remove(const std::string& name, bool force) {
  Impl& impl = *impl_;
  {
    std::scoped_lock lock(impl.mutex);
    impl.find_pod(name);
  }
  auto turn = impl.change(name);
  std::unique_lock lock(impl.mutex);
  if (!impl.pods.contains(name)) return;  // somebody else has removed it
  Impl::Pod& pod = impl.find_pod(name);
  PodView view = impl.view(pod);
  int total = view.total + view.paused;
  if (total && !force && !pod.row.stopped)
    throw Error(Code::kConflict, "remove pod", name, fmt::format("{} replicas run", total),
                "stop it first, or use --force");
  state::PodRow row = pod.row;
  row.stopped = true;
  impl.store(pod, std::move(row));
  impl.poke_locked();
  fault_point("pod.stopped");
  Deadline deadline = Deadline::after_us(pod.spec.stop_grace_us * 2 + 60'000'000);
  for (;;) {
    if (impl.count(name) == 0) break;
    if (impl.closing)
      throw Error(Code::kUnavailable, "remove pod", name, "the daemon ends",
                  "ask again when it runs again");
    if (deadline.passed())
      throw Error(Code::kTimeout, "remove pod", name, "its replicas did not end in time",
                  "see `thaw ps`, then try again");
    impl.changed.wait_for(lock, std::chrono::microseconds(deadline.left_us()));
  }
  fault_point("pod.ended");
  impl.database.transaction([&] {
    impl.database.remove_pod(name);
    impl.checkpoints.forget_pod(name);
    impl.database.append_event({.type = "pod.removed", .pod = name, .message = "removed"});
  });
  impl.unpublish(name);
  impl.pods.erase(name);
  lock.unlock();
  for (const auto& gone : impl.database.replicas(name)) impl.remove_logs(gone.id);
  impl.forget_replicas();
  fault_point("pod.removed");
  impl.checkpoints.replica_ended();
}

std::vector<state::ReplicaRow> Controller::replicas(const std::string& pod, bool all) {
  if (!pod.empty()) this->pod(pod);
  std::vector<state::ReplicaRow> rows;
  for (auto& row : impl_->database.replicas(pod))
    if (all || row.ended_us == 0) rows.push_back(std::move(row));
  return rows;
}

state::ReplicaRow Controller::replica(const std::string& text) {
  auto rows = impl_->database.replicas();
  std::optional<state::ReplicaRow> newest;
  std::vector<std::string> ids;
  for (auto& row : rows) {
    ids.push_back(row.id);
    if (row.pod == text && (row.ended_us == 0 || !newest || newest->ended_us != 0)) newest = row;
  }
  if (newest) return *newest;
  std::string id = unique_match(ids, text, "replica");
  if (id.empty())
    throw Error(Code::kNotFound, "find replica", text,
                "there is none with this id, and no pod of this name with a replica",
                "see `thaw ps -a`");
  return *impl_->database.replica(id);
}

void Controller::stop_replica(const std::string& text) {
  state::ReplicaRow row = replica(text);
  std::scoped_lock lock(impl_->mutex);
  Impl::Pod& pod = impl_->find_pod(row.pod);
  Replica& replica = impl_->live_replica(row.id);
  bool served = !replica.paused();
  replica.stop("stop was asked for");
  // The pod wants one less from now on; else another would take its place at once.
  state::PodRow wanted = pod.row;
  if (served && row.version == wanted.version && wanted.desired > 0) --wanted.desired;
  impl_->store(pod, std::move(wanted));
  impl_->poke_locked();
}

std::string Controller::log_path(const std::string& text) {
  return impl_->settings.log_dir(replica(text).id) + "/container.log";
}

ExecStream Controller::exec(const std::string& text, const std::vector<std::string>& argv,
                            bool terminal, int rows, int columns) {
  if (argv.empty())
    throw Error(Code::kInvalid, "execute in replica", text, "the command is empty",
                "give a command after --");
  state::ReplicaRow row = replica(text);
  std::shared_ptr<lifecycle::ShimClient> shim;
  {
    std::unique_lock lock(impl_->mutex);
    impl_->wake_paused(row.id, lock);
    shim = impl_->live_replica(row.id).running_shim();
  }
  ExecStream stream;
  int session;
  if (terminal) {
    Fd master;
    session = shim->start_session(argv, true, rows, columns, {}, &master);
    auto shared = std::make_shared<Fd>(master.duplicate());
    stream.input = master.duplicate();
    stream.output = std::move(master);
    stream.resize = [shared](int new_rows, int new_columns) {
      winsize size{static_cast<unsigned short>(new_rows), static_cast<unsigned short>(new_columns),
                   0, 0};
      ::ioctl(shared->get(), TIOCSWINSZ, &size);
    };
  } else {
    auto [in_read, in_write] = Fd::pipe();
    auto [out_read, out_write] = Fd::pipe();
    auto [err_read, err_write] = Fd::pipe();
    session = shim->start_session(argv, false, 0, 0,
                                  {in_read.get(), out_write.get(), err_write.get()}, nullptr);
    stream.input = std::move(in_write);
    stream.output = std::move(out_read);
    stream.error = std::move(err_read);
    stream.resize = [](int, int) {};
  }
  stream.signal = [shim, session](int number) { shim->signal_session(session, number); };
  stream.wait = [shim, session] { return *shim->wait_session(session, Deadline::never()); };
  return stream;
}

std::vector<state::CheckpointRow> Controller::checkpoints(const std::string& pod) {
  std::vector<state::CheckpointRow> rows;
  for (auto& row : impl_->database.checkpoints(pod))
    if (row.status != "deleted") {
      impl_->checkpoints.look(row);
      rows.push_back(std::move(row));
    }
  return rows;
}

state::CheckpointRow Controller::checkpoint(const std::string& text) {
  std::vector<state::CheckpointRow> rows = checkpoints();
  std::vector<std::string> ids;
  for (auto& row : rows) ids.push_back(row.id);
  std::string id = unique_match(ids, text, "checkpoint");
  if (id.empty())
    throw Error(Code::kNotFound, "find checkpoint", text, "there is no such checkpoint",
                "see `thaw checkpoint ls`");
  return *std::find_if(rows.begin(), rows.end(), [&](auto& row) { return row.id == id; });
}

nlohmann::json Controller::inspect_checkpoint(const std::string& text) {
  state::CheckpointRow row = checkpoint(text);
  std::string path = impl_->settings.checkpoint_dir(row.id) + "/manifest.json";
  if (!exists(path)) return nlohmann::json::object();
  nlohmann::json manifest = nlohmann::json::parse(read_file(path), nullptr, false);
  if (!manifest.is_object()) return nlohmann::json::object();
  manifest.erase("environment");  // its variables may hold secrets
  return manifest;
}

state::CheckpointRow Controller::create_checkpoint(const std::string& name) {
  std::shared_ptr<Replica> chosen;
  {
    std::scoped_lock lock(impl_->mutex);
    Impl::Pod& pod = impl_->find_pod(name);
    if (!pod.plan)
      throw Error(Code::kUnavailable, "checkpoint pod", name, pod.broken, "deploy it again");
    // No replica would ever start from it.
    if (!pod.plan->checkpoint.enabled)
      throw Error(Code::kUnsupported, "checkpoint pod", name, pod.plan->checkpoint.reason,
                  "deploy it with what is missing");
    for (auto& [id, replica] : impl_->replicas)
      if (replica->row().pod == name && replica->row().version == pod.row.version &&
          replica->plan().checkpoint.enabled && replica->state() == State::kReady)
        chosen = replica;
  }
  if (!chosen)
    throw Error(Code::kConflict, "checkpoint pod", name, "no replica of it is ready",
                "scale it to 1 and wait, or look at `thaw ps`");
  std::string id = chosen->checkpoint_now(Deadline::after_ms(10 * 60'000));
  impl_->checkpoints.wait_settled(id, Deadline::after_ms(10 * 60'000));
  return checkpoint(id);
}

void Controller::remove_checkpoint(const std::string& text) {
  impl_->checkpoints.remove(checkpoint(text).id);
}

state::CheckpointRow Controller::verify_checkpoint(const std::string& text) {
  std::string id = checkpoint(text).id;
  impl_->checkpoints.verify(id);
  return checkpoint(id);
}

state::CheckpointRow Controller::compress_checkpoint(const std::string& text) {
  std::string id = checkpoint(text).id;
  impl_->checkpoints.compress(id);
  return checkpoint(id);
}

PodView Controller::retry_checkpoint(const std::string& name) {
  std::scoped_lock lock(impl_->mutex);
  Impl::Pod& pod = impl_->find_pod(name);
  if (!pod.plan)
    throw Error(Code::kUnavailable, "retry checkpoint of pod", name, pod.broken, "deploy it again");
  impl_->database.transaction([&] {
    impl_->database.clear_backoff(pod.plan->fingerprint);
    for (const auto& row : impl_->database.checkpoints(name))
      impl_->database.clear_backoff("restore-" + row.id);
    impl_->database.append_event(
        {.type = "checkpoint.retry", .pod = name, .message = "its failures are forgotten"});
  });
  return impl_->view(pod);
}

state::ImageRow Controller::import_image(const std::string& reference,
                                         const std::function<void(const std::string&)>& progress) {
  image::Image image =
      image::import_image(impl_->settings.data_dir, reference, Deadline::after_ms(30 * 60'000), -1,
                          progress, impl_->image_limits());
  state::ImageRow row{image.id, reference, image.bytes, wall_us(), image.config};
  impl_->database.put_image(row);
  return row;
}

std::vector<state::ImageRow> Controller::images() { return impl_->database.images(); }

void Controller::remove_image(const std::string& text) {
  auto row = impl_->database.image(text);
  if (!row)
    throw Error(Code::kNotFound, "remove image", text, "there is no such image",
                "see `thaw image ls`");
  {
    std::scoped_lock lock(impl_->mutex);
    for (auto& [name, pod] : impl_->pods)
      if (pod.plan && pod.plan->image_id == row->id)
        throw Error(Code::kConflict, "remove image", text, "pod '" + name + "' uses it",
                    "remove the pod first");
  }
  image::remove_image(impl_->settings.data_dir, row->id);
  impl_->database.remove_image(row->id);
}

bool Controller::put_secret(const std::string& name, std::string_view value) {
  bool created = impl_->secrets.put(name, value);
  log::info("a secret was set", {{"name", name}});
  return created;
}

std::vector<SecretRow> Controller::secrets() { return impl_->secrets.list(); }

void Controller::remove_secret(const std::string& name) {
  std::scoped_lock lock(impl_->mutex);
  for (auto& [other, pod] : impl_->pods)
    for (const auto& secret : pod.spec.secrets)
      if (secret.secret == name)
        throw Error(Code::kConflict, "remove secret", name, "pod '" + other + "' uses it",
                    "remove the pod first, or deploy it without");
  impl_->secrets.remove(name);
  log::info("a secret was removed", {{"name", name}});
}

std::string Controller::metrics() {
  return impl_->metrics.text() +
         gauges(pods(), impl_->database.replicas(), checkpoints(), impl_->checkpoints.store_size());
}

std::vector<CheckResult> Controller::doctor() { return run_doctor(impl_->settings); }

}  // namespace thaw::pods
