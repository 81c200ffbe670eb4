#include "util/holder.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>

#include "util/clock.h"
#include "util/error.h"
#include "util/log.h"
#include "util/packet.h"
#include "util/process.h"

// A packet to the holder is one letter and a name; it answers with ".".
//   k NAME + descriptor   keep it, in place of one of the same name
//   d NAME                drop it
//   q                     end
// To a daemon that connects it sends each name with its descriptor, then "." alone.

namespace thaw {
namespace {

constexpr std::int64_t kLimitUs = 2'000'000;  // for one packet of a daemon or a holder that hangs
constexpr std::int64_t kWaitUs = 60'000'000;

std::string socket_path(const std::string& folder) { return folder + "/holder"; }

}  // namespace

Holder::Holder(const std::string& folder) : folder_(folder) {
  socket_ = connect_private(socket_path(folder_), kLimitUs);
  while (socket_) {
    auto packet = receive_packet(socket_);
    if (!packet)
      socket_.reset();
    else if ((found_ = packet->text == "."))
      return;
    else if (packet->descriptor)
      untaken_.insert_or_assign(packet->text, std::move(packet->descriptor));
  }
  // What was received of one that died in between is kept by the new one.
  start();
}

Holder::~Holder() {
  if (!found_) dismiss();
}

void Holder::start() {
  try {
    auto [ours, theirs] = Fd::socket_pair(SOCK_SEQPACKET);
    Fd null = Fd::open("/dev/null", O_RDWR);
    ProcessOptions options;
    options.descriptors = {{null.get(), 1}, {null.get(), 2}, {theirs.get(), 3}};
    options.new_session = true;
    Process process = Process::spawn({"/proc/self/exe", "holder", folder_}, options);
    process.detach();
    socket_ = std::move(ours);
    for (auto* all : {&kept_, &untaken_})
      for (auto& [name, fd] : *all)
        if (!ask("k" + name, fd.get())) break;
  } catch (const Error& error) {
    log::warn("listening sockets will not outlive this daemon", {{"error", error.what()}});
    socket_.reset();
  }
}

bool Holder::ask(std::string_view text, int descriptor) {
  if (socket_ && send_packet(socket_, text, descriptor) && receive_packet(socket_)) return true;
  socket_.reset();
  return false;
}

// One that is gone, or hangs, is replaced; the new one is given what is kept now.
void Holder::tell(std::string_view text, int descriptor) {
  if (!left_ && !ask(text, descriptor)) start();
}

Fd Holder::take(const std::string& name) {
  std::scoped_lock lock(mutex_);
  auto found = untaken_.extract(name);
  if (found.empty()) return {};
  Fd taken = found.mapped().duplicate();
  kept_.insert(std::move(found));
  return taken;
}

void Holder::keep(const std::string& name, const Fd& socket) {
  std::scoped_lock lock(mutex_);
  kept_.insert_or_assign(name, socket.duplicate());
  tell("k" + name, socket.get());
}

void Holder::drop(const std::string& name) {
  std::scoped_lock lock(mutex_);
  if (left_) return;
  if (kept_.erase(name) + untaken_.erase(name) > 0) tell("d" + name);
}

void Holder::drop_untaken() {
  std::scoped_lock lock(mutex_);
  for (auto& [name, fd] : std::exchange(untaken_, {})) tell("d" + name);
}

void Holder::leave() {
  std::scoped_lock lock(mutex_);
  left_ = true;
  socket_.reset();
  kept_.clear();
  untaken_.clear();
}

void Holder::dismiss() {
  std::scoped_lock lock(mutex_);
  if (!left_ && socket_) ask("q");
  left_ = true;
  kept_.clear();
  untaken_.clear();
  socket_.reset();
}

void hold_descriptors(const std::string& folder, Fd daemon, std::int64_t wait_us) {
  std::map<std::string, Fd> kept;
  Fd listener = listen_private(socket_path(folder));
  struct stat ours {
  }, found{};
  check(::lstat(socket_path(folder).c_str(), &ours), "look at", socket_path(folder));
  Deadline end = Deadline::never();
  for (;;) {
    pollfd fds[2] = {{listener.get(), POLLIN, 0}, {daemon.get(), POLLIN, 0}};
    if (::poll(fds, daemon ? 2 : 1, end.poll_ms()) < 0) continue;
    if (end.passed()) break;
    if (daemon && fds[1].revents) {
      auto packet = receive_packet(daemon);
      if (!packet) {
        daemon.reset();
        end = Deadline::after_us(wait_us);
        continue;
      }
      std::string name = packet->text.substr(1);
      if (packet->text[0] == 'q') break;  // the end of the process is the answer
      if (packet->text[0] == 'k' && packet->descriptor)
        kept.insert_or_assign(name, std::move(packet->descriptor));
      if (packet->text[0] == 'd') kept.erase(name);
      send_packet(daemon, ".");
    }
    if (fds[0].revents) {
      Fd next = accept_private(listener, kLimitUs);
      bool told = static_cast<bool>(next);
      for (auto& [name, fd] : kept) told = told && send_packet(next, name, fd.get());
      if (!told || !send_packet(next, ".")) continue;
      daemon = std::move(next);
      end = Deadline::never();
    }
  }
  kept.clear();
  // Another holder may have come in place of one that did not answer.
  if (::lstat(socket_path(folder).c_str(), &found) == 0 && found.st_ino == ours.st_ino)
    ::unlink(socket_path(folder).c_str());
}

int holder_main(int argc, char** argv) {
  if (argc != 3) return 2;
  ::prctl(PR_SET_NAME, "thaw-holder", 0, 0, 0);
  std::signal(SIGPIPE, SIG_IGN);
  if (::chdir("/") != 0) return 1;
  try {
    hold_descriptors(argv[2], Fd(3), kWaitUs);
    return 0;
  } catch (const std::exception&) {
    return 1;  // its daemon sees that it is gone
  }
}

}  // namespace thaw
