#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/stat.h>

#include <sstream>

#include "lifecycle/condition_test_target.h"

namespace thaw::lifecycle {
namespace {

using state::Condition;
using Kind = Condition::Kind;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

Condition http(int port, std::string path = "/", int status = 200) {
  return {.kind = Kind::kHttp,
          .port = static_cast<std::uint16_t>(port),
          .path = std::move(path),
          .status = status};
}
Condition tcp(int port) { return {.kind = Kind::kTcp, .port = static_cast<std::uint16_t>(port)}; }

// A server inside the namespace that does with each connection what the test says.
class Server {
 public:
  Server(const TestTarget& target, int port, std::function<void(const Fd&)> serve,
         const char* address = "127.0.0.1", int backlog = 16)
      : serve_(std::move(serve)) {
    network::NetnsScope inside(target.netns_fd());
    listener_ = Fd(check(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), "make socket"));
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_port = htons(static_cast<std::uint16_t>(port));
    ::inet_pton(AF_INET, address, &at.sin_addr);
    check(::bind(listener_.get(), reinterpret_cast<sockaddr*>(&at), sizeof at), "bind");
    check(::listen(listener_.get(), backlog), "listen");
    if (serve_) thread_ = std::thread([this] { loop(); });
  }
  ~Server() {
    ::shutdown(listener_.get(), SHUT_RDWR);
    if (thread_.joinable()) thread_.join();
  }
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  static std::string read_request(const Fd& connection) {
    std::string request;
    char c;
    while (request.find("\r\n\r\n") == std::string::npos && ::recv(connection.get(), &c, 1, 0) == 1)
      request += c;
    return request;
  }
  static void send(const Fd& connection, std::string_view text) {
    while (!text.empty()) {
      ssize_t n = ::send(connection.get(), text.data(), text.size(), MSG_NOSIGNAL);
      if (n <= 0) return;
      text.remove_prefix(static_cast<std::size_t>(n));
    }
  }

