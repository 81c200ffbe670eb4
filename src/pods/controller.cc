#include "pods/controller.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include <cerrno>

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
#include "pods/spec.h"
#include "pods/traffic.h"
#include "util/error.h"
#include "util/fault.h"
#include "util/file.h"
#include "util/log.h"

namespace thaw::pods {
namespace {

using lifecycle::PodPlan;
using lifecycle::Replica;
using lifecycle::State;

constexpr int kKeptReplicas = 20;  // ended ones, for `thaw ps -a`
constexpr std::int64_t kFirstPauseUs = 1'000'000, kLongestPauseUs = 300'000'000;
constexpr std::int64_t kRefillPauseUs = 300'000;
constexpr std::int64_t kSettledUs =
    60'000'000;  // a replica that was ready this long has ended a crash loop

class GatewayGate : public lifecycle::Gate {
 public:
  explicit GatewayGate(gateway::Gateway& gateway) : gateway_(gateway) {}
  void open(const std::string& pod, const std::string& replica, const Fd& netns) override {
    gateway_.open_gate(pod, replica, netns);
  }
  void close(const std::string& pod, const std::string& replica) override {
    gateway_.close_gate(pod, replica);
  }
  bool drain(const std::string& replica, std::int64_t timeout_us) override {
    return gateway_.drain(replica, timeout_us);
  }
  void drop(const std::string& replica) override { gateway_.drop(replica); }

 private:
  gateway::Gateway& gateway_;
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

bool looks_secret(const std::string& name) {
  std::string upper = name;
  for (char& c : upper) c = c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c;
  for (const char* word : {"SECRET", "PASSWORD", "PASSWD", "TOKEN", "APIKEY", "API_KEY",
                           "PRIVATE_KEY", "ACCESS_KEY", "CREDENTIAL"})
    if (upper.find(word) != std::string::npos) return true;
  return false;
}

int preferred_instance(state::Database& database) {
  std::string text = database.setting("network_instance");
  return text.empty() ? -1 : std::stoi(text);
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
    std::int64_t requested_us = 0;  // monotonic: the request that the next replicas are started for
    int failures = 0;               // in a row
    std::int64_t pause_until_us = 0;  // monotonic
    std::string last_failure;
    std::int64_t last_failure_us = 0;  // monotonic
    int demand = 0;  // replicas that its connections call for, beyond those that the user wants
    std::int64_t demand_check_us = 0;  // monotonic: when fewer may do
    int standby_failures = 0;
    std::int64_t standby_pause_us = 0;  // monotonic
  };

  explicit Impl(lifecycle::Settings wanted)
      : settings(std::move(wanted)),
        lock_file(lock_directory(settings.data_dir)),
        database(settings.database()),
        criu(find_criu()),
        host(lifecycle::host_class(criu.version)),
        gateway(traffic_limits(settings), [this](const std::string& pod) { needs_more(pod); }),
        front(make_front(settings, gateway, database)),
        network("/run/thaw", preferred_instance(database)),
        slots(settings, criu, network),
        turns(static_cast<int>(std::max(1u, std::thread::hardware_concurrency()))),
        checkpoints(settings, database, slots, turns, host, [this] { signal_event(wake); }),
        gate(gateway) {
    database.put_setting("network_instance", std::to_string(network.instance()));
  }

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

  lifecycle::Settings settings;
  Fd lock_file;
  state::Database database;
  std::string criu_missing;
  checkpoint::CriuInstall criu;
  nlohmann::json host;
  Fd wake = Fd::event();  // readable: the reconciler has work
  MemoryPressure pressure;
  std::mutex needy_mutex;
  std::set<std::string> needy;  // pods whose connections call for more replicas
  Links links{database};
  gateway::Gateway gateway;
  std::unique_ptr<front::Front> front;
  // After what a wrong setting makes fail: what it puts on the host stays when the daemon ends.
  network::Network network;
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
  std::thread reconciler;

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
  void needs_more(const std::string& pod) {
    {
      std::scoped_lock lock(needy_mutex);
      needy.insert(pod);
    }
    signal_event(wake);
  }

