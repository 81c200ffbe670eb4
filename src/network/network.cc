#include "network/network.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <cerrno>

#include "network/address_pool.h"
#include "network/forwarding.h"
#include "network/layout.h"
#include "network/links.h"
#include "network/netns.h"
#include "network/nft_table.h"
#include "network/rtnetlink.h"
#include "util/clock.h"
#include "util/error.h"
#include "util/file.h"
#include "util/log.h"

namespace thaw::network {
namespace {

// A link group of our own, into which links go that are deleted together.
constexpr std::uint32_t kCondemnedGroup = 0x54485700;

std::string lock_path(const std::string& lock_dir, int instance) {
  return fmt::format("{}/network-{}", lock_dir, instance);
}

std::optional<Fd> try_claim(const std::string& lock_dir, int instance) {
  const std::string path = lock_path(lock_dir, instance);
  Fd lock = Fd::open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (::flock(lock.get(), LOCK_EX | LOCK_NB) == 0) return lock;
  if (errno == EWOULDBLOCK) return std::nullopt;
  throw_errno("lock", path);
}

std::set<int> instances_with_interfaces() {
  std::set<int> found;
  for (const Link& link : links(open_route_socket())) {
    if (auto name = parse_interface_name(link.name)) found.insert(name->instance);
  }
  return found;
}

// The first instance that is nobody's. One that no daemon holds but that has interfaces is the last
// choice: its replicas may live on under their shims, waiting for a daemon that has yet to come
// back.
std::pair<int, Fd> claim_any(const std::string& lock_dir) {
  const std::set<int> left_behind = instances_with_interfaces();
  for (bool with_interfaces : {false, true}) {
    for (int instance = 0; instance < kInstances; ++instance) {
      if (left_behind.contains(instance) != with_interfaces) continue;
      if (auto lock = try_claim(lock_dir, instance)) return {instance, std::move(*lock)};
    }
  }
  throw Error(Code::kExhausted, "claim a network instance in", lock_dir,
              fmt::format("all {} are in use by other daemons", kInstances), "stop one of them");
}

// The instance that this descriptor is the lock of; -1: none.
int instance_of(const std::string& lock_dir, const Fd& lock) {
  struct stat ours {
  }, found{};
  if (!lock || ::fstat(lock.get(), &ours) != 0) return -1;
  for (int instance = 0; instance < kInstances; ++instance) {
    if (::stat(lock_path(lock_dir, instance).c_str(), &found) == 0 && found.st_dev == ours.st_dev &&
        found.st_ino == ours.st_ino)
      return ::flock(lock.get(), LOCK_EX | LOCK_NB) == 0 ? instance : -1;
  }
  return -1;
}

std::pair<int, Fd> claim(const std::string& lock_dir, int preferred, Fd lock) {
  make_directories(lock_dir);
  if (int kept = instance_of(lock_dir, lock); kept >= 0 && (preferred < 0 || preferred == kept))
    return {kept, std::move(lock)};
  lock.reset();
  if (preferred < 0) return claim_any(lock_dir);
  if (preferred >= kInstances) {
    throw Error(Code::kInvalid, "claim network instance", std::to_string(preferred),
                fmt::format("there are {} only", kInstances));
  }
  if (auto claimed = try_claim(lock_dir, preferred)) return {preferred, std::move(*claimed)};
  throw Error(Code::kConflict, "claim network instance", std::to_string(preferred),
              "another daemon holds it",
              "stop that daemon, or start this one with another data directory");
}

// Deletes links that may vanish by themselves meanwhile. Together they cost as much as one alone.
int delete_links(const std::vector<std::string>& names, std::uint32_t group) {
  if (names.empty()) return 0;
  Fd socket = open_route_socket();
  int moved = 0;
  for (const std::string& name : names) {
    Batch batch;
    set_group(batch, name, group);
    auto failure = try_send(socket, batch);
    if (failure && failure->error_number != ENODEV) throw_failure(*failure);
    if (!failure) ++moved;
  }
  Batch batch;
  delete_group(batch, group);
  auto failure = try_send(socket, batch);
  if (failure && failure->error_number != ENODEV) throw_failure(*failure);
  return moved;
}

// Where the gateway listens for links. An earlier daemon's may be there, or none may be left.
void set_listener_address(int instance, bool there) {
  constexpr int kLoopback = 1;
  Batch batch;
  Address address = Address::parse(link_listener(instance));
  if (there)
    add_address(batch, kLoopback, address, address.bits());
  else
    delete_address(batch, kLoopback, address, address.bits());
  auto failure = try_send(open_route_socket(), batch);
  if (failure && failure->error_number != (there ? EEXIST : EADDRNOTAVAIL)) throw_failure(*failure);
}

}  // namespace

struct Network::Impl {
  int instance = 0;
  Fd lock;
  std::mutex mutex;
  AddressPool pool{kAddresses};
  std::int64_t rest_us =
      0;  // the kernel ends namespaces in the background, a thousand in half a second
  std::condition_variable changed;
  bool stopping = false;
  // Started by the constructor, so that it lives in the host's namespace whoever calls release.
  std::thread reaper;