 private:
  void loop() {
    for (;;) {
      Fd connection(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
      if (!connection) return;
      serve_(connection);
    }
  }
  std::function<void(const Fd&)> serve_;
  Fd listener_;
  std::thread thread_;
};

class NetConditions : public ConditionTest {
 protected:
  // The states of the TCP sockets in the namespace as /proc/net/tcp has them: 0A listens, 06 is in
  // TIME_WAIT.
  std::set<std::string> tcp_states() {
    network::NetnsScope inside(target_.netns_fd());
    std::istringstream table(read_file("/proc/thread-self/net/tcp"));
    std::set<std::string> states;
    std::string line, word;
    std::getline(table, line);
    while (std::getline(table, line)) {
      std::istringstream words(line);
      for (int i = 0; i < 4; ++i) words >> word;
      states.insert(word);
    }
    return states;
  }
  void add_replica_address() {
    Process ip = target_.start({"ip", "address", "add", "10.77.0.2/32", "dev", "lo"});
    ASSERT_TRUE(ip.wait(Deadline::after_ms(10'000))->ok());
  }
  // A server that answers every request with this text and closes.
  Server answering(int port, std::string answer, const char* address = "127.0.0.1") {
    return Server(
        target_, port,
        [answer](const Fd& connection) {
          Server::read_request(connection);
          Server::send(connection, answer);
        },
        address);
  }
  static ino_t own_namespace() {
    struct stat info {};
    ::stat("/proc/thread-self/ns/net", &info);
    return info.st_ino;
  }
};

TEST_F(NetConditions, HttpWaitsForARealServerAndLeavesNothing) {
  write_file(target_.root() + "/health", "ok");
  ino_t home = own_namespace();
  auto [log_read, log_write] = Fd::pipe();
  Process server =
      target_.start({"/usr/bin/python3", "-m", "http.server", "8000", "--bind", "127.0.0.1"},
                    {.descriptors = {{log_write.get(), 1}, {log_write.get(), 2}}});
  log_write.reset();
  EXPECT_TRUE(holds(http(8000, "/health")));
  EXPECT_EQ(own_namespace(), home);
  gives_up(http(8000, "/absent"), "http :8000/absent: status 404, wanted 200");
  EXPECT_TRUE(holds(http(8000, "/absent", 404)));
  EXPECT_THAT(tcp_states(), ElementsAre("0A"));
  server.kill(SIGKILL);
  server.wait(Deadline::after_ms(10'000));
  // Closing by reset is no error to a server that has sent its answer.
  EXPECT_THAT(read_all(log_read), Not(HasSubstr("Error")));
}

TEST_F(NetConditions, NobodyListens) {
  gives_up(http(8000), "http :8000/: connection refused");
  gives_up(tcp(8000), "tcp :8000: connection refused");
  EXPECT_THAT(tcp_states(), ElementsAre());
  EXPECT_EQ(cancelled_after(tcp(8000), [] {}), Code::kCancelled);
}

TEST_F(NetConditions, HttpOnTheReplicaAddress) {
  add_replica_address();
  Server server = answering(8000, "HTTP/1.0 200 OK\r\n\r\n", "10.77.0.2");
  EXPECT_TRUE(holds(http(8000)));
  Server other = answering(8001, "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n", "0.0.0.0");
  EXPECT_TRUE(holds(http(8001, "", 204)));
}

TEST_F(NetConditions, HttpSendsAPlainRequest) {
  std::string request;
  {
    Server server(target_, 8000, [&](const Fd& connection) {
      request = Server::read_request(connection);
      Server::send(connection, "HTTP/1.1 200 OK\r\n\r\nbody");
    });
    EXPECT_TRUE(holds(http(8000, "/a?b=c")));
  }
  EXPECT_THAT(request, StartsWith("GET /a?b=c HTTP/1.1\r\n"));
  EXPECT_THAT(request, HasSubstr("\r\nHost: localhost:8000\r\n"));
  EXPECT_THAT(request, HasSubstr("\r\nConnection: close\r\n"));
  for (const char* wrong : {"a", "/a b", "/a\r\nX: y"})
    EXPECT_EQ(code_of(http(8000, wrong)), Code::kInvalid) << wrong;
  EXPECT_EQ(code_of(http(0)), Code::kInvalid);
}

TEST_F(NetConditions, HttpReadsTheAnswerToItsEnd) {
  std::atomic<bool> whole = false;
  Server server(target_, 8000, [&](const Fd& connection) {
    Server::read_request(connection);
    Server::send(connection, "HTTP/1.1 200 OK\r\n\r\n");
    Server::send(connection, "slow body");
    whole = true;
    ::shutdown(connection.get(), SHUT_WR);
  });
  EXPECT_TRUE(holds(http(8000)));
  EXPECT_TRUE(whole);
  EXPECT_THAT(tcp_states(), ElementsAre("0A"));
}

TEST_F(NetConditions, HttpServerThatKeepsTheConnectionSeesItsEnd) {
  std::atomic<int> ends = 0;
  {
    Server server(target_, 8000, [&](const Fd& connection) {
      Server::read_request(connection);
      Server::send(connection, "HTTP/1.1 200 OK\r\ncontent-LENGTH:  2\r\n\r\nok");
      char c;
      ends += ::recv(connection.get(), &c, 1, 0) <= 0;
    });
    EXPECT_TRUE(holds(http(8000)));
    EXPECT_THAT(tcp_states(), Not(testing::Contains("01")));
  }
  EXPECT_EQ(ends, 1);
}

TEST_F(NetConditions, HttpWithAnEndlessBody) {
  Server server = answering(8000, "HTTP/1.1 200 OK\r\n\r\n" + std::string(8 << 20, 'x'));
  EXPECT_TRUE(holds(http(8000)));
}

TEST_F(NetConditions, WhatIsNotHttp) {
  Server ssh = answering(8000, "SSH-2.0-OpenSSH_9.2\r\n");
  gives_up(http(8000), "http :8000/: the answer is not HTTP");
  Server odd = answering(8001, "HTTP/1.1 OK\r\n\r\n");
  gives_up(http(8001), "http :8001/: the answer is not HTTP");
  Server closing(target_, 8002, [](const Fd& connection) { Server::read_request(connection); });
  gives_up(http(8002), "http :8002/: closed without an answer");
}

TEST_F(NetConditions, HttpServerThatNeverAnswers) {
  auto hang = [](const Fd& connection) {
    char c;
    while (::recv(connection.get(), &c, 1, 0) > 0) {
    }
  };
  Server server(target_, 8000, hang);
  gives_up(http(8000), "http :8000/: no answer in time");
  auto [asked_read, asked_write] = Fd::pipe();
  {
    Server other(target_, 8001, [&, &asked = asked_write](const Fd& connection) {
      Server::read_request(connection);
      write_all(asked, "x");
      hang(connection);
    });
    EXPECT_EQ(cancelled_after(http(8001),
                              [&, &asked = asked_read] {
                                wait_readable(asked.get(), Deadline::after_ms(10'000));
                              }),
              Code::kCancelled);
  }
  EXPECT_THAT(tcp_states(), ElementsAre("0A"));
}

TEST_F(NetConditions, TcpHoldsWhenSomebodyListens) {
  std::optional<Server> quiet;  // accepts nobody: the kernel does
  EXPECT_TRUE(holds_after(tcp(8000), [&] { quiet.emplace(target_, 8000, nullptr); }));
  EXPECT_TRUE(holds(tcp(8000)));
}

TEST_F(NetConditions, TcpConnectionIsEndedWhenItReturns) {
  std::atomic<int> ends = 0;
  {
    Server server(target_, 8000, [&](const Fd& connection) {
      char c;
      ends += ::recv(connection.get(), &c, 1, 0) <= 0;
    });
    EXPECT_TRUE(holds(tcp(8000)));
    EXPECT_THAT(tcp_states(), Not(testing::Contains("01")));
    EXPECT_THAT(tcp_states(), Not(testing::Contains("06")));
  }
  EXPECT_LE(ends, 1);
}

TEST_F(NetConditions, AConnectionWithItselfIsNobody) {
  {
    network::NetnsScope inside(target_.netns_fd());
    write_file("/proc/sys/net/ipv4/ip_local_port_range", "40000 40000");
  }
  gives_up(tcp(40000), "tcp :40000: connection refused");
}

TEST_F(NetConditions, AFullBacklogTimesOut) {
  Server full(target_, 8000, nullptr, "127.0.0.1", 0);
  Fd first, second;
  {
    network::NetnsScope inside(target_.netns_fd());
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_port = htons(8000);
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    for (Fd* fd : {&first, &second}) {
      *fd = Fd(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
      ::connect(fd->get(), reinterpret_cast<sockaddr*>(&at), sizeof at);
    }
  }
  gives_up(tcp(8000), "tcp :8000: no connection in time");
}

TEST_F(NetConditions, TheThreadComesBackFromANamespaceThatIsNone) {
  class Broken : public TestTarget {
   public:
    int netns_fd() const override { return -1; }
  } broken;
  ino_t home = own_namespace();
  EXPECT_THROW(wait_condition(tcp(1), broken, Deadline::after_ms(1000), -1), Error);
  EXPECT_EQ(own_namespace(), home);
}

}  // namespace
}  // namespace thaw::lifecycle
