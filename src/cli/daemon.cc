#include <grp.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <filesystem>

#include "api/controller_backend.h"
#include "api/server.h"
#include "cli/command.h"
#include "pods/controller.h"
#include "pods/handover.h"
#include "util/file.h"
#include "util/holder.h"
#include "util/log.h"
#include "util/process.h"
#include "util/version.h"
#include "util/watched_files.h"

namespace thaw::cli {
namespace {

struct DaemonOptions {
  lifecycle::Settings settings;
  std::vector<std::string> listen;
  std::string log_level = "info", log_format = "text", slots, quota, image_quota, image_size,
              verify_every, compress_after, hold_connections, hold_bytes, hold_time, idle_time,
              half_closed_time, front_header_time, front_keep_alive_time, front_stall_time,
              hand_over_time, group, tls_cert, tls_key;
  bool stop_replicas = false;
};

void set_up_log(const DaemonOptions& options) {
  log::Level level;
  if (!log::parse_level(options.log_level, level)) {
    throw Error(Code::kInvalid, "use --log-level", options.log_level, "there is no such level",
                "give debug, info, warn, error or off");
  }
  if (options.log_format != "text" && options.log_format != "json") {
    throw Error(Code::kInvalid, "use --log-format", options.log_format, "there is no such format",
                "give text or json");
  }
  log::set_level(level);
  log::set_json(options.log_format == "json");
}

// systemd's readiness protocol, sd_notify(3): one datagram to NOTIFY_SOCKET.
void notify_systemd(std::string_view message) {
  const char* path = std::getenv("NOTIFY_SOCKET");
  if (!path || (*path != '/' && *path != '@')) return;
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::size_t length = std::strlen(path);
  if (length >= sizeof address.sun_path) return;
  std::memcpy(address.sun_path, path, length);
  if (*path == '@') address.sun_path[0] = 0;
  Fd socket(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + length);
  if (!socket || ::sendto(socket.get(), message.data(), message.size(), MSG_NOSIGNAL,
                          reinterpret_cast<sockaddr*>(&address), size) < 0) {
    log::warn("systemd was not told", {{"socket", path}, {"error", std::strerror(errno)}});
  }
}

void log_doctor(pods::Controller& controller) {
  for (auto& check : controller.doctor()) {
    if (check.status == pods::CheckResult::Status::kPass) continue;
    log::warn(check.status == pods::CheckResult::Status::kFail ? "this host lacks something"
                                                               : "this host is not at its best",
              {{"check", check.name}, {"found", check.found}, {"remedy", check.remedy}});
  }
}

// Unchanged when it is not given.
void read_time(std::int64_t& setting, const std::string& text, const char* flag,
               bool may_be_never = false) {
  if (text.empty()) return;
  std::int64_t us = duration_us(text, flag);
  if (us < 1'000 && !(may_be_never && us == 0))
    throw Error(Code::kInvalid, std::string("use ") + flag, text, "it is below 1ms",
                may_be_never ? "give one such as 2m, or 0 for never" : "give one such as 2m");
  setting = us;
}

void read_traffic_limits(DaemonOptions& options) {
  lifecycle::Settings& settings = options.settings;
  if (!options.hold_connections.empty())
    settings.hold_connections =
        static_cast<int>(number(options.hold_connections, "--hold-connections", 0, 1'000'000));
  if (!options.hold_bytes.empty()) {
    std::uint64_t bytes = size_bytes(options.hold_bytes, "--hold-bytes");
    if (bytes > (1ull << 50))
      throw Error(Code::kInvalid, "use --hold-bytes", options.hold_bytes, "it is too much",
                  "give one such as 64MiB");
    settings.hold_bytes = static_cast<std::int64_t>(bytes);
  }
  read_time(settings.hold_time_us, options.hold_time, "--hold-time");
  read_time(settings.idle_time_us, options.idle_time, "--idle-time", true);
  read_time(settings.half_closed_time_us, options.half_closed_time, "--half-closed-time");
  read_time(settings.front_header_time_us, options.front_header_time, "--front-header-time");
  read_time(settings.front_keep_alive_time_us, options.front_keep_alive_time,
            "--front-keep-alive-time");
  read_time(settings.front_stall_time_us, options.front_stall_time, "--front-stall-time");
  if (!options.hand_over_time.empty())
    settings.hand_over_us = duration_us(options.hand_over_time, "--hand-over-time");
  if (settings.front_tls_cert.empty() != settings.front_tls_key.empty())
    throw Error(Code::kInvalid, "use --front-tls-cert and --front-tls-key", {},
                "one of them is given without the other", "give both, or none for plain HTTP");
  if (settings.front.empty() && !settings.front_tls_cert.empty())
    throw Error(Code::kInvalid, "use --front-tls-cert", settings.front_tls_cert,
                "there is no shared HTTP port", "give --front ADDRESS:PORT, too");
}

// The files are others now. What cannot be used changes nothing.
void renew_certificate(api::Server& server, const DaemonOptions& options) {
  try {
    server.use_certificate(api::TlsContext::server(options.tls_cert, options.tls_key));
    log::info("the API has a new certificate", {{"file", options.tls_cert}});
  } catch (const Error& error) {
    log::warn("the API keeps its certificate: the new one cannot be used",
              {{"error", error.what()}});
  }
}

// The program as it lies on disk now, with this process's command line: it asks this one to hand
// over when it has come so far.
void start_successor(const std::string& program) {
  std::vector<std::string> argv{program};
  std::string line = read_file("/proc/self/cmdline");
  for (std::size_t at = line.find('\0') + 1; at < line.size(); at = line.find('\0', at) + 1)
    argv.emplace_back(line.c_str() + at);
  if (std::ranges::find(argv, "--replace") == argv.end()) argv.emplace_back("--replace");
  try {
    Process::spawn(argv).detach();
    log::info("another daemon is started to take over", {{"program", program}});
  } catch (const Error& error) {
    log::error("no other daemon can take over", {{"error", error.what()}});
  }
}

int hand_over(api::Server& server, pods::Controller& controller, const pods::Door& door,
              Fd successor, const Fd& signals) {
  ucred peer{};
  socklen_t size = sizeof peer;
  ::getsockopt(successor.get(), SOL_SOCKET, SO_PEERCRED, &peer, &size);
  log::info("handing over", {{"to", std::to_string(peer.pid)}});
  server.hand_over();
  pods::Remainder remainder = controller.hand_over([&] { server.stop(); });
  notify_systemd("MAINPID=" + std::to_string(peer.pid));
  if (!remainder.begin(std::move(successor))) {
    log::error("the daemon that was to take over is gone; start one again");
    return kFailed;
  }
  log::info("handed over", {{"to", std::to_string(peer.pid)}});
  remainder.run(door, signals, controller.settings().hand_over_us);
  log::info("stopped");
  return kOk;
}

int daemon(DaemonOptions& options) {
  set_up_log(options);
  if (::geteuid() != 0) {
    throw Error(Code::kDenied, "run the daemon", {},
                "it needs root, and this is user " + std::to_string(::geteuid()),
                "start it with sudo, or by systemctl start thaw");
  }
  options.settings.data_dir = absolute_path(options.settings.data_dir);
  if (!options.settings.secrets_key.empty())
    options.settings.secrets_key = absolute_path(options.settings.secrets_key);
  if (!options.slots.empty())
    options.settings.slots = static_cast<int>(number(options.slots, "--slots", 0, 1000));
  if (!options.quota.empty())
    options.settings.checkpoint_quota = size_bytes(options.quota, "--checkpoint-quota");
  if (!options.image_quota.empty())
    options.settings.image_quota = size_bytes(options.image_quota, "--image-quota");
  if (!options.image_size.empty())
    options.settings.image_size = size_bytes(options.image_size, "--image-size");
  if (!options.verify_every.empty())
    options.settings.verify_every_us = duration_us(options.verify_every, "--verify-every");
  if (std::int64_t every = options.settings.verify_every_us; every && every < 1'000'000)
    throw Error(Code::kInvalid, "use --verify-every", options.verify_every, "it is below 1s",
                "give one such as 7d, or 0 for never");
  if (!options.compress_after.empty())
    options.settings.compress_after_us =
        options.compress_after == "never"
            ? 0
            : duration_us(options.compress_after, "--checkpoint-compress-after");
  if (std::int64_t after = options.settings.compress_after_us; after && after < 1'000'000)
    throw Error(Code::kInvalid, "use --checkpoint-compress-after", options.compress_after,
                "it is below 1s", "give one such as 7d, or 0 for never");
  read_traffic_limits(options);
  std::vector<api::Address> listen;
  for (auto& text : options.listen) listen.push_back(api::parse_address(text, "--listen"));
  if (listen.empty())
    listen.push_back(
        api::parse_address("unix:" + options.settings.data_dir + "/thaw.sock", "--data-dir"));
  std::optional<api::TlsContext> tls;
  for (auto& address : listen) {
    if (!options.group.empty()) address.group = options.group;
    if (address.is_unix) continue;
    if (!address.tls)
      throw Error(Code::kInvalid, "listen on", address.text(),
                  "whoever can reach a port without TLS could become root",
                  "listen on tls:HOST:PORT, and give --tls-cert and --tls-key");
    if (options.tls_cert.empty() || options.tls_key.empty())
      throw Error(Code::kInvalid, "listen on", address.text(), "there is no certificate",
                  "give PEM files with --tls-cert and --tls-key");
    if (!tls) tls = api::TlsContext::server(options.tls_cert, options.tls_key);
  }
  if (!options.group.empty() && !::getgrnam(options.group.c_str()))
    throw Error(Code::kInvalid, "use --group", options.group, "this host has no such group",
                "make it with groupadd");

  // Before the first thread: all of them leave these signals to the descriptor below.
  sigset_t signals;
  ::sigemptyset(&signals);
  ::sigaddset(&signals, SIGTERM);
  ::sigaddset(&signals, SIGINT);
  ::sigaddset(&signals, SIGHUP);
  ::pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
  Fd signal_fd(check(::signalfd(-1, &signals, SFD_CLOEXEC), "watch", "signals"));
  raise_limit(RLIMIT_NOFILE);
  // Where it lies, whatever lies there later.
  const std::string program = std::filesystem::read_symlink("/proc/self/exe");

  options.settings.hold_listeners = true;
  pods::Controller controller(options.settings);
  auto backend = api::make_controller_backend(controller);
  api::Server server(*backend,
                     {.listen = std::move(listen), .tls = tls, .holder = controller.holder()});
  controller.start();
  // All that listens now has taken what an earlier daemon left; nobody serves the rest any more.
  controller.holder()->drop_untaken();
  pods::Door door(options.settings);
  log_doctor(controller);
  server.start();
  std::optional<WatchedFiles> certificate;
  if (tls)
    certificate.emplace(std::vector{options.tls_cert, options.tls_key},
                        [&] { renew_certificate(server, options); });
  for (auto& address : server.addresses()) {
    log::info("listening", {{"address", address.text()}});
  }
  log::info("ready", {{"version", std::string(kVersion)}, {"data_dir", options.settings.data_dir}});
  notify_systemd("READY=1");

  signalfd_siginfo info{};
  while (info.ssi_signo == 0) {
    pollfd fds[2] = {{signal_fd.get(), POLLIN, 0}, {door.fd().get(), POLLIN, 0}};
    if (::poll(fds, 2, -1) < 0) continue;
    if (fds[0].revents && ::read(signal_fd.get(), &info, sizeof info) > 0 &&
        info.ssi_signo == SIGHUP) {
      start_successor(program);
      info = {};
    }
    if (!fds[1].revents || info.ssi_signo) continue;
    if (Fd successor = door.answer())
      return hand_over(server, controller, door, std::move(successor), signal_fd);
  }
  log::info("stopping", {{"signal", ::strsignal(static_cast<int>(info.ssi_signo))},
                         {"replicas", options.stop_replicas ? "are stopped" : "run on"}});
  notify_systemd("STOPPING=1");
  std::signal(SIGINT, SIG_DFL);  // a second signal ends it at once
  ::pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);
  server.close();
  controller.shutdown(options.stop_replicas);
  server.stop();
  log::info("stopped");
  return kOk;
}

}  // namespace

Command daemon_command() {
  auto options = std::make_shared<DaemonOptions>();
  Command command{"daemon", "Run the daemon in the foreground",
                  "Logs to stderr, tells systemd when it is ready, and ends on SIGTERM or SIGINT; "
                  "replicas run on and are "
                  "taken back by the next daemon on the same data directory. On SIGHUP it starts "
                  "the program anew, which takes its place (--replace): no connection is refused "
                  "or ended by that. See docs/upgrade.md."};
  command.options = {
      {"--data-dir", "DIR", &options->settings.data_dir,
       "State, images and checkpoints (/var/lib/thaw)", "@directory"},
      {"--listen", "ADDRESS", &options->listen,
       "unix:PATH or tls:HOST:PORT; repeatable (unix:DATA-DIR/thaw.sock)"},
      {"--tls-cert", "FILE", &options->tls_cert, "Certificate for tls: addresses, PEM", "@file"},
      {"--tls-key", "FILE", &options->tls_key, "Its key, PEM", "@file"},
      {"--group", "NAME", &options->group, "Who may use the unix socket beside root (thaw)"},
      {"--log-level", "LEVEL", &options->log_level, "debug, info, warn, error or off (info)",
       "debug info warn error off"},
      {"--log-format", "FORMAT", &options->log_format, "text or json (text)", "text json"},
      {"--runtime", "RUNTIME", &options->settings.runtime, "The OCI runtime for cold starts (runc)",
       "@file"},
      {"--criu", "DIR", &options->settings.criu_home, "Where CRIU is installed (found by itself)",
       "@directory"},
      {"--secrets-key", "FILE", &options->settings.secrets_key,
       "The key that kept secrets are encrypted with, made when it is missing "
       "(DATA-DIR/secrets.key)",
       "@file"},
      {"--slots", "N", &options->slots, "Slots prepared ahead (2)"},
      {"--checkpoint-quota", "SIZE", &options->quota,
       "What all checkpoints may take on disk; those not used for longest go first (no limit but "
       "the disk)"},
      {"--verify-every", "TIME", &options->verify_every,
       "How often each checkpoint is read whole, to find what its disk has lost; 0: never (7d)"},
      {"--checkpoint-compress-after", "TIME", &options->compress_after,
       "Compresses the memory of checkpoints that nothing has used for so long; the next start "
       "from one inflates it; 0 or never: they stay plain (7d)"},
      {"--image-quota", "SIZE", &options->image_quota,
       "What all images may take on disk (no limit but the disk)"},
      {"--image-size", "SIZE", &options->image_size, "What one image may take, unpacked (64GiB)"},
      {"--hold-connections", "N", &options->hold_connections,
       "Connections held for a pod's port while no replica is ready (1024)"},
      {"--hold-bytes", "SIZE", &options->hold_bytes,
       "What those may have sent meanwhile, together (64MiB)"},
      {"--hold-time", "TIME", &options->hold_time, "How long a connection is held (2m)"},
      {"--idle-time", "TIME", &options->idle_time,
       "How long a connection may move no byte; 0: for ever (0)"},
      {"--half-closed-time", "TIME", &options->half_closed_time,
       "The same when one of its ends has ended its stream (10m)"},
      {"--front", "ADDRESS:PORT", &options->settings.front,
       "A shared HTTP port, which leads to pods by their routes"},
      {"--front-tls-cert", "FILE", &options->settings.front_tls_cert,
       "Certificate chain (PEM) of the shared port, which then speaks HTTPS", "@file"},
      {"--front-tls-key", "FILE", &options->settings.front_tls_key, "Its private key (PEM)",
       "@file"},
      {"--front-header-time", "TIME", &options->front_header_time,
       "What a client of the shared port has for a request's header (30s)"},
      {"--front-keep-alive-time", "TIME", &options->front_keep_alive_time,
       "How long it may stay without a request (75s)"},
      {"--front-stall-time", "TIME", &options->front_stall_time,
       "How long a request or an answer may move no byte (1h)"},
      {"--replace", "", &options->settings.replace,
       "Take the place of the daemon that runs on the data directory, if one does"},
      {"--hand-over-time", "TIME", &options->hand_over_time,
       "How long this process stays for connections that go through it when another daemon has "
       "taken its place (1h)"},
      {"--stop-replicas-on-exit", "", &options->stop_replicas,
       "Stop all replicas when the daemon ends"}};
  command.run = [options](Context&) { return daemon(*options); };
  return command;
}

}  // namespace thaw::cli