  void check_index(int index) const {
    if (index >= 1 && index <= kAddresses) return;
    throw Error(Code::kInvalid, "use network address", std::to_string(index),
                fmt::format("indexes go from 1 to {}", kAddresses));
  }

  // Deletes the host ends that outlive their replica's rest.
  void reap() {
    std::unique_lock hold(mutex);
    while (!stopping) {
      auto index = pool.take_rested(monotonic_us());
      if (!index) {
        auto next = pool.next_rested_us();
        if (!next) {
          changed.wait(hold);
        } else {
          changed.wait_for(hold, std::chrono::microseconds(
                                     std::max<std::int64_t>(*next - monotonic_us(), 0) + 1));
        }
        continue;
      }
      hold.unlock();
      delete_leftover(interface_name(instance, *index));
      hold.lock();
      pool.free(*index);
    }
  }

  void delete_leftover(const std::string& interface) {
    try {
      Fd socket = open_route_socket();
      if (!find_link(socket, interface)) return;
      log::warn(
          "deleting a link that outlived its replica; a process or an open descriptor still holds "
          "its namespace",
          {{"interface", interface}});
      Batch batch;
      delete_link(batch, interface);
      auto failure = try_send(socket, batch);
      if (failure && failure->error_number != ENODEV) throw_failure(*failure);
    } catch (const std::exception& error) {
      log::warn("cannot delete a leftover link",
                {{"interface", interface}, {"why", describe(error)}});
    }
  }

  void stop() {
    {
      std::lock_guard hold(mutex);
      stopping = true;
    }
    changed.notify_all();
    if (reaper.joinable()) reaper.join();
  }
};

Network::Network(const std::string& lock_dir, int preferred_instance, Fd lock, std::int64_t rest_us)
    : impl_(std::make_unique<Impl>()) {
  impl_->rest_us = rest_us;
  std::tie(impl_->instance, impl_->lock) = claim(lock_dir, preferred_instance, std::move(lock));
  enable_forwarding();
  std::int64_t start = monotonic_us();
  load_table(impl_->instance);
  set_listener_address(impl_->instance, true);
  log::debug("loaded the nft table", {{"table", table_name(impl_->instance)},
                                      {"us", std::to_string(monotonic_us() - start)}});
  impl_->reaper = std::thread([impl = impl_.get()] { impl->reap(); });
}

Network::~Network() { impl_->stop(); }

int Network::instance() const { return impl_->instance; }

const Fd& Network::lock() const { return impl_->lock; }

Endpoint Network::create() {
  std::optional<int> index;
  {
    std::lock_guard hold(impl_->mutex);
    index = impl_->pool.take();
  }
  if (!index) {
    throw Error(Code::kExhausted, "create a replica's network", table_name(impl_->instance),
                fmt::format("all {} addresses are in use", kAddresses),
                "stop replicas, or start another daemon for more");
  }
  Endpoint endpoint;
  endpoint.index = *index;
  endpoint.interface = interface_name(impl_->instance, *index);
  endpoint.address = unique_address(impl_->instance, *index);
  endpoint.address6 = unique_address6(impl_->instance, *index);
  try {
    endpoint.netns = make_replica_netns(endpoint.interface, endpoint.address, endpoint.address6);
  } catch (...) {
    release(*index);
    throw;
  }
  return endpoint;
}

void Network::adopt(int index) {
  impl_->check_index(index);
  std::lock_guard hold(impl_->mutex);
  impl_->pool.adopt(index);
}

void Network::release(int index) {
  impl_->check_index(index);
  {
    std::lock_guard hold(impl_->mutex);
    impl_->pool.rest(index, monotonic_us() + impl_->rest_us);
  }
  impl_->changed.notify_all();
}

int Network::remove_stray_interfaces() {
  std::vector<int> indexes;
  std::vector<std::string> names;
  {
    std::lock_guard hold(impl_->mutex);
    for (const Link& link : links(open_route_socket())) {
      auto name = parse_interface_name(link.name);
      if (!name || name->instance != impl_->instance || !impl_->pool.is_free(name->index)) continue;
      // Nobody may be given this index while its link goes.
      impl_->pool.adopt(name->index);
      indexes.push_back(name->index);
      names.push_back(link.name);
    }
  }
  auto give_back = [&] {
    std::lock_guard hold(impl_->mutex);
    for (int index : indexes) impl_->pool.free(index);
  };
  try {
    int removed =
        delete_links(names, kCondemnedGroup + static_cast<std::uint32_t>(impl_->instance));
    give_back();
    return removed;
  } catch (...) {
    give_back();
    throw;
  }
}

void Network::destroy() {
  impl_->stop();
  std::vector<std::string> names;
  for (const Link& link : links(open_route_socket())) {
    auto name = parse_interface_name(link.name);
    if (name && name->instance == impl_->instance) names.push_back(link.name);
  }
  delete_links(names, kCondemnedGroup + static_cast<std::uint32_t>(impl_->instance));
  set_listener_address(impl_->instance, false);
  delete_table(impl_->instance);
}

}  // namespace thaw::network