  Pod& find_pod(const std::string& name) {
    auto found = pods.find(name);
    if (found != pods.end()) return found->second;
    std::string known;
    for (auto& [other, pod] : pods) known += (known.empty() ? "" : ", ") + other;
    throw Error(Code::kNotFound, "find pod", name, "there is no such pod",
                known.empty() ? "deploy it first" : "there are: " + known);
  }

  PodPlan plan_for(const state::PodSpec& spec, std::int64_t version) {
    if (spec.image.empty()) return lifecycle::make_plan(spec, version, nullptr, host, criu_missing);
    auto row = database.image(spec.image);
    std::optional<image::Image> found;
    if (row)
      for (auto& candidate : image::list_images(settings.data_dir))
        if (candidate.id == row->id) found = candidate;
    if (!found) {
      found = image::import_image(settings.data_dir, spec.image, Deadline::after_ms(30 * 60'000));
      database.put_image({found->id, spec.image, found->bytes, wall_us(), found->config});
    }
    return lifecycle::make_plan(spec, version, &*found, host, criu_missing);
  }

  // Everything that leads clients to the pod; nothing has changed when it throws.
  std::vector<gateway::PublishedPort> publish(const state::PodSpec& spec) {
    if (front) front->routes().check(spec.name, routes_of(spec));
    auto ports = gateway.publish(spec.name, published_ports(spec), spec.concurrency);
    if (front) front->routes().set(spec.name, routes_of(spec));
    links.set(spec.name, spec.links);
    return ports;
  }

  void load_pods() {
    for (auto& row : database.pods()) {
      Pod pod;
      pod.row = row;
      try {
        pod.spec = from_json(row.spec);
        pod.plan = plan_for(pod.spec, row.version);
        publish(pod.spec);
      } catch (const std::exception& error) {
        pod.broken = error.what();
        log::error("a pod cannot run", {{"pod", row.name}, {"error", error.what()}});
      }
      pods.emplace(row.name, std::move(pod));
    }
  }

  // Replicas live on in their slots; each is taken back, or cleaned up and written down as ended.
  void adopt_replicas() {
    std::map<std::string, state::ReplicaRow> by_slot;
    for (auto& row : database.replicas()) {
      if (row.ended_us) continue;
      if (!row.slot.empty())
        by_slot.emplace(row.slot, row);
      else
        end_row(row, "the daemon ended while it was " + row.state);
    }
    for (const std::string& name : slots.found()) {
      auto slot = slots.adopt(name);
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
      if (!slot || half || pod == pods.end() || !pod->second.plan) {
        slots.destroy(std::move(slot));
        end_row(row, half ? "the daemon ended while it was " + row.state
                          : "its shim was gone when the daemon started");
        continue;
      }
      PodPlan plan = *pod->second.plan;
      plan.version = row.version;
      std::string id = row.id;
      // What connections called for under the earlier daemon is not known any more; the replicas
      // that serve go as if their last connection had ended now.
      if (state != State::kStandby) ++pod->second.demand;
      pod->second.demand_check_us = monotonic_us() + pod->second.spec.keep_warm_us;
      replicas.emplace(id, std::make_shared<Replica>(services(), std::move(plan), std::move(row),
                                                     std::move(slot), [this] { poke(); }));
    }
    for (auto& [name, row] : by_slot) end_row(row, "its shim was gone when the daemon started");
  }

  void end_row(state::ReplicaRow row, const std::string& reason) {
    row.state = row.intent == "stop" ? "stopped" : "failed";
    row.reason = reason;
    row.ended_us = wall_us();
    row.slot.clear();
    row.pid = 0;
    row.gate_open = false;
    database.put_replica(row);
    database.append_event(
        {.type = "replica." + row.state, .pod = row.pod, .replica = row.id, .message = reason});
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
        database.prune_replicas(kKeptReplicas);
        lock.lock();
        changed.notify_all();
      }
      std::set<std::string> needing;
      {
        std::scoped_lock needs(needy_mutex);
        needing.swap(needy);
      }
      bool short_of_memory = pressure.is_short(next_us);
      for (auto& [name, pod] : pods) {
        follow_demand(pod, needing.contains(name), next_us);
        reconcile(pod, short_of_memory, next_us);
      }
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

  // Grows at once, shrinks when less was enough for a while.
  void follow_demand(Pod& pod, bool called, std::int64_t& next_us) {
    std::int64_t now = monotonic_us();
    if (called || (pod.demand && now >= pod.demand_check_us)) {
      gateway::Need need = gateway.need(pod.row.name);
      int before = pod.demand;
      bool checked = pod.demand && now >= pod.demand_check_us;
      std::int64_t idle_until = need.idle_since_us + pod.spec.keep_warm_us;
      if (need.peak > pod.demand)
        pod.demand = need.peak;
      else if (checked)
        pod.demand = need.now == 0 && now >= idle_until ? 0 : std::max(need.peak, 1);
      if (pod.demand > before) pod.requested_us = now;
      if (pod.demand > 1)
        pod.demand_check_us = now + pod.spec.scale_down_delay_us;
      else if (need.peak)
        pod.demand_check_us = now + pod.spec.keep_warm_us;
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
      } else if (pod != pods.end() && row.state == "failed") {
        Pod& owner = pod->second;
        bool settled = row.ready_us && row.ended_us - row.ready_us > kSettledUs;
        owner.failures = settled ? 1 : owner.failures + 1;
        owner.pause_until_us =
            monotonic_us() + back_off_us(kFirstPauseUs, kLongestPauseUs, owner.failures);
        owner.last_failure = row.reason;
        owner.last_failure_us = monotonic_us();
      }
      gone.push_back(std::move(at->second));
      at = replicas.erase(at);
    }
    return gone;
  }

  void reconcile(Pod& pod, bool short_of_memory, std::int64_t& next_us) {
    if (!pod.plan) return;
    std::int64_t wanted = desired(pod);
    std::vector<Replica*> current, old, standbys;
    std::int64_t ready = 0;
    for (auto& [id, replica] : replicas) {
      state::ReplicaRow row = replica->row();
      if (row.pod != pod.row.name || row.intent == "stop" || lifecycle::ended(replica->state()))
        continue;
      bool fresh = row.version == pod.row.version;
      (!fresh ? old : replica->resting() ? standbys : current).push_back(replica.get());
      if (fresh && replica->state() == State::kReady) ++ready;
    }
    // Those that wait already, before those that are still being restored.
    std::stable_partition(standbys.begin(), standbys.end(),
                          [](Replica* one) { return one->state() == State::kStandby; });
    if (!standbys.empty() && standbys.front()->state() == State::kStandby) pod.standby_failures = 0;
    std::int64_t missing = wanted - static_cast<std::int64_t>(current.size());
    std::int64_t now = monotonic_us();
    std::int64_t requested = pod.requested_us ? pod.requested_us : now;
    for (; missing > 0 && !standbys.empty(); standbys.erase(standbys.begin()))
      if (standbys.front()->take(requested)) {
        --missing;
        // The next is made when the one that is needed now has had the machine for a moment.
        pod.standby_pause_us = std::max(pod.standby_pause_us, now + kRefillPauseUs);
      }
    for (; missing > 0; --missing) {
      if (pod.pause_until_us > now) {
        next_us = std::min(next_us, pod.pause_until_us);
        break;
      }
      add_replica(pod, requested, false);
    }
    // The ones that are not ready go first, then the youngest.
    std::sort(current.begin(), current.end(), [](Replica* a, Replica* b) {
      bool a_ready = a->state() == State::kReady, b_ready = b->state() == State::kReady;
      return a_ready != b_ready ? b_ready : a->row().created_us > b->row().created_us;
    });
    for (std::int64_t extra = static_cast<std::int64_t>(current.size()) - wanted, i = 0; i < extra;
         ++i)
      current[static_cast<std::size_t>(i)]->stop(pod.row.stopped ? "the pod was stopped"
                                                                 : "scaled down");
    if (ready >= wanted)
      for (Replica* replica : old)
        replica->stop(wanted ? "a new version has taken over" : "the pod was stopped");
    keep_standbys(pod, standbys, short_of_memory, next_us);
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
    if (standbys.size() >= wanted || !pod.plan->checkpoint.enabled ||
        newest_checkpoint(pod).empty())
      return;
    if (std::int64_t now = monotonic_us(); pod.standby_pause_us > now) {
      next_us = std::min(next_us, pod.standby_pause_us);
      return;
    }
    for (std::size_t i = standbys.size(); i < wanted; ++i) add_replica(pod, monotonic_us(), true);
  }

  void add_replica(const Pod& pod, std::int64_t requested_us, bool standby) {
    std::string id = random_hex(12);
    replicas.emplace(id, std::make_shared<Replica>(
                             services(), *pod.plan, id, requested_us, [this] { poke(); }, standby));
  }

  // The one that the next replica would start from; "" when there is none.
  std::string newest_checkpoint(const Pod& pod) {
    for (const auto& row : database.checkpoints({}, pod.plan->fingerprint))
      if (row.status == "available") return row.id;
    return {};
  }

  // Replicas of a pod that have not ended, standbys too.
  int count(const std::string& pod) {
    int found = 0;
    for (auto& [id, replica] : replicas)
      if (replica->row().pod == pod && !lifecycle::ended(replica->state())) ++found;
    return found;
  }

  PodView view(Pod& pod) {
    PodView view;
    view.row = pod.row;
    view.spec = pod.spec;
    view.desired = desired(pod);
    for (auto& [id, replica] : replicas) {
      if (replica->row().pod != pod.row.name || lifecycle::ended(replica->state())) continue;
      if (replica->resting()) {
        if (replica->state() == State::kStandby) ++view.standby;
        continue;
      }
      ++view.total;
      if (replica->state() == State::kReady) ++view.ready;
    }
    if (pod.plan) {
      view.checkpoint_effective = pod.plan->checkpoint.enabled;
      view.checkpoint_reason = pod.plan->checkpoint.reason;
      if (auto pause = database.backoff(pod.plan->fingerprint)) {
        view.dump_failures = pause->failures;
        view.dump_pause_until_us = pause->until_us;
        view.dump_failure = pause->reason;
      }
      view.checkpoint = newest_checkpoint(pod);
    } else {
      view.checkpoint_reason = pod.broken;
    }
    auto traffic = gateway.traffic(pod.row.name);
    view.held = traffic.held;
    view.active = traffic.active;
    return view;
  }

  Replica& live_replica(const std::string& id) {
    auto found = replicas.find(id);
    if (found == replicas.end())
      throw Error(Code::kConflict, "use replica", id, "it has ended", "see `thaw ps`");
    return *found->second;
  }
};

Controller::Controller(lifecycle::Settings settings)
    : impl_(std::make_unique<Impl>(std::move(settings))) {}

Controller::~Controller() {
  if (impl_->running) shutdown(false);
}

void Controller::start() {
  impl_->load_pods();
  if (impl_->front) impl_->front->start();
  impl_->gateway.listen_for_links(network::link_listener(impl_->network.instance()),
                                  network::kLinkPort,
                                  [this](const std::string& replica, const std::string& link) {
                                    return impl_->links.find(replica, link);
                                  });
  impl_->adopt_replicas();
  impl_->network.remove_stray_interfaces();
  impl_->slots.start_refill();
  impl_->checkpoints.recover([this](const std::string& name) -> std::optional<PodPlan> {
    auto found = impl_->pods.find(name);
    return found == impl_->pods.end() ? std::nullopt : found->second.plan;
  });
  impl_->running = true;
  impl_->reconciler = std::thread([this] { impl_->reconcile_loop(); });
}

void Controller::shutdown(bool stop_replicas) {
  Impl& impl = *impl_;
  if (!impl.running) return;
  impl.running = false;
  {
    std::scoped_lock lock(impl.mutex);
    impl.closing = true;
    impl.poke_locked();
  }
  impl.reconciler.join();
  for (auto& [id, replica] : impl.replicas) {
    if (stop_replicas)
      replica->stop("the daemon ends");
    else
      replica->detach();
  }
  impl.replicas.clear();
  impl.checkpoints.close();
  impl.slots.close();
  // With no replica left nothing needs the host's side of the network; the next daemon makes it
  // anew.
  if (impl.slots.found().empty()) impl.network.destroy();
  impl.metrics.close();
  impl.database.close_waiters();
}

state::Database& Controller::database() { return impl_->database; }
const lifecycle::Settings& Controller::settings() const { return impl_->settings; }

DeployResult Controller::deploy(const state::PodSpec& wanted) {
  Impl& impl = *impl_;
  state::PodSpec spec = wanted;
  validate(spec, spec.name);
  DeployResult result;
  std::int64_t version = 1;
  {
    std::scoped_lock lock(impl.mutex);
    auto found = impl.pods.find(spec.name);
    result.created = found == impl.pods.end();
    if (!result.created) {
      version = found->second.row.version;
      // A port that Thaw chose stays the same over versions.
      for (auto& port : spec.ports)
        for (const auto& old : found->second.spec.ports)
          if (port.host == 0 && old.container == port.container && old.address == port.address)
            port.host = old.host;
    }
  }
  PodPlan plan = impl.plan_for(spec, version);
  std::vector<gateway::PublishedPort> ports = impl.publish(spec);
  for (std::size_t i = 0; i < ports.size(); ++i) spec.ports[i].host = ports[i].host;
  plan.spec.ports = spec.ports;

  std::scoped_lock lock(impl.mutex);
  Impl::Pod& pod = impl.pods[spec.name];
  nlohmann::json json = to_json(spec);
  result.changed = result.created || pod.row.spec != json || pod.row.program != plan.program;
  bool crash_loop = pod.failures > 0;
  if (result.changed) {
    plan.version = result.created ? 1 : pod.row.version + 1;
    if (!result.created) impl.database.clear_backoff(plan.fingerprint);
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
    pod.plan = plan;
    pod.broken.clear();
  }
  if (result.changed || crash_loop) pod.failures = 0, pod.pause_until_us = 0;
  pod.row.stopped = false;
  pod.requested_us = monotonic_us();
  impl.database.transaction([&] {
    impl.database.put_pod(pod.row);
    if (result.changed)
      impl.database.append_event({.type = result.created ? "pod.deployed" : "pod.updated",
                                  .pod = spec.name,
                                  .message = fmt::format("version {} deployed", pod.row.version)});
  });
  if (spec.checkpoint.enabled && !plan.checkpoint.enabled)
    result.warnings.push_back("checkpointing is off: " + plan.checkpoint.reason);
  if (plan.checkpoint.enabled)
    for (auto& [key, value] : spec.env)
      if (looks_secret(key))
        result.warnings.push_back("env." + key +
                                  " looks like a secret: the checkpoint holds it; give it as a "
                                  "file under `secrets`");
  result.pod = impl.view(pod);
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

PodView Controller::scale(const std::string& name, int replicas, std::int64_t wait_us) {
  Impl& impl = *impl_;
  std::unique_lock lock(impl.mutex);
  Impl::Pod* pod = &impl.find_pod(name);
  if (replicas < 0 || replicas > pod->spec.max_replicas)
    throw Error(Code::kInvalid, "scale pod", name,
                fmt::format("{} is not between 0 and replicas.max, which is {}", replicas,
                            pod->spec.max_replicas),
                "give another number, or deploy it with a higher replicas.max");
  if (!pod->plan)
    throw Error(Code::kUnavailable, "scale pod", name, pod->broken, "deploy it again");
  std::int64_t asked = monotonic_us();
  pod->row.desired = replicas;
  pod->row.stopped = false;
  pod->row.updated_us = wall_us();
  pod->requested_us = asked;
  pod->failures = 0;
  pod->pause_until_us = 0;
  // From now on the user's word counts; those who wait at the gate are still served.
  pod->demand = impl.gateway.need(name).held;
  pod->demand_check_us = asked + pod->spec.keep_warm_us;
  impl.database.put_pod(pod->row);
  impl.database.append_event({.type = "pod.scaled",
                              .pod = name,
                              .message = fmt::format("{} replicas are wanted", replicas)});
  impl.poke_locked();
  if (wait_us <= 0) return impl.view(*pod);
  Deadline deadline = Deadline::after_us(wait_us);
  for (;;) {
    pod = &impl.find_pod(name);
    PodView now = impl.view(*pod);
    std::int64_t wanted = impl.desired(*pod);
    if (now.ready == wanted && now.total == wanted) return now;
    if (pod->last_failure_us > asked && now.ready < wanted)
      throw Error(Code::kUnavailable, "scale pod", name, pod->last_failure,
                  "see `thaw logs` and `thaw ps -a`");
    if (impl.closing)
      throw Error(Code::kUnavailable, "wait for pod", name, "the daemon ends",
                  "ask again when it runs again");
    if (deadline.passed())
      throw Error(Code::kTimeout, "scale pod", name,
                  fmt::format("{} of {} replicas are ready", now.ready, wanted), "see `thaw ps`");
    impl.changed.wait_for(lock, std::chrono::microseconds(deadline.left_us()));
  }
}

void Controller::stop(const std::string& name) {
  std::scoped_lock lock(impl_->mutex);
  Impl::Pod& pod = impl_->find_pod(name);
  pod.row.stopped = true;
  pod.row.updated_us = wall_us();
  impl_->database.put_pod(pod.row);
  impl_->database.append_event(
      {.type = "pod.stopped", .pod = name, .message = "stop was asked for"});
  impl_->poke_locked();
}

void Controller::remove(const std::string& name, bool force) {
  Impl& impl = *impl_;
  std::unique_lock lock(impl.mutex);
  Impl::Pod& pod = impl.find_pod(name);
  int total = impl.view(pod).total;
  if (total && !force && !pod.row.stopped)
    throw Error(Code::kConflict, "remove pod", name, fmt::format("{} replicas run", total),
                "stop it first, or use --force");
  pod.row.stopped = true;
  impl.database.put_pod(pod.row);
  impl.poke_locked();
  fault_point("pod.stopped");
  Deadline deadline = Deadline::after_us(pod.spec.stop_grace_us * 2 + 60'000'000);
  for (;;) {
    auto found = impl.pods.find(name);
    if (found == impl.pods.end()) return;
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
  if (impl.front) impl.front->routes().remove(name);
  impl.links.set(name, {});
  impl.gateway.unpublish(name);
  impl.pods.erase(name);
  impl.database.transaction([&] {
    impl.database.remove_pod(name);
    impl.checkpoints.forget_pod(name);
    impl.database.append_event({.type = "pod.removed", .pod = name, .message = "removed"});
  });
  lock.unlock();
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
  impl_->live_replica(row.id).stop("stop was asked for");
  // The pod wants one less from now on; else another would take its place at once.
  if (row.version == pod.row.version && pod.row.desired > 0) --pod.row.desired;
  impl_->database.put_pod(pod.row);
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
    std::scoped_lock lock(impl_->mutex);
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
    if (row.status != "deleted") rows.push_back(std::move(row));
  return rows;
}

state::CheckpointRow Controller::checkpoint(const std::string& text) {
  std::vector<std::string> ids;
  for (auto& row : checkpoints()) ids.push_back(row.id);
  std::string id = unique_match(ids, text, "checkpoint");
  if (id.empty())
    throw Error(Code::kNotFound, "find checkpoint", text, "there is no such checkpoint",
                "see `thaw checkpoint ls`");
  return *impl_->database.checkpoint(id);
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
    if (!impl_->criu_missing.empty())
      throw Error(Code::kUnsupported, "checkpoint pod", name, impl_->criu_missing);
    for (auto& [id, replica] : impl_->replicas)
      if (replica->row().pod == name && replica->row().version == pod.row.version &&
          replica->state() == State::kReady)
        chosen = replica;
  }
  if (!chosen)
    throw Error(Code::kConflict, "checkpoint pod", name, "no replica of it is ready",
                "scale it to 1 and wait, or look at `thaw ps`");
  std::string id = chosen->checkpoint_now(Deadline::after_ms(10 * 60'000));
  impl_->checkpoints.wait_settled(id, Deadline::after_ms(10 * 60'000));
  return *impl_->database.checkpoint(id);
}

void Controller::remove_checkpoint(const std::string& text) {
  impl_->checkpoints.remove(checkpoint(text).id);
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
  image::Image image = image::import_image(impl_->settings.data_dir, reference,
                                           Deadline::after_ms(30 * 60'000), -1, progress);
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

std::string Controller::metrics() {
  return impl_->metrics.text() +
         gauges(pods(), impl_->database.replicas(), checkpoints(), impl_->checkpoints.store_size());
}

std::vector<CheckResult> Controller::doctor() { return run_doctor(impl_->settings); }

}  // namespace thaw::pods
