#include "lifecycle/slots.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <new>
#include <system_error>

#include "util/error.h"
#include "util/fault.h"
#include "util/file.h"
#include "util/log.h"
#include "util/process.h"

namespace thaw::lifecycle {
namespace {
// A host without memory, processes or descriptors must not be hammered.
constexpr auto kRefillPause = std::chrono::seconds(2);
}  // namespace

bool no_room(const std::exception& error) {
  auto ours = dynamic_cast<const Error*>(&error);
  return (ours && ours->code() == Code::kExhausted) ||
         dynamic_cast<const std::bad_alloc*>(&error) ||
         dynamic_cast<const std::system_error*>(&error);
}

Slots::Slots(const Settings& settings, checkpoint::CriuInstall criu, network::Network& network)
    : settings_(settings),
      criu_(std::move(criu)),
      network_(network),
      layout_(runtime::CgroupLayout::detect()),
      most_(static_cast<std::size_t>(settings.slots)) {
  make_directories(settings_.data_dir + "/slots", 0700);
  Fd tree = runtime::detached_mount(settings_.thaw_binary, MOUNT_ATTR_RDONLY);
  // Above the numbers that a child has a use for.
  program_ =
      Fd(check(::fcntl(tree.get(), F_DUPFD_CLOEXEC, 10), "duplicate", settings_.thaw_binary));
}

void Slots::start_refill() {
  refill_ = std::thread([this] { refill_loop(); });
  cleaner_ = std::thread([this] { clean_loop(); });
}

Slots::~Slots() { close(); }

void Slots::close() {
  {
    std::scoped_lock lock(mutex_);
    if (std::exchange(closing_, true)) return;  // another daemon may have come meanwhile
    changed_.notify_all();
  }
  if (refill_.joinable()) refill_.join();
  for (auto& slot : ready_) destroy(std::move(slot));
  ready_.clear();
  {
    std::scoped_lock lock(mutex_);
    all_destroyed_ = true;
    changed_.notify_all();
  }
  if (cleaner_.joinable())
    cleaner_.join();
  else
    clean_loop();
  runtime::Cgroup(layout_, fmt::format("/thaw/{}", network_.instance())).remove_if_empty();
  runtime::Cgroup(layout_, "/thaw").remove_if_empty();
}

std::unique_ptr<Slot> Slots::make() {
  auto slot = std::make_unique<Slot>();
  slot->name = random_hex(12);
  slot->paths.dir = settings_.slot_dir(slot->name);
  slot->cgroup = fmt::format("/thaw/{}/{}", network_.instance(), slot->name);
  make_directories(slot->paths.dir, 0700);
  try {
    slot->endpoint = network_.create();
    fault_point("slot.network");
    nlohmann::json note{{"index", slot->endpoint.index},
                        {"interface", slot->endpoint.interface},
                        {"address", slot->endpoint.address},
                        {"address6", slot->endpoint.address6},
                        {"cgroup", slot->cgroup}};
    write_file(slot->paths.dir + "/slot.json", note.dump());
    fault_point("slot.noted");
    auto [ours, theirs] = Fd::socket_pair(SOCK_SEQPACKET);
    ProcessOptions options;
    options.descriptors = {{theirs.get(), 3}};
    options.new_session = true;
    Process process = Process::spawn(
        {fmt::format("/proc/self/fd/{}", program_.get()), "shim", slot->paths.dir}, options);
    theirs.reset();
    slot->shim_pid = process.pid();
    slot->shim_handle = process.pidfd().duplicate();
    process.detach();
    slot->shim = std::make_unique<ShimClient>(std::move(ours));
    fault_point("slot.shim", {{"shim", slot->shim_pid}});
    slot->shim->call({{"op", "prepare"},
                      {"link", slot->endpoint.interface},
                      {"criu", criu_.command},
                      {"criu_version", criu_.version},
                      {"runtime", settings_.runtime},
                      {"cgroup", slot->cgroup},
                      {"swrk", !criu_.command.empty()}},
                     Deadline::after_ms(20'000), {slot->endpoint.netns.get()});
    fault_point("slot.prepared", {{"shim", slot->shim_pid}});
  } catch (...) {
    destroy(std::move(slot));
    throw;
  }
  return slot;
}

std::unique_ptr<Slot> Slots::take() {
  {
    std::unique_lock lock(mutex_);
    while (!ready_.empty()) {
      std::unique_ptr<Slot> slot = std::move(ready_.front());
      ready_.erase(ready_.begin());
      changed_.notify_all();
      if (!slot->shim->lost()) return slot;
      lock.unlock();
      destroy(std::move(slot));
      lock.lock();
    }
  }
  return make();
}

void Slots::set_most(int most) {
  std::scoped_lock lock(mutex_);
  most_ = static_cast<std::size_t>(most);
  changed_.notify_all();
}

void Slots::refill_loop() {
  std::unique_lock lock(mutex_);
  while (!closing_) {
    if (ready_.size() == most_) {
      changed_.wait(lock);
      continue;
    }
    if (ready_.size() > most_) {
      std::unique_ptr<Slot> spare = std::move(ready_.back());
      ready_.pop_back();
      lock.unlock();
      destroy(std::move(spare));
      lock.lock();
      continue;
    }
    lock.unlock();
    std::unique_ptr<Slot> slot;
    try {
      slot = make();
    } catch (const std::exception& error) {
      log::warn("a slot could not be prepared", {{"error", error.what()}});
    }
    lock.lock();
    if (slot)
      ready_.push_back(std::move(slot));
    else
      changed_.wait_for(lock, kRefillPause);
  }
}

void Slots::destroy(std::unique_ptr<Slot> slot) noexcept {
  if (!slot) return;
  if (slot->shim) {
    try {
      slot->shim->call({{"op", "destroy"}}, Deadline::after_ms(15'000));
    } catch (const std::exception&) {
      // It is gone or hangs: the rest is done from here.
    }
  }
  if (slot->shim_handle) {
    if (!wait_readable(slot->shim_handle.get(), Deadline::after_ms(3000)))
      ::kill(slot->shim_pid, SIGKILL);
    wait_readable(slot->shim_handle.get(), Deadline::after_ms(3000));
    // Reaps it when it is our child; a shim of an earlier daemon is init's.
    ::waitpid(slot->shim_pid, nullptr, WNOHANG);
  }
  slot->shim.reset();
  int index = slot->endpoint.index;
  slot->endpoint.netns.reset();
  clean({slot->name, slot->cgroup, index});
}

// A replica that wrote much has ended before the last of its files is gone.
void Slots::clean_loop() {
  std::unique_lock lock(mutex_);
  while (!all_destroyed_ || !leftovers_.empty()) {
    if (leftovers_.empty()) {
      changed_.wait(lock);
      continue;
    }
    Leftover slot = std::move(leftovers_.front());
    leftovers_.pop_front();
    lock.unlock();
    bool gone = release(slot) && remove_files(slot);
    lock.lock();
    if (gone || all_destroyed_) continue;  // the next daemon finds what is left
    leftovers_.push_back(std::move(slot));
    changed_.wait_for(lock, kRefillPause);
  }
}

void Slots::clean(Leftover slot) noexcept {
  release(slot);
  std::scoped_lock lock(mutex_);
  leftovers_.push_back(std::move(slot));
  changed_.notify_all();
}

bool Slots::release(Leftover& slot) noexcept {
  try {
    if (!slot.cgroup.empty()) {
      runtime::Cgroup group(layout_, slot.cgroup);
      bool empty = group.kill_all(Deadline::after_ms(10'000)) && group.remove();
      if (!empty) log::warn("a cgroup could not be removed", {{"cgroup", slot.cgroup}});
      slot.cgroup.clear();
    }
    if (slot.index >= 0) network_.release(std::exchange(slot.index, -1));
    return true;
  } catch (const std::exception& error) {
    log::warn("a slot could not be removed whole; it is tried again",
              {{"slot", slot.name}, {"error", error.what()}});
    return false;
  }
}

bool Slots::remove_files(const Leftover& slot) noexcept {
  try {
    remove_tree(settings_.slot_dir(slot.name));
    return true;
  } catch (const std::exception& error) {
    log::warn("a slot's files could not be removed; it is tried again",
              {{"slot", slot.name}, {"error", error.what()}});
    return false;
  }
}

std::vector<std::string> Slots::found() const {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(settings_.data_dir + "/slots"))
    names.push_back(entry.path().filename());
  return names;
}

std::unique_ptr<Slot> Slots::adopt(const std::string& name) {
  auto slot = std::make_unique<Slot>();
  slot->name = name;
  slot->paths.dir = settings_.slot_dir(name);
  try {
    nlohmann::json note = nlohmann::json::parse(read_file(slot->paths.dir + "/slot.json"));
    slot->endpoint.index = note.at("index");
    slot->endpoint.interface = note.at("interface");
    slot->endpoint.address = note.at("address");
    slot->endpoint.address6 = note.at("address6");
    slot->cgroup = note.at("cgroup");
    network_.adopt(slot->endpoint.index);
    slot->shim = ShimClient::connect(slot->paths.socket());
    nlohmann::json status = slot->shim->call({{"op", "status"}}, Deadline::after_ms(5000));
    slot->shim_pid = status.at("pid");
    slot->shim_handle = Fd::pidfd(slot->shim_pid);
    slot->endpoint.netns = Fd::open(fmt::format("/proc/{}/ns/net", slot->shim_pid), O_RDONLY);
    if (status.contains("status"))
      slot->shim->set_exit_status(status_from_json(status.at("status")));
    return slot;
  } catch (const std::exception& error) {
    if (no_room(error))
      throw Error(Code::kExhausted, "take back the replica in slot", name, describe(error),
                  std::string(kMoreRoom) + ", and start it again: its replicas run on");
    log::info("cleaning up after a slot whose shim is gone",
              {{"slot", name}, {"reason", error.what()}});
    slot->shim.reset();
    clean({name, slot->cgroup, slot->endpoint.index});
    return nullptr;
  }
}

}  // namespace thaw::lifecycle
