// What the tests of the gateway share: real network namespaces, clients and servers. Root is
// needed, and without it every test fails.
#pragma once

#include "gateway/gateway.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <future>
#include <thread>

#include <gtest/gtest.h>

#include "util/clock.h"
#include "util/error.h"
#include "util/file.h"
#include "util/log.h"
#include "util/process.h"

namespace thaw::gateway {

using std::chrono::milliseconds;

constexpr std::uint16_t kInside = 8080;
constexpr int kPatienceS = 20;
constexpr std::int64_t kPatienceUs = kPatienceS * 1'000'000;

// ---- namespaces, clients, servers ----

template <typename Work>
void on_thread_in(const Fd* netns, const Work& work) {
  std::exception_ptr failure;
  std::thread([&] {
    try {
      if (netns)
        check(::setns(netns->get(), CLONE_NEWNET), "enter", "network namespace");
      else
        check(::unshare(CLONE_NEWNET), "make", "network namespace");
      work();
    } catch (...) {
      failure = std::current_exception();
    }
  }).join();
  if (failure) std::rethrow_exception(failure);
}

inline Fd make_netns() {
  Fd netns;
  on_thread_in(nullptr, [&] {
    netns = Fd::open("/proc/thread-self/ns/net", O_RDONLY);
    RunResult result =
        run({"ip", "-batch", "-"}, Deadline::after_ms(10'000), {},
            "link set lo up\naddr add 10.77.0.1/32 dev lo\naddr add 10.77.0.2/32 dev lo\n");
    if (!result.ok()) throw Error(Code::kSystem, "set up", "network namespace", result.why());
  });
  return netns;
}

inline sockaddr_in endpoint(const char* address, std::uint16_t port) {
  sockaddr_in result{};
  result.sin_family = AF_INET;
  result.sin_port = htons(port);
  inet_pton(AF_INET, address, &result.sin_addr);
  return result;
}

inline void be_patient(const Fd& socket) {
  timeval patience{.tv_sec = kPatienceS, .tv_usec = 0};
  setsockopt(socket.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  setsockopt(socket.get(), SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
}

inline Fd make_socket() {
  Fd socket(check(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), "make", "socket"));
  be_patient(socket);
  return socket;
}

inline void connect_socket(const Fd& socket, std::uint16_t port) {
  sockaddr_in to = endpoint("127.0.0.1", port);
  check(::connect(socket.get(), reinterpret_cast<sockaddr*>(&to), sizeof to), "connect to",
        std::to_string(port));
}

inline Fd connect_to(std::uint16_t port) {
  Fd socket = make_socket();
  connect_socket(socket, port);
  return socket;
}

inline void say(const Fd& socket, std::string_view text) {
  while (!text.empty()) {
    ssize_t n = check(::send(socket.get(), text.data(), text.size(), MSG_NOSIGNAL), "send");
    text.remove_prefix(static_cast<std::size_t>(n));
  }
}

inline void end_sending(const Fd& socket) { ::shutdown(socket.get(), SHUT_WR); }

inline void reset(Fd& socket) {
  linger now{.l_onoff = 1, .l_linger = 0};
  setsockopt(socket.get(), SOL_SOCKET, SO_LINGER, &now, sizeof now);
  socket.reset();
}

// Everything up to the end of stream; with `wanted`, that many bytes. "<what>" at the end when it
// ended with an error.
inline std::string hear(const Fd& socket, std::size_t wanted = SIZE_MAX) {
  std::string result;
  char buffer[65536];
  while (result.size() < wanted) {
    ssize_t n = ::recv(socket.get(), buffer, std::min(sizeof buffer, wanted - result.size()), 0);
    if (n < 0)
      return result + (errno == ECONNRESET ? "<reset>" : fmt::format("<{}>", std::strerror(errno)));
    if (n == 0) break;
    result.append(buffer, static_cast<std::size_t>(n));
  }
  return result;
}

template <typename Condition>
bool eventually_within(milliseconds time, const Condition& condition) {
  for (Deadline end = Deadline::after_ms(time.count()); !end.passed();) {
    if (condition()) return true;
    std::this_thread::sleep_for(milliseconds(1));
  }
  return false;
}

template <typename Condition>
bool eventually(const Condition& condition) {
  for (Deadline end = Deadline::after_us(kPatienceUs); !end.passed();) {
    if (condition()) return true;
    std::this_thread::sleep_for(milliseconds(1));
  }
  return condition();
}

// A program in a replica: listens in the namespace, each connection on a thread of its own.
class Server {
 public:
  using Handler = std::function<void(Fd& client)>;

  Server(const Fd& netns, Handler handler, const char* address = "10.77.0.2",
         std::uint16_t port = kInside)
      : handler_(std::move(handler)) {
    on_thread_in(&netns, [&] {
      listener_ = Fd(check(
          ::socket(std::strchr(address, ':') ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0),
          "make", "socket"));
      int on = 1;
      setsockopt(listener_.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
      sockaddr_storage here{};
      socklen_t size = sizeof(sockaddr_in);
      if (std::strchr(address, ':')) {
        auto& here6 = reinterpret_cast<sockaddr_in6&>(here);
        here6.sin6_family = AF_INET6;
        here6.sin6_port = htons(port);
        inet_pton(AF_INET6, address, &here6.sin6_addr);
        size = sizeof here6;
      } else {
        reinterpret_cast<sockaddr_in&>(here) = endpoint(address, port);
      }
      check(::bind(listener_.get(), reinterpret_cast<sockaddr*>(&here), size), "bind", address);
      check(::listen(listener_.get(), 4096), "listen on", address);
    });
    thread_ = std::thread([this] { serve(); });
  }
  ~Server() {
    signal_event(stop_);
    thread_.join();
    {
      std::lock_guard lock(mutex_);
      for (int fd : open_) ::shutdown(fd, SHUT_RDWR);
    }
    for (auto& worker : workers_) worker.join();
  }

  int accepted() const { return accepted_; }

 private:
  void serve() {
    for (;;) {
      pollfd wait[] = {{listener_.get(), POLLIN, 0}, {stop_.get(), POLLIN, 0}};
      ::poll(wait, 2, -1);
      if (wait[1].revents) return;
      Fd client(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
      if (!client) continue;
      be_patient(client);
      ++accepted_;
      workers_.emplace_back([this, client = std::move(client)]() mutable {
        int fd = client.get();
        {
          std::lock_guard lock(mutex_);
          open_.insert(fd);
        }
        try {
          handler_(client);
        } catch (const std::exception&) {
          // The client left; what it should have seen is the test's to check.
        }
        std::lock_guard lock(mutex_);
        open_.erase(fd);
        client.reset();
      });
    }
  }

  Handler handler_;
  Fd listener_;
  Fd stop_ = Fd::event();
  std::atomic<int> accepted_{0};
  std::mutex mutex_;
  std::set<int> open_;
  std::vector<std::thread> workers_;
  std::thread thread_;
};

inline void echo(Fd& client) {
  for (;;) {
    char buffer[65536];
    ssize_t n = ::recv(client.get(), buffer, sizeof buffer, 0);
    if (n <= 0) return;
    say(client, {buffer, static_cast<std::size_t>(n)});
  }
}

inline Server::Handler answers(std::string text) {
  return [text = std::move(text)](Fd& client) {
    hear(client, 4);
    say(client, text);
  };
}

// Bytes that tell where in the stream they are.
inline std::string pattern(std::size_t size, std::uint64_t seed) {
  std::string result(size, '\0');
  for (std::size_t i = 0; i + 8 <= size; i += 8) {
    seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
    std::memcpy(result.data() + i, &seed, 8);
  }
  return result;
}

inline std::size_t open_descriptors() {
  return static_cast<std::size_t>(
      std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {}));
}

class GatewayTest : public testing::Test {
 protected:
  void SetUp() override { log::set_level(log::Level::kError); }
  void TearDown() override { log::set_level(log::Level::kInfo); }

  std::uint16_t publish(Gateway& gateway, const std::string& pod = "web",
                        std::uint16_t inside = kInside) {
    return gateway.publish(pod, {{"127.0.0.1", 0, inside}}).at(0).host;
  }
  // Clients that connect and wait; all are held when it returns.
  std::vector<Fd> held_clients(Gateway& gateway, std::uint16_t port, int count) {
    std::vector<Fd> clients;
    for (int i = 0; i < count; ++i) clients.push_back(connect_to(port));
    EXPECT_TRUE(eventually([&] { return gateway.traffic("web").held == count; }));
    return clients;
  }

  Fd netns = make_netns();
};

// Whether none of its connections is in flight any more, at the time-out at the latest.
inline bool drained(Gateway& gateway, const std::string& replica, std::int64_t timeout_us) {
  return wait_readable(gateway.drained(replica).get(), Deadline::after_us(timeout_us));
}

}  // namespace thaw::gateway
