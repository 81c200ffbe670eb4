// The gateway beside a direct connection, and beside HAProxy in TCP mode when there is one: same
// backend (one epoll thread in a network namespace of its own), same client (wrk; a plain reader
// for large bodies), one run. Prints a line of JSON for each measurement; bench/gateway makes
// bench/out/gateway.json of them.
//   gateway_bench SECONDS ROUNDS [PATH-OF-HAPROXY]
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <regex>

#include "gateway/gateway.h"
#include "util/clock.h"
#include "util/error.h"
#include "util/file.h"
#include "util/process.h"

namespace {

using namespace std::string_literals;
using thaw::check;
using thaw::Deadline;
using thaw::Fd;

// The second of HAProxy's connects when the client has said something, as HTTP ports of Thaw do.
constexpr std::uint16_t kBackend = 8080, kHaproxy = 8081, kHaproxyLate = 8082;
constexpr int kIdle = 10'000;
constexpr std::size_t kLarge = 1u << 30;

sockaddr_in endpoint(const std::string& address, std::uint16_t port) {
  sockaddr_in result{};
  result.sin_family = AF_INET;
  result.sin_port = htons(port);
  inet_pton(AF_INET, address.c_str(), &result.sin_addr);
  return result;
}

// Answers GET /small with a few bytes, GET /large with 1 GiB, and closes when asked to.
[[noreturn]] void serve(const Fd& listener) {
  struct Client {
    std::string request;
    std::size_t left = 0;
    bool close = false;
  };
  static char zeros[1 << 18];
  std::map<int, Client> clients;
  Fd epoll(epoll_create1(EPOLL_CLOEXEC));
  auto watch = [&](int operation, int fd, std::uint32_t events) {
    epoll_event event{.events = events, .data = {.fd = fd}};
    epoll_ctl(epoll.get(), operation, fd, &event);
  };
  watch(EPOLL_CTL_ADD, listener.get(), EPOLLIN);
  auto forget = [&](int fd) {
    close(fd);
    clients.erase(fd);
  };
  for (epoll_event events[128];;) {
    int count = epoll_wait(epoll.get(), events, 128, -1);
    for (int i = 0; i < count; ++i) {
      int fd = events[i].data.fd;
      if (fd == listener.get()) {
        int client = accept4(fd, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC), on = 1;
        setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        watch(EPOLL_CTL_ADD, client, EPOLLIN);
        continue;
      }
      Client& client = clients[fd];
      if (client.left == 0) {
        char buffer[8192];
        ssize_t n = recv(fd, buffer, sizeof buffer, 0);
        if (n <= 0) {
          if (n == 0 || errno != EAGAIN) forget(fd);
          continue;
        }
        client.request.append(buffer, static_cast<std::size_t>(n));
        if (!client.request.ends_with("\r\n\r\n")) continue;
        bool large = client.request.starts_with("GET /large");
        client.close = client.request.find("Connection: close") != std::string::npos;
        client.request.clear();
        client.left = large ? kLarge : 0;
        std::string head =
            fmt::format("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n{}\r\n{}", large ? kLarge : 6,
                        client.close ? "Connection: close\r\n" : "", large ? "" : "hello\n");
        send(fd, head.data(), head.size(), MSG_NOSIGNAL);
        if (large) watch(EPOLL_CTL_MOD, fd, EPOLLOUT);
      } else {
        ssize_t n = send(fd, zeros, std::min(sizeof zeros, client.left), MSG_NOSIGNAL);
        if (n > 0) client.left -= static_cast<std::size_t>(n);
        if (client.left == 0) watch(EPOLL_CTL_MOD, fd, EPOLLIN);
      }
      if (client.left == 0 && client.close) forget(fd);
    }
  }
}

// Connections that say nothing, of a process of their own: they need as many descriptors as who is
// measured. Ends with the object, by resets, so that no port stays in TIME_WAIT.
class Idle {
 public:
  Idle(const std::string& address, std::uint16_t port) {
    auto [ours, theirs] = Fd::pipe();
    pid_ = fork();
    if (pid_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      sockaddr_in to = endpoint(address, port);
      linger now{.l_onoff = 1, .l_linger = 0};
      for (int i = 0; i < kIdle; ++i) {
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
        if (fd < 0 || connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof to) < 0) _exit(1);
      }
      // A refused one would be closed by now.
      if (write(theirs.get(), "x", 1) != 1) _exit(1);
      pause();
      _exit(0);
    }
    theirs.reset();
    char byte;
    if (read(ours.get(), &byte, 1) != 1)
      throw thaw::Error(thaw::Code::kSystem, "open idle connections to", address, "one failed");
  }
  ~Idle() {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  Idle(const Idle&) = delete;
  Idle& operator=(const Idle&) = delete;

 private:
  pid_t pid_;
};

template <typename Work>
void inside(const Fd& netns, const Work& work) {
  Fd home = Fd::open("/proc/thread-self/ns/net", O_RDONLY);
  check(setns(netns.get(), CLONE_NEWNET), "enter", "network namespace");
  work();
  check(setns(home.get(), CLONE_NEWNET), "leave", "network namespace");
}

double number(const std::string& text, const std::string& pattern) {
  std::smatch match;
  return std::regex_search(text, match, std::regex(pattern)) ? std::stod(match[1]) : 0;
}

// CPU time that a process has used so far, in microseconds (by clock ticks).
double cpu_us(int pid) {
  std::string stat = thaw::read_file(fmt::format("/proc/{}/stat", pid));
  long user = 0, system = 0;
  std::sscanf(stat.c_str() + stat.rfind(')'),
              ") %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %ld %ld", &user, &system);
  return static_cast<double>(user + system) * 1e6 / static_cast<double>(sysconf(_SC_CLK_TCK));
}

// `pid` is the one in the middle: what a request costs there is steadier on a busy machine than
// requests a second.
void row(const std::string& system, int pid, const std::string& which, const std::string& url,
         int seconds, bool close) {
  std::vector<std::string> command{"wrk", "-t1", "-c64", fmt::format("-d{}s", seconds),
                                   "--latency"};
  if (close) command.insert(command.end(), {"-H", "Connection: close"});
  command.push_back(url + "/small");
  double before = cpu_us(pid);
  auto result = thaw::run(command, Deadline::after_ms(seconds * 1000 + 20'000));
  double used = cpu_us(pid) - before,
         requests = std::max(1.0, number(result.out, "([0-9]+) requests in"));
  std::smatch match;
  double p99 = 0;
  if (std::regex_search(result.out, match, std::regex("99%\\s+([0-9.]+)(us|ms|s)")))
    p99 = std::stod(match[1]) * (match[2] == "us" ? 0.001 : match[2] == "ms" ? 1 : 1000);
  double errors =
      number(result.out, "Socket errors: .*connect ([0-9]+)") + number(result.out, "read ([0-9]+)");
  fmt::print(
      "{{\"system\": \"{}\", \"case\": \"{}\", \"rps\": {:.0f}, \"p99_ms\": {:.2f}, \"cpu_us\": "
      "{:.1f}, \"errors\": {}}}\n",
      system, which, number(result.out, "Requests/sec:\\s+([0-9.]+)"), p99, used / requests,
      errors);
  std::fflush(stdout);
}

void large(const std::string& system, int pid, const std::string& address, std::uint16_t port) {
  Fd client(check(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), "make", "socket"));
  sockaddr_in to = endpoint(address, port);
  check(connect(client.get(), reinterpret_cast<sockaddr*>(&to), sizeof to), "connect to", address);
  thaw::write_all(client, "GET /large HTTP/1.1\r\nConnection: close\r\n\r\n");
  double before = cpu_us(pid);
  std::int64_t start = thaw::monotonic_us();
  std::size_t total = 0;
  static char buffer[1 << 18];
  for (ssize_t n; (n = recv(client.get(), buffer, sizeof buffer, MSG_TRUNC)) > 0;)
    total += static_cast<std::size_t>(n);
  double seconds = static_cast<double>(thaw::monotonic_us() - start) / 1e6;
  fmt::print(
      "{{\"system\": \"{}\", \"case\": \"large\", \"mib_s\": {:.0f}, \"cpu_ms\": {:.0f}, "
      "\"complete\": {}}}\n",
      system, static_cast<double>(total) / (1 << 20) / seconds, (cpu_us(pid) - before) / 1000,
      total > kLarge);
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  int seconds = argc > 1 ? std::atoi(argv[1]) : 3;
  int rounds = argc > 2 ? std::atoi(argv[2]) : 3;
  std::string haproxy = argc > 3 ? argv[3] : "";
  rlimit descriptors{};
  getrlimit(RLIMIT_NOFILE, &descriptors);
  descriptors.rlim_cur = descriptors.rlim_max;
  setrlimit(RLIMIT_NOFILE, &descriptors);
  Fd home = Fd::open("/proc/self/ns/net", O_RDONLY);
  check(unshare(CLONE_NEWNET), "make", "network namespace");
  Fd netns = Fd::open("/proc/self/ns/net", O_RDONLY);
  thaw::run({"ip", "-batch", "-"}, Deadline::after_ms(10'000), {},
            "link set lo up\naddr add 10.77.0.1/32 dev lo\naddr add 10.77.0.2/32 dev lo\n");
  Fd listener(
      check(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), "make", "socket"));
  sockaddr_in here = endpoint("10.77.0.2", kBackend);
  check(bind(listener.get(), reinterpret_cast<sockaddr*>(&here), sizeof here), "bind", "backend");
  check(listen(listener.get(), 4096), "listen", "backend");
  pid_t backend = fork();
  if (backend == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    serve(listener);
  }
  listener.reset();
  std::optional<thaw::Process> proxy;
  std::string config = fmt::format("/tmp/gateway-bench-{}.cfg", getpid());
  if (!haproxy.empty()) {
    thaw::write_file(
        config,
        fmt::format("global\n  nbthread 1\n  no strict-limits\n  maxconn 11000\n"
                    "defaults\n  mode tcp\n  option splice-auto\n"
                    "  timeout connect 2s\n  timeout client 1h\n  timeout server 1h\n"
                    "frontend f\n  bind 10.77.0.2:{}\n  default_backend b\n"
                    "frontend late\n  bind 10.77.0.2:{}\n  tcp-request inspect-delay 1h\n"
                    "  tcp-request content accept if {{ req.len gt 0 }}\n  default_backend b\n"
                    "backend b\n  server s 10.77.0.2:{}\n",
                    kHaproxy, kHaproxyLate, kBackend));
    proxy = thaw::Process::spawn({haproxy, "-db", "-f", config});
  }
  check(setns(home.get(), CLONE_NEWNET), "leave", "network namespace");

  {
    thaw::gateway::Gateway gateway;
    auto ports = gateway.publish(
        "web", {{.container = kBackend},
                {.container = kBackend, .protocol = thaw::gateway::Protocol::kHttp}});
    std::uint16_t port = ports[0].host, late = ports[1].host;
    gateway.open_gate("web", "r1", netns);
    for (int round = 0; round < rounds; ++round) {
      for (bool close : {false, true}) {
        std::string which = close ? "connect" : "small";
        inside(netns, [&] {
          row("direct", backend, which, fmt::format("http://10.77.0.2:{}", kBackend), seconds,
              close);
        });
        row("thaw", getpid(), which, fmt::format("http://127.0.0.1:{}", port), seconds, close);
        if (proxy)
          inside(netns, [&] {
            row("haproxy", proxy->pid(), which, fmt::format("http://10.77.0.2:{}", kHaproxy),
                seconds, close);
          });
      }
      inside(netns, [&] { large("direct", backend, "10.77.0.2", kBackend); });
      large("thaw", getpid(), "127.0.0.1", port);
      if (proxy) inside(netns, [&] { large("haproxy", proxy->pid(), "10.77.0.2", kHaproxy); });
      // Small requests beside connections that are open and idle.
      auto beside_idle = [&](const char* system, int pid, const char* address, std::uint16_t to) {
        Idle idle(address, to);
        row(system, pid, "idle10k", fmt::format("http://{}:{}", address, to), seconds, false);
      };
      inside(netns, [&] { beside_idle("direct", backend, "10.77.0.2", kBackend); });
      beside_idle("thaw", getpid(), "127.0.0.1", late);
      if (proxy)
        inside(netns, [&] { beside_idle("haproxy", proxy->pid(), "10.77.0.2", kHaproxyLate); });
    }
  }
  proxy.reset();
  if (!haproxy.empty()) unlink(config.c_str());
  kill(backend, SIGKILL);
  waitpid(backend, nullptr, 0);
}
