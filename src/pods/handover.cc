#include "pods/handover.h"

#include <poll.h>
#include <unistd.h>

#include <sys/signalfd.h>
#include <algorithm>
#include <cerrno>
#include <csignal>

#include "lifecycle/shim_protocol.h"
#include "util/error.h"
#include "util/fault.h"
#include "util/file.h"
#include "util/log.h"
#include "util/packet.h"
#include "util/process.h"

namespace thaw::pods {
namespace {

using lifecycle::receive_message;
using lifecycle::send_message;
using nlohmann::json;

constexpr std::int64_t kLimitUs = 5'000'000;  // for one message of a process that hangs
// What a daemon needs at most to let go of its replicas: half-started ones are stopped.
constexpr std::int64_t kTakeOverUs = 180'000'000;
constexpr std::string_view kPrefix = "handover-";

json offer_json(const gateway::Offer& offer) {
  json ports = json::array();
  for (auto& port : offer.ports)
    ports.push_back({port.address, port.host, port.container, static_cast<int>(port.protocol),
                     static_cast<int>(port.client_address)});
  return {{"ports", ports}, {"routes", offer.routes}, {"restored", offer.restored}};
}

gateway::Offer offer_of_json(const json& from) {
  gateway::Offer offer;
  for (auto& port : from.at("ports"))
    offer.ports.push_back(
        {.address = port.at(0),
         .host = port.at(1),
         .container = port.at(2),
         .protocol = static_cast<gateway::Protocol>(port.at(3).get<int>()),
         .client_address = static_cast<gateway::ClientAddress>(port.at(4).get<int>())});
  offer.restored = from.at("restored");
  offer.routes = from.at("routes").get<std::map<std::string, std::uint16_t>>();
  return offer;
}

gateway::Elsewhere connections_of(const json& report) {
  gateway::Elsewhere all;
  all.held = report.value("held", std::map<std::string, std::int64_t>{});
  all.active =
      report.value("active", std::map<std::string, std::pair<std::string, std::int64_t>>{});
  return all;
}

bool try_send(const Fd& to, const json& message, int descriptor = -1) {
  try {
    send_message(to, message, descriptor < 0 ? std::vector<int>{} : std::vector<int>{descriptor});
    return true;
  } catch (const Error& error) {
    log::warn("another daemon process does not listen", {{"error", error.what()}});
    return false;
  }
}

}  // namespace

// ---- the later daemon ----

Predecessors::~Predecessors() { leave(); }

std::vector<std::string> Predecessors::doors() const {
  std::vector<std::string> found;
  if (!exists(settings_.private_dir())) return found;
  for (const auto& entry : std::filesystem::directory_iterator(settings_.private_dir()))
    if (entry.path().filename().string().starts_with(kPrefix)) found.push_back(entry.path());
  return found;
}

void Predecessors::take_over() {
  for (const std::string& door : doors())
    if (!knock(door, kTakeOverUs))
      throw Error(Code::kTimeout, "take over from the daemon of", settings_.data_dir,
                  "it does not let go", "see its log, or stop it");
}

// False when somebody is there and does not answer.
bool Predecessors::knock(const std::string& path, std::int64_t limit_us) {
  Fd socket = connect_private(path, kLimitUs);
  if (!socket) stale_.push_back(path);
  if (!socket || !try_send(socket, {{"op", "take"}})) return true;
  if (!wait_readable(socket.get(), Deadline::after_us(limit_us))) return false;
  auto answer = receive_message(socket);
  if (!answer) return true;  // it has ended meanwhile
  fault_point("handover.taken");
  all_.push_back({.socket = std::move(socket),
                  .source = static_cast<int>(all_.size()),
                  .report = std::move(answer->body)});
  return true;
}

void Predecessors::follow(gateway::Gateway& gateway) {
  if (!settings_.replace)
    for (const std::string& door : doors())
      if (!knock(door, kLimitUs))
        log::warn("an earlier daemon's process does not answer", {{"socket", door}});
  // With the lock in hand nobody begins to listen there any more.
  for (const std::string& path : stale_) ::unlink(path.c_str());
  gateway_ = &gateway;
  if (all_.empty()) return;
  for (One& one : all_) gateway.set_elsewhere(one.source, connections_of(one.report));
  reader_ = std::thread([this] { read_loop(); });
}

void Predecessors::read_loop() {
  for (;;) {
    std::vector<pollfd> fds{{stop_.get(), POLLIN, 0}};
    std::vector<One*> from;
    {
      std::scoped_lock lock(mutex_);
      for (One& one : all_)
        if (one.socket) {
          fds.push_back({one.socket.get(), POLLIN, 0});
          from.push_back(&one);
        }
    }
    if (from.empty()) return;
    if (::poll(fds.data(), fds.size(), -1) < 0 && errno != EINTR) return;
    if (fds[0].revents) return;
    for (std::size_t i = 0; i < from.size(); ++i) {
      if (!fds[i + 1].revents) continue;
      // Nobody else reads, and nobody else gives the socket up.
      auto message = receive_message(from[i]->socket);
      // Counted before anybody is told that it was done.
      gateway_->set_elsewhere(from[i]->source,
                              message ? connections_of(message->body) : gateway::Elsewhere{});
      std::scoped_lock lock(mutex_);
      if (message)
        from[i]->done = std::max(from[i]->done, message->body.value("done", std::uint64_t{0}));
      else
        from[i]->socket.reset();
      changed_.notify_all();
    }
  }
}

std::uint64_t Predecessors::tell(json message, int descriptor) {
  std::scoped_lock lock(mutex_);
  message["id"] = ++last_;
  for (One& one : all_)
    if (one.socket) try_send(one.socket, message, descriptor);
  return last_;
}

void Predecessors::open(const std::string& pod, const std::string& replica, const Fd& netns,
                        const gateway::Offer& offer) {
  tell({{"op", "open"}, {"pod", pod}, {"replica", replica}, {"offer", offer_json(offer)}},
       netns.get());
}

void Predecessors::close(const std::string& pod, const std::string& replica) {
  std::uint64_t id = tell({{"op", "close"}, {"pod", pod}, {"replica", replica}});
  std::unique_lock lock(mutex_);
  bool all = changed_.wait_for(lock, std::chrono::microseconds(kLimitUs), [&] {
    return std::ranges::all_of(all_, [&](const One& one) { return !one.socket || one.done >= id; });
  });
  if (!all) log::warn("an earlier daemon's process does not answer", {{"replica", replica}});
}

void Predecessors::drop(const std::string& replica) {
  tell({{"op", "drop"}, {"replica", replica}});
}

void Predecessors::end() { tell({{"op", "end"}}); }

void Predecessors::leave() {
  signal_event(stop_);
  if (reader_.joinable()) reader_.join();
  std::scoped_lock lock(mutex_);
  for (One& one : std::exchange(all_, {}))
    if (gateway_) gateway_->set_elsewhere(one.source, {});
}

// ---- the earlier daemon ----

Door::Door(const lifecycle::Settings& settings)
    : path_(fmt::format("{}/{}{}", settings.private_dir(), kPrefix, ::getpid())),
      listener_(listen_private(path_)) {}

Door::~Door() { ::unlink(path_.c_str()); }

Fd Door::answer() const {
  Fd caller = accept_private(listener_, kLimitUs);
  if (!caller) return caller;
  auto message = receive_message(caller);
  if (!message || message->body.value("op", "") != "take") caller.reset();
  return caller;
}

bool Remainder::begin(Fd successor) {
  if (!report(successor)) return false;
  successors_.push_back(std::move(successor));
  return true;
}

bool Remainder::report(const Fd& to, std::uint64_t done) {
  gateway::Elsewhere now = gateway_.connections();
  return try_send(to, {{"done", done}, {"held", now.held}, {"active", now.active}});
}

// False when the later daemon has gone: what it last said stays.
bool Remainder::obey(Fd& from) {
  auto message = receive_message(from);
  if (!message) return false;
  const json& body = message->body;
  std::string op = body.value("op", ""), pod = body.value("pod", ""),
              replica = body.value("replica", "");
  try {
    if (op == "end") over_ = true;
    if (op == "open" && !gateway_.gate_is_open(replica) && message->descriptors.size() == 1)
      gateway_.open_gate(pod, replica, message->descriptors[0], offer_of_json(body.at("offer")));
    if (op == "close") gateway_.close_gate(pod, replica);
    if (op == "drop") gateway_.drop(replica);
  } catch (const std::exception& error) {
    log::warn("a later daemon's word could not be followed",
              {{"what", op}, {"replica", replica}, {"error", describe(error)}});
  }
  return report(from, body.value("id", std::uint64_t{0}));
}

void Remainder::run(const Door& door, const Fd& signal, std::int64_t time_us) {
  Deadline end = Deadline::after_us(time_us);
  while (!over_ && !end.passed()) {
    if (gateway_.connections().total == 0 && (!front_ || front_->clients() == 0)) return;
    std::vector<pollfd> fds{
        {changed_.get(), POLLIN, 0}, {signal.get(), POLLIN, 0}, {door.fd().get(), POLLIN, 0}};
    for (const Fd& one : successors_) fds.push_back({one.get(), POLLIN, 0});
    if (::poll(fds.data(), fds.size(), end.poll_ms()) < 0 && errno != EINTR)
      throw_errno("poll", "connections");
    if (fds[1].revents) {
      signalfd_siginfo info{};
      if (::read(signal.get(), &info, sizeof info) > 0 && info.ssi_signo != SIGHUP) return;
    }
    std::vector<Fd> living;
    for (std::size_t i = 0; i < successors_.size(); ++i)
      if (!fds[i + 3].revents || obey(successors_[i])) living.push_back(std::move(successors_[i]));
    if (fds[0].revents) {
      clear_event(changed_);
      std::erase_if(living, [&](const Fd& one) { return !report(one); });
    }
    successors_ = std::move(living);
    if (fds[2].revents)
      if (Fd next = door.answer(); next && report(next)) successors_.push_back(std::move(next));
  }
}

}  // namespace thaw::pods
