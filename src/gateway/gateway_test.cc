#include "gateway/testing.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>

#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <future>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace thaw::gateway {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// ---- the gate ----

TEST_F(GatewayTest, HoldsUntilTheGateOpens) {
  Gateway gateway;
  std::uint16_t port = publish(gateway);
  Server server(netns, answers("hello"));
  auto clients = held_clients(gateway, port, 1);
  say(clients[0], "ping");
  EXPECT_EQ(server.accepted(), 0);

  gateway.open_gate("web", "r1", netns);
  EXPECT_EQ(hear(clients[0]), "hello");
  EXPECT_EQ(server.accepted(), 1);
  clients.clear();
  EXPECT_TRUE(drained(gateway, "r1", kPatienceUs));
  PodTraffic traffic = gateway.traffic("web");
  EXPECT_EQ(traffic.held, 0);
  EXPECT_EQ(traffic.active, 0);
  EXPECT_EQ(traffic.total, 1);
}

TEST_F(GatewayTest, ServesAtOnceWhenTheGateIsOpen) {
  Gateway gateway;
  std::uint16_t port = publish(gateway);
  Server server(netns, answers("hello"));
  gateway.open_gate("web", "r1", netns);
  for (int i = 0; i < 20; ++i) {
    Fd client = connect_to(port);
    say(client, "ping");
    EXPECT_EQ(hear(client), "hello");
  }
}

TEST_F(GatewayTest, AClosedGateLetsNothingThrough) {
  Gateway gateway;
  std::uint16_t port = publish(gateway);
  Server server(netns, answers("hello"));
  gateway.open_gate("web", "r1", netns);
  gateway.close_gate("web", "r1");
  auto clients = held_clients(gateway, port, 3);
  for (auto& client : clients) say(client, "ping");
  EXPECT_TRUE(drained(gateway, "r1", 0));
  EXPECT_EQ(server.accepted(), 0);
  EXPECT_EQ(gateway.in_flight("r1"), 0);

  gateway.open_gate("web", "r1", netns);
  for (auto& client : clients) EXPECT_EQ(hear(client), "hello");
}

TEST_F(GatewayTest, OpeningAnOpenGateIsAnError) {
  Gateway gateway;
  gateway.open_gate("web", "r1", netns);
  try {
    gateway.open_gate("web", "r1", netns);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::kInternal);
    EXPECT_THAT(error.what(), HasSubstr("r1"));
  }
  gateway.close_gate("web", "r1");
  gateway.close_gate("web", "r1");
  gateway.close_gate("nobody", "nothing");
  gateway.open_gate("web", "r1", netns);
}

TEST_F(GatewayTest, RefusesADescriptorThatIsNoNetworkNamespace) {
  Gateway gateway;
  Fd other = Fd::open("/proc/self/ns/mnt", O_RDONLY);
  EXPECT_THROW(gateway.open_gate("web", "r1", other), Error);
  EXPECT_THROW(gateway.open_gate("web", "r1", Fd::open("/dev/null", O_RDONLY)), Error);
  gateway.open_gate("web", "r1", netns);
}

TEST_F(GatewayTest, PortsCanBeUsedAgainWithinTheMinute) {
  Gateway gateway;
  gateway.open_gate("web", "r1", netns);
  on_thread_in(&netns, [] { EXPECT_EQ(trim(read_file("/proc/sys/net/ipv4/tcp_tw_reuse")), "1"); });
}

TEST_F(GatewayTest, TheNamespaceIsTheGatewaysOwn) {
  Gateway gateway;
  std::uint16_t port = publish(gateway);
  Server server(netns, answers("hello"));
  {
    Fd borrowed = netns.duplicate();
    gateway.open_gate("web", "r1", borrowed);
  }
  Fd client = connect_to(port);
  say(client, "ping");
  EXPECT_EQ(hear(client), "hello");
}

TEST_F(GatewayTest, TwoHundredHeldClientsAllGetTheirAnswer) {
  Gateway gateway;
  std::uint16_t port = publish(gateway);
  Server server(netns, answers("hello"));
  auto clients = held_clients(gateway, port, 200);
  for (auto& client : clients) say(client, "ping");
  EXPECT_EQ(server.accepted(), 0);
  gateway.open_gate("web", "r1", netns);
  for (auto& client : clients) EXPECT_EQ(hear(client), "hello");
  EXPECT_EQ(server.accepted(), 200);
}

// ---- holding ----

TEST_F(GatewayTest, PastTheBoundClientsAreReset) {
  Gateway gateway({.held_per_port = 3});
  std::uint16_t port = publish(gateway);
  Server server(netns, answers("hello"));
  auto clients = held_clients(gateway, port, 3);
  Fd late = connect_to(port);
  EXPECT_EQ(hear(late), "<reset>");
  EXPECT_EQ(gateway.traffic("web").held, 3);
  gateway.open_gate("web", "r1", netns);
  for (auto& client : clients) {
    say(client, "ping");
    EXPECT_EQ(hear(client), "hello");
  }
}

TEST_F(GatewayTest, HeldTooLongIsReset) {
  Gateway gateway({.held_timeout_us = 20'000});
  std::uint16_t port = publish(gateway);
  Fd client = connect_to(port);
  say(client, "ping");
  EXPECT_EQ(hear(client), "<reset>");
  EXPECT_EQ(gateway.traffic("web").held, 0);
}

// ---- refused over HTTP ----

constexpr std::string_view kGet = "GET /a HTTP/1.1\r\nHost: x\r\n\r\n";

TEST_F(GatewayTest, PastTheBoundHttpClientsAreToldWhy) {
  Gateway gateway({.held_per_port = 1});
  std::uint16_t port =
      gateway.publish("web", {{.container = kInside, .protocol = Protocol::kHttp}}).at(0).host;
  Fd first = connect_to(port), late = connect_to(port);
  say(first, kGet);
  EXPECT_TRUE(eventually([&] { return gateway.traffic("web").held == 1; }));
  say(late, kGet);
  std::string answer = hear(late);
  EXPECT_THAT(answer, testing::StartsWith("HTTP/1.1 503 Service Unavailable\r\n"));
  EXPECT_THAT(answer, HasSubstr("\r\nRetry-After: 2\r\n"));
  EXPECT_THAT(answer, HasSubstr("\r\nConnection: close\r\n"));
  EXPECT_THAT(answer,
              testing::EndsWith("\r\n\r\npod web has no replica for more clients, and as many as "
                                "may wait do so\n"));
  EXPECT_EQ(gateway.traffic("web").held, 1);
}

TEST_F(GatewayTest, HttpClientsThatWereHeldTooLongAreToldWhy) {
  Gateway gateway({.held_timeout_us = 50'000});
  std::uint16_t port =
      gateway.publish("web", {{.container = kInside, .protocol = Protocol::kHttp}}).at(0).host;
  Fd asks = connect_to(port), head = connect_to(port);
  say(asks, kGet);
  say(head, "HEAD / HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_THAT(hear(asks), testing::EndsWith("no replica of pod web became ready in time\n"));
  EXPECT_THAT(hear(head), testing::EndsWith("\r\n\r\n"));
}

TEST_F(GatewayTest, WhatIsNotHttp1IsResetOnHttpPorts) {
  Gateway gateway({.held_timeout_us = 50'000});
  std::uint16_t port =
      gateway.publish("web", {{.container = kInside, .protocol = Protocol::kHttp}}).at(0).host;
  Fd http2 = connect_to(port), tls = connect_to(port);
  say(http2, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
  say(tls, std::string_view("\x16\x03\x01\x02\x00\x01", 6));
  EXPECT_EQ(hear(http2), "<reset>");
  EXPECT_EQ(hear(tls), "<reset>");
}

TEST_F(GatewayTest, ARefusedUploadHearsTheReason) {
  Gateway gateway({.held_per_port = 0});
  std::uint16_t port =
      gateway.publish("web", {{.container = kInside, .protocol = Protocol::kHttp}}).at(0).host;
  Fd client = connect_to(port);
  say(client, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 500000\r\n\r\n");
  say(client, std::string(500'000, 'x'));
  EXPECT_THAT(hear(client), testing::StartsWith("HTTP/1.1 503"));
}

TEST_F(GatewayTest, HeldClientsThatSendTooMuchTogetherAreRefused) {
  Gateway gateway({.held_bytes_per_port = 10'000});
  std::uint16_t port = publish(gateway);
  Server server(netns, echo);
  auto clients = held_clients(gateway, port, 2);
  say(clients[0], std::string(6000, 'a'));
  EXPECT_FALSE(
      eventually_within(milliseconds(50), [&] { return gateway.traffic("web").held < 2; }));
  say(clients[1], std::string(6000, 'b'));
  EXPECT_EQ(hear(clients[1]), "<reset>");
  gateway.open_gate("web", "r1", netns);
  EXPECT_EQ(hear(clients[0], 6000), std::string(6000, 'a'));
}

// ---- the client's address ----

// A host's network with a client at 192.0.2.2 behind a link; the gateway's own thread lives in it.
class ClientAddressTest : public GatewayTest {
 protected:
  void SetUp() override {
    GatewayTest::SetUp();
    for (Fd* made : {&host, &outside})
      on_thread_in(nullptr, [&] { *made = Fd::open("/proc/thread-self/ns/net", O_RDONLY); });
    ip(host,
       fmt::format("link set lo up\nlink add out type veth peer name eth0 netns /proc/{}/fd/{}\n"
                   "addr add 192.0.2.1/24 dev out\naddr add 2001:db8::1/64 dev out nodad\n"
                   "link set out up\n",
                   getpid(), outside.get()));
    ip(outside,
       "link set lo up\naddr add 192.0.2.2/24 dev eth0\naddr add 2001:db8::2/64 dev eth0 nodad\n"
       "link set eth0 up\n");
    ip(netns, "addr add fd00:77::2/128 dev lo nodad\n");
  }
  static void ip(const Fd& where, const std::string& commands) {
    on_thread_in(&where, [&] {
      RunResult result = run({"ip", "-batch", "-"}, Deadline::after_ms(10'000), {}, commands);
      if (!result.ok()) throw Error(Code::kSystem, "set up", "network namespace", result.why());
    });
  }
  std::unique_ptr<Gateway> gateway_on_host() {
    std::unique_ptr<Gateway> gateway;
    on_thread_in(&host, [&] { gateway = std::make_unique<Gateway>(); });
    return gateway;
  }
  // What the server says to a client at 192.0.2.2 or 2001:db8::2.
  std::string asked(std::uint16_t port, bool v6, std::string* own = nullptr) {
    std::string answer;
    on_thread_in(&outside, [&] {
      sockaddr_storage to{};
      socklen_t size;
      if (v6) {
        auto& address = reinterpret_cast<sockaddr_in6&>(to);
        address.sin6_family = AF_INET6;
        address.sin6_port = htons(port);
        inet_pton(AF_INET6, "2001:db8::1", &address.sin6_addr);
        size = sizeof address;
      } else {
        reinterpret_cast<sockaddr_in&>(to) = endpoint("192.0.2.1", port);
        size = sizeof(sockaddr_in);
      }
      Fd client(check(::socket(v6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket"));
      be_patient(client);
      ASSERT_TRUE(eventually([&] {
        return ::connect(client.get(), reinterpret_cast<sockaddr*>(&to), size) == 0;
      })) << std::strerror(errno);
      if (own) *own = address_of(client, ::getsockname);
      say(client, "ping");
      answer = hear(client);
    });
    return answer;
  }
  static std::string address_of(const Fd& socket, int (*which)(int, sockaddr*, socklen_t*)) {
    sockaddr_storage address{};
    socklen_t size = sizeof address;
    which(socket.get(), reinterpret_cast<sockaddr*>(&address), &size);
    char text[INET6_ADDRSTRLEN], port[8];
    ::getnameinfo(reinterpret_cast<sockaddr*>(&address), size, text, sizeof text, port, sizeof port,
                  NI_NUMERICHOST | NI_NUMERICSERV);
    return fmt::format("{} {}", text, port);
  }
  static void say_peer(Fd& client) {
    hear(client, 4);
    say(client, address_of(client, ::getpeername));
  }

  Fd host, outside;
};

TEST_F(ClientAddressTest, IsTheGatewaysUnlessAskedFor) {
  auto gateway = gateway_on_host();
  Server server(netns, say_peer);
  std::uint16_t port =
      gateway->publish("web", {{.address = "0.0.0.0", .container = kInside}})[0].host;
  gateway->open_gate("web", "r1", netns);
  EXPECT_THAT(asked(port, false), testing::StartsWith("10.77.0.1 "));
}

TEST_F(ClientAddressTest, IsKept) {
  auto gateway = gateway_on_host();
  Server server(netns, say_peer), server6(netns, say_peer, "fd00:77::2");
  auto ports = gateway->publish(
      "web", {{.address = "0.0.0.0", .container = kInside, .client_address = ClientAddress::kKeep},
              {.address = "::", .container = kInside, .client_address = ClientAddress::kKeep}});
  gateway->open_gate("web", "r1", netns);
  std::string own;
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(asked(ports[0].host, false, &own), own);
    EXPECT_THAT(own, testing::StartsWith("192.0.2.2 "));
    EXPECT_EQ(asked(ports[1].host, true, &own), own);
    EXPECT_THAT(own, testing::StartsWith("2001:db8::2 "));
  }
}

TEST_F(ClientAddressTest, IsKeptForAProgramOnLoopback) {
  auto gateway = gateway_on_host();
  Server server(netns, say_peer, "127.0.0.1");
  auto ports = gateway->publish(
      "web",
      {{.address = "0.0.0.0", .container = kInside, .client_address = ClientAddress::kKeep}});
  gateway->open_gate("web", "r1", netns);
  std::string own;
  EXPECT_EQ(asked(ports[0].host, false, &own), own);
  EXPECT_THAT(own, testing::StartsWith("192.0.2.2 "));
}

TEST_F(ClientAddressTest, ARefusalOfTheProgramComesBackToTheGateway) {
  Gateway* raw;
  std::unique_ptr<Gateway> gateway;
  on_thread_in(&host,
               [&] { gateway = std::make_unique<Gateway>(Limits{.held_timeout_us = 100'000}); });
  raw = gateway.get();
  auto ports = raw->publish(
      "web",
      {{.address = "0.0.0.0", .container = kInside, .client_address = ClientAddress::kKeep}});
  raw->open_gate("web", "r1", netns);
  EXPECT_EQ(asked(ports[0].host, false), "<reset>");
}

TEST_F(ClientAddressTest, IsInAProxyHeader) {
  auto gateway = gateway_on_host();
  Server server(netns, [](Fd& client) {
    std::string header = hear(client, 16);
    std::size_t more = static_cast<unsigned char>(header[15]);
    std::string addresses = hear(client, more);
    hear(client, 4);
    say(client, header + addresses);
  });
  auto ports = gateway->publish(
      "web", {{.address = "0.0.0.0", .container = kInside, .client_address = ClientAddress::kProxy},
              {.address = "::", .container = kInside, .client_address = ClientAddress::kProxy}});
  gateway->open_gate("web", "r1", netns);
  const std::string signature("\r\n\r\n\0\r\nQUIT\n", 12);
  std::string own;
  std::string heard = asked(ports[0].host, false, &own);
  ASSERT_EQ(heard.size(), 28u);
  EXPECT_EQ(heard.substr(0, 16), signature + std::string("\x21\x11\0\x0c", 4));
  char text[INET6_ADDRSTRLEN];
  auto port_at = [&](std::size_t at) {
    return static_cast<unsigned char>(heard[at]) << 8 | static_cast<unsigned char>(heard[at + 1]);
  };
  EXPECT_EQ(
      fmt::format("{} {}", inet_ntop(AF_INET, heard.data() + 16, text, sizeof text), port_at(24)),
      own);
  EXPECT_STREQ(inet_ntop(AF_INET, heard.data() + 20, text, sizeof text), "192.0.2.1");
  EXPECT_EQ(port_at(26), ports[0].host);

  heard = asked(ports[1].host, true, &own);
  ASSERT_EQ(heard.size(), 52u);
  EXPECT_EQ(heard.substr(0, 16), signature + std::string("\x21\x21\0\x24", 4));
  EXPECT_EQ(
      fmt::format("{} {}", inet_ntop(AF_INET6, heard.data() + 16, text, sizeof text), port_at(48)),
      own);
}

// ---- calls ----

struct Caller {
  std::promise<CallAnswer> answer;
  std::promise<void> dropped;
  std::future<CallAnswer> answered = answer.get_future();
  std::future<void> gone = dropped.get_future();
  std::uint64_t call(Gateway& gateway, const std::string& pod = "web") {
    return gateway.call({.pod = pod, .port = kInside},
                        {[this](CallAnswer value) { answer.set_value(std::move(value)); },
                         [this] { dropped.set_value(); }});
  }
};

TEST_F(GatewayTest, ACallIsHeldCountedAndGivenBack) {
  Gateway gateway;
  publish(gateway);
  Server server(netns, answers("hello"));
  Caller caller;
  std::uint64_t number = caller.call(gateway);
  EXPECT_EQ(gateway.traffic("web").held, 1);
  gateway.open_gate("web", "r1", netns);
  CallAnswer answer = caller.answered.get();
  auto& reached = std::get<Reached>(answer);
  EXPECT_EQ(reached.replica, "r1");
  EXPECT_EQ(gateway.in_flight("r1"), 1);
  set_nonblocking(reached.socket, false);
  be_patient(reached.socket);
  say(reached.socket, "ping");
  EXPECT_EQ(hear(reached.socket), "hello");
  EXPECT_FALSE(drained(gateway, "r1", 0));
  gateway.end_call(number);
  EXPECT_TRUE(drained(gateway, "r1", kPatienceUs));
}

TEST_F(GatewayTest, ACallHearsWhyItIsRefused) {
  Gateway gateway({.held_per_port = 1, .held_timeout_us = 50'000});
  publish(gateway);
  Caller nobody, waits, late;
  nobody.call(gateway, "nobody");
  waits.call(gateway);
  late.call(gateway);
  auto why = [](Caller& caller) { return std::get<Refused>(caller.answered.get()).why; };
  EXPECT_EQ(why(nobody), Refusal::kNotPublished);
  EXPECT_EQ(why(late), Refusal::kTooMany);
  EXPECT_EQ(why(waits), Refusal::kTooLong);
}

TEST_F(GatewayTest, ACallThatIsCalledOffIsForgotten) {
  Gateway gateway;
  publish(gateway);
  Caller caller;
  std::uint64_t number = caller.call(gateway);
  EXPECT_EQ(gateway.traffic("web").held, 1);
  gateway.end_call(number);
  EXPECT_EQ(gateway.traffic("web").held, 0);
  gateway.end_call(number);
  gateway.unpublish("web");
}

TEST_F(GatewayTest, ACallIsToldThatItsReplicaGoes) {
  Gateway gateway;
  publish(gateway);
  Server server(netns, echo);
  gateway.open_gate("web", "r1", netns);
  Caller caller;
  std::uint64_t number = caller.call(gateway);
  CallAnswer answer = caller.answered.get();
  gateway.drop("r1");
  caller.gone.get();
  EXPECT_EQ(gateway.in_flight("r1"), 1);
  gateway.end_call(number);
  EXPECT_TRUE(drained(gateway, "r1", kPatienceUs));
}

TEST_F(GatewayTest, AClientThatLeavesWhileHeldIsForgotten) {
  Gateway gateway;
  std::uint16_t port = publish(gateway);
  Server server(netns, echo);
  auto clients = held_clients(gateway, port, 3);
  clients[0].reset();  // end of stream
  say(clients[1], "request");
  reset(clients[1]);
  EXPECT_TRUE(eventually([&] { return gateway.traffic("web").held == 1; }));
  gateway.open_gate("web", "r1", netns);
  say(clients[2], "ping");
  end_sending(clients[2]);
  EXPECT_EQ(hear(clients[2]), "ping");
  EXPECT_EQ(server.accepted(), 1);
}

TEST_F(GatewayTest, ARequestHalfClosedWhileHeldIsAnswered) {
  Gateway gateway;
  std::uint16_t port = publish(gateway);
  Server server(netns, [](Fd& client) { say(client, "got " + hear(client)); });
  auto clients = held_clients(gateway, port, 1);
  say(clients[0], "all of it");
  end_sending(clients[0]);
  gateway.open_gate("web", "r1", netns);
  EXPECT_EQ(hear(clients[0]), "got all of it");
}

TEST_F(GatewayTest, UnpublishResetsHeldAndSparesSpliced) {
  Gateway gateway;
  std::uint16_t port = publish(gateway);
  Server server(netns, echo);
  gateway.open_gate("web", "r1", netns);
  Fd spliced = connect_to(port);
  say(spliced, "one");
  EXPECT_EQ(hear(spliced, 3), "one");
  gateway.close_gate("web", "r1");
  auto clients = held_clients(gateway, port, 1);
  gateway.unpublish("web");
  gateway.unpublish("web");
  EXPECT_EQ(hear(clients[0]), "<reset>");
  EXPECT_THROW(connect_to(port), Error);
  say(spliced, "two");
  end_sending(spliced);
  EXPECT_EQ(hear(spliced), "two");
  EXPECT_TRUE(drained(gateway, "r1", kPatienceUs));
}

// ---- reaching a replica ----

TEST_F(GatewayTest, ReachesAProgramThatBindsLoopbackOnly) {
  Gateway gateway;
  std::uint16_t port = publish(gateway);
  Server server(netns, answers("hello"), "127.0.0.1");
  gateway.open_gate("web", "r1", netns);
  for (int i = 0; i < 3; ++i) {
    Fd client = connect_to(port);
    say(client, "ping");
    EXPECT_EQ(hear(client), "hello");
  }
}

TEST_F(GatewayTest, TheReplicaSeesTheGatewaysAddress) {
  Gateway gateway;
  std::uint16_t port = publish(gateway);
  Server server(netns, [](Fd& client) {
    sockaddr_in peer{};
    socklen_t size = sizeof peer;
    getpeername(client.get(), reinterpret_cast<sockaddr*>(&peer), &size);
    say(client, inet_ntoa(peer.sin_addr));
  });
  gateway.open_gate("web", "r1", netns);
  EXPECT_EQ(hear(connect_to(port)), "10.77.0.1");
}

TEST_F(GatewayTest, RetriesUntilTheProgramListens) {
  Gateway gateway({.connect_timeout_us = 1});
  std::uint16_t port = publish(gateway);
  gateway.open_gate("web", "r1", netns);
  auto clients = held_clients(gateway, port, 1);  // refused, so it waits for its next attempt
  Server server(netns, answers("hello"));
  say(clients[0], "ping");
  EXPECT_EQ(hear(clients[0]), "hello");
}

TEST_F(GatewayTest, ResetsWhenEveryReplicaRefuses) {
  Gateway gateway({.held_timeout_us = 30'000});
  std::uint16_t port = publish(gateway);
  Fd other = make_netns();
  gateway.open_gate("web", "r1", netns);
  gateway.open_gate("web", "r2", other);
  EXPECT_EQ(hear(connect_to(port)), "<reset>");
  EXPECT_EQ(gateway.in_flight("r1"), 0);
  EXPECT_EQ(gateway.in_flight("r2"), 0);
}

TEST_F(GatewayTest, OneThatListenedBeforeIsNotWaitedForAsLong) {
  Gateway gateway({.connect_timeout_us = 30'000});
  std::uint16_t port = publish(gateway);
  gateway.open_gate("web", "r1", netns);
  {
    Server server(netns, answers("hello"));
    Fd client = connect_to(port);
    say(client, "ping");
    EXPECT_EQ(hear(client), "hello");
  }
  EXPECT_EQ(hear(connect_to(port)), "<reset>");
}

// Its backlog takes two connections, and the program one after another.
TEST_F(GatewayTest, AFullBacklogIsWaitedFor) {
  Gateway gateway({.connect_timeout_us = 30'000});
  std::uint16_t port = publish(gateway);
  constexpr int kClients = 60;
  Fd listener;
  on_thread_in(&netns, [&] {
    listener = make_socket();
    sockaddr_in here = endpoint("10.77.0.2", kInside);
    check(::bind(listener.get(), reinterpret_cast<sockaddr*>(&here), sizeof here), "bind");
    check(::listen(listener.get(), 1), "listen");
  });
  auto clients = held_clients(gateway, port, kClients);
  gateway.open_gate("web", "r1", netns);
  std::this_thread::sleep_for(milliseconds(100));  // longer than refused ones are tried again
  std::thread program([&] {
    for (int i = 0; i < kClients; ++i) {
      Fd client(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
      be_patient(client);
      say(client, hear(client, 4));
    }
  });
  for (Fd& client : clients) say(client, "ping");
  for (Fd& client : clients) EXPECT_EQ(hear(client), "ping");
  program.join();
}

TEST_F(GatewayTest, TheNextReplicaServesWhatTheFirstRefuses) {
  Gateway gateway;
  std::uint16_t port = publish(gateway);
  Fd other = make_netns();
  Server server(other, answers("hello"));
  gateway.open_gate("web", "deaf", netns);
  gateway.open_gate("web", "well", other);
  for (int i = 0; i < 6; ++i) {
    Fd client = connect_to(port);
    say(client, "ping");
    EXPECT_EQ(hear(client), "hello");
  }
}

TEST_F(GatewayTest, TheNextReplicaServesWhatTheFirstLeavesHanging) {
  Gateway gateway({.connect_timeout_us = 30'000});
  std::uint16_t port = publish(gateway);
  Fd other = make_netns();
  Server server(other, answers("hello"));
  // Packets to the port vanish in the first one.
  on_thread_in(&netns, [] {
    ASSERT_TRUE(run({"ip", "-batch", "-"}, Deadline::after_ms(10'000), {},
                    "addr del 10.77.0.2/32 dev lo\nroute add blackhole 10.77.0.2/32\naddr del "
                    "127.0.0.1/8 dev lo\n")
                    .ok());
  });
  gateway.open_gate("web", "hanging", netns);
  gateway.open_gate("web", "well", other);
  for (int i = 0; i < 4; ++i) {
    Fd client = connect_to(port);
    say(client, "ping");
    EXPECT_EQ(hear(client), "hello");
  }
}

TEST_F(GatewayTest, BackToHeldWhenTheOnlyReplicaLeavesWhileItRefuses) {
  Gateway gateway({.connect_timeout_us = 50'000});
  std::uint16_t port = publish(gateway);
  gateway.open_gate("web", "deaf", netns);
  auto clients = held_clients(gateway, port, 1);
  gateway.drop("deaf");
  EXPECT_EQ(gateway.traffic("web").held, 1);
  Server server(netns, answers("hello"));
  gateway.open_gate("web", "well", netns);
  say(clients[0], "ping");
  EXPECT_EQ(hear(clients[0]), "hello");
}

TEST_F(GatewayTest, PicksTheReplicaWithTheFewestInFlight) {
  Gateway gateway;
  std::uint16_t port = publish(gateway);
  Fd other = make_netns();
  Server one(netns, echo), two(other, echo);
  gateway.open_gate("web", "r1", netns);
  gateway.open_gate("web", "r2", other);
  std::vector<Fd> clients;
  auto connect = [&] {
    clients.push_back(connect_to(port));
    say(clients.back(), "x");
    EXPECT_EQ(hear(clients.back(), 1), "x");
  };
  for (int i = 0; i < 10; ++i) connect();
  EXPECT_EQ(gateway.in_flight("r1"), 5);
  EXPECT_EQ(gateway.in_flight("r2"), 5);
  EXPECT_EQ(gateway.traffic("web").active, 10);

  gateway.close_gate("web", "r2");
  connect();
  connect();
  EXPECT_EQ(gateway.in_flight("r1"), 7);
  EXPECT_EQ(gateway.in_flight("r2"), 5);
  gateway.open_gate("web", "r2", other);
  connect();
  connect();
  EXPECT_EQ(gateway.in_flight("r1"), 7);
  EXPECT_EQ(gateway.in_flight("r2"), 7);
}

// ---- leaving ----

TEST_F(GatewayTest, DrainWaitsForTheLastConnection) {
  Gateway gateway;
  std::uint16_t port = publish(gateway);
  Server server(netns, echo);
  gateway.open_gate("web", "r1", netns);
  Fd client = connect_to(port);
  say(client, "x");
  EXPECT_EQ(hear(client, 1), "x");
  gateway.close_gate("web", "r1");
  EXPECT_FALSE(drained(gateway, "r1", 1'000));
  EXPECT_EQ(gateway.in_flight("r1"), 1);
  std::thread waiting([&] { EXPECT_TRUE(drained(gateway, "r1", kPatienceUs)); });
  say(client, "y");
  EXPECT_EQ(hear(client, 1), "y");
  end_sending(client);
  EXPECT_EQ(hear(client), "");
  waiting.join();
  EXPECT_EQ(gateway.in_flight("r1"), 0);
  EXPECT_TRUE(drained(gateway, "unknown", 0));
}

TEST_F(GatewayTest, WhatAReplicaThatLeavesHasCallsForNoOther) {
  int called = 0;
  Gateway gateway({}, [&](const std::string&) { ++called; });
  std::uint16_t port = publish(gateway);
  Server server(netns, echo);
  gateway.open_gate("web", "r1", netns);
  Fd stays = connect_to(port), ends = connect_to(port);
  for (const Fd* client : {&stays, &ends}) {
    say(*client, "x");
    EXPECT_EQ(hear(*client, 1), "x");
  }
  EXPECT_EQ(gateway.need("web", kPatienceUs).now, 1);
  gateway.close_gate("web", "r1");
  EXPECT_EQ(gateway.need("web", kPatienceUs).peak, 0);
  end_sending(ends);
  EXPECT_EQ(hear(ends), "");
  EXPECT_EQ(gateway.in_flight("r1"), 1);
  EXPECT_EQ(gateway.need("web", kPatienceUs).now, 0);
  EXPECT_EQ(called, 0);
  // A replica that comes back has them as ever.
  gateway.open_gate("web", "r1", netns);
  EXPECT_EQ(gateway.need("web", kPatienceUs).now, 1);
  end_sending(stays);
  EXPECT_EQ(hear(stays), "");
  EXPECT_TRUE(drained(gateway, "r1", kPatienceUs));
  EXPECT_EQ(gateway.need("web", kPatienceUs).now, 0);
}

TEST_F(GatewayTest, ConnectionsOfAnotherProcessCountAsItsOwn) {
  std::atomic<int> needs = 0;
  Gateway gateway({}, [&](const std::string&) { ++needs; });
  gateway.publish("web", {{"127.0.0.1", 0, kInside}}, {.concurrency = 1});
  gateway.set_elsewhere(0, {.held = {{"web", 2}}, .active = {{"r1", {"web", 1}}}});
  EXPECT_GE(needs, 1);
  EXPECT_EQ(gateway.traffic("web").held, 2);
  EXPECT_EQ(gateway.in_flight("r1"), 1);
  gateway.open_gate("web", "r1", netns);
  EXPECT_EQ(gateway.need("web", 0).now, 3);
  gateway.close_gate("web", "r1");
  EXPECT_FALSE(drained(gateway, "r1", 1'000));
  gateway.set_elsewhere(0, {.active = {{"r1", {"web", 3}}, {"of nobody", {"none", 1}}}});
  EXPECT_EQ(gateway.traffic("web").held, 0);
  EXPECT_EQ(gateway.traffic("web").active, 3);
  gateway.set_elsewhere(1, {.active = {{"r1", {"web", 1}}}});
  gateway.set_elsewhere(0, {});
  EXPECT_EQ(gateway.in_flight("r1"), 1);
  gateway.set_elsewhere(1, {});
  EXPECT_TRUE(drained(gateway, "r1", kPatienceUs));
  EXPECT_EQ(gateway.traffic("web").active, 0);
}

TEST_F(GatewayTest, ConnectionsLiveOnWhenAnotherDaemonAccepts) {
  Gateway gateway;
  std::uint16_t port = publish(gateway), other = publish(gateway, "other");
  Server server(netns, echo);
  gateway.open_gate("other", "r1", netns);
  Fd spliced = connect_to(other);
  say(spliced, "x");
  EXPECT_EQ(hear(spliced, 1), "x");
  auto held = held_clients(gateway, port, 1);
  Fd changed = Fd::event();
  gateway.hand_over(changed);
  EXPECT_THROW(connect_to(port), Error);
  Elsewhere now = gateway.connections();
  EXPECT_EQ(now.total, 2);
  EXPECT_EQ(now.held, (std::map<std::string, std::int64_t>{{"web", 1}}));
  EXPECT_EQ(now.active.at("r1"), std::pair(std::string("other"), std::int64_t{1}));
  say(spliced, "y");
  EXPECT_EQ(hear(spliced, 1), "y");
  gateway.open_gate("web", "r2", netns);
  say(held[0], "z");
  EXPECT_EQ(hear(held[0], 1), "z");
  held.clear();
  spliced.reset();
  EXPECT_TRUE(eventually([&] { return gateway.connections().total == 0; }));
  EXPECT_TRUE(wait_readable(changed.get(), Deadline::after_ms(0)));
}

TEST_F(GatewayTest, ConnectionsAtRestAreNoNeedAndEndWithTheirReplica) {
  Gateway gateway;
  std::uint16_t port =
      gateway.publish("web", {{.container = kInside}}, {.concurrency = 1}).at(0).host;
  Server server(netns, [](Fd& client) {
    std::string request = hear(client, 4);
    if (request != "slow") say(client, request);
    hear(client);
  });
  gateway.open_gate("web", "r1", netns);
  Fd answered = connect_to(port), silent = connect_to(port), asking = connect_to(port);
  say(answered, "ping");
  EXPECT_EQ(hear(answered, 4), "ping");
  say(asking, "slow");
  Caller calling, streaming;
  auto moved_us = std::make_shared<std::atomic<std::int64_t>>(0);
  std::uint64_t call = calling.call(gateway);
  std::uint64_t stream =
      gateway.call({.pod = "web", .port = kInside, .moved_us = moved_us},
                   {[&](CallAnswer value) { streaming.answer.set_value(std::move(value)); },
                    [&] { streaming.dropped.set_value(); }});
  CallAnswer reached = calling.answered.get(), stream_reached = streaming.answered.get();
  EXPECT_TRUE(eventually([&] { return server.accepted() == 5; }));

  EXPECT_TRUE(eventually([&] { return gateway.need("web", 0).now == 3; }))
      << "one that waits for its answer, and two requests";
  moved_us->store(monotonic_us());
  EXPECT_EQ(gateway.need("web", 0).now, 2) << "a request has become a stream";
  EXPECT_EQ(gateway.need("web", kPatienceUs).now, 5) << "none is at rest for so long";
  EXPECT_EQ(gateway.need("web", kPatienceUs).held, 0);

  gateway.end_quiet("r1", kPatienceUs);
  EXPECT_EQ(gateway.in_flight("r1"), 5);
  gateway.end_quiet("r1", 0);
  EXPECT_EQ(hear(answered), "");
  EXPECT_EQ(hear(silent), "");
  streaming.gone.get();
  gateway.end_call(stream);
  EXPECT_TRUE(eventually([&] { return gateway.in_flight("r1") == 2; }));
  gateway.end_call(call);
}

TEST_F(GatewayTest, EachReplicaIsReachedAsItsOwnVersionSays) {
  Gateway gateway;
  PublishedPort where{.container = kInside};
  where.host = gateway.publish("web", {where}).at(0).host;
  Server old_one(netns, answers("old"));
  gateway.open_gate("web", "r1", netns, Offer{{where}, {{"/", kInside}}});
  PublishedPort other = where, more{.container = 9999};
  other.container = 9000;
  more.host = gateway.publish("web", {other, more}).at(1).host;
  auto asked = [&](std::uint16_t port) {
    Fd client = connect_to(port);
    say(client, "ping");
    return hear(client);
  };
  EXPECT_EQ(asked(where.host), "old");
  // What only the new one has waits for it.
  Fd waiting = connect_to(more.host);
  say(waiting, "ping");
  EXPECT_TRUE(eventually([&] { return gateway.traffic("web").held == 1; }));
  Fd inside = make_netns();
  Server new_one(inside, answers("new"), "10.77.0.2", 9000),
      new_more(inside, answers("more"), "10.77.0.2", 9999);
  gateway.open_gate("web", "r2", inside, Offer{{other, more}, {{"/", 9000}}});
  EXPECT_EQ(hear(waiting), "more");
  gateway.close_gate("web", "r1");
  EXPECT_EQ(asked(where.host), "new");
  std::promise<CallAnswer> answer;
  std::uint64_t call = gateway.call(
      {.pod = "web", .route = "/", .port = kInside},
      {.answered = [&](CallAnswer found) { answer.set_value(std::move(found)); }, .dropped = {}});
  CallAnswer reached = answer.get_future().get();
  say(std::get<Reached>(reached).socket, "ping");
  pollfd wait{std::get<Reached>(reached).socket.get(), POLLIN, 0};
  ::poll(&wait, 1, kPatienceS * 1000);
  EXPECT_EQ(hear(std::get<Reached>(reached).socket, 3), "new");
  gateway.end_call(call);
}

TEST_F(GatewayTest, DropResetsWhatIsLeft) {
  Gateway gateway;
  std::uint16_t port = publish(gateway);
  Server server(netns, echo);
  gateway.open_gate("web", "r1", netns);
  Fd client = connect_to(port);
  say(client, "x");
  EXPECT_EQ(hear(client, 1), "x");
  std::thread waiting([&] { EXPECT_TRUE(drained(gateway, "r1", kPatienceUs)); });
  gateway.drop("r1");
  EXPECT_EQ(hear(client), "<reset>");
  EXPECT_EQ(gateway.in_flight("r1"), 0);
  waiting.join();
  gateway.drop("r1");
  gateway.open_gate("web", "r1", netns);
}

TEST_F(GatewayTest, TheDestructorResetsEverything) {
  auto gateway = std::make_unique<Gateway>();
  std::uint16_t port = publish(*gateway);
  Server server(netns, echo);
  gateway->open_gate("web", "r1", netns);
  Fd spliced = connect_to(port);
  say(spliced, "x");
  EXPECT_EQ(hear(spliced, 1), "x");
  gateway->close_gate("web", "r1");
  auto clients = held_clients(*gateway, port, 1);
  gateway.reset();
  EXPECT_EQ(hear(spliced), "<reset>");
  EXPECT_EQ(hear(clients[0]), "<reset>");
  EXPECT_THROW(connect_to(port), Error);
}

// ---- bytes ----

TEST_F(GatewayTest, HalfCloseByTheClient) {
  Gateway gateway;
  std::uint16_t port = publish(gateway);
  Server server(netns, [](Fd& client) {
    std::string all = hear(client);
    say(client, "got " + all);
  });
  gateway.open_gate("web", "r1", netns);
  Fd client = connect_to(port);
  say(client, "all of it");
  end_sending(client);
  EXPECT_EQ(hear(client), "got all of it");
}

TEST_F(GatewayTest, HalfCloseByTheReplica) {
  Gateway gateway;
  std::uint16_t port = publish(gateway);
  std::promise<std::string> heard;
  Server server(netns, [&](Fd& client) {
    say(client, "greeting");
    end_sending(client);
    heard.set_value(hear(client));
  });
  gateway.open_gate("web", "r1", netns);
  Fd client = connect_to(port);
  EXPECT_EQ(hear(client), "greeting");
  say(client, "still here");
  end_sending(client);
  EXPECT_EQ(heard.get_future().get(), "still here");
  EXPECT_TRUE(drained(gateway, "r1", kPatienceUs));
}

TEST_F(GatewayTest, SixtyFourMebibytesEachWay) {
  Gateway gateway;
  std::uint16_t port = publish(gateway);
  constexpr std::size_t kSize = 64 << 20;
  std::string up = pattern(kSize, 1), down = pattern(kSize, 2);
  std::promise<bool> arrived;
  Server server(netns, [&](Fd& client) {
    std::thread sending([&] {
      say(client, down);
      end_sending(client);
    });
    arrived.set_value(hear(client) == up);
    sending.join();
  });
  gateway.open_gate("web", "r1", netns);
  Fd client = connect_to(port);
  std::thread sending([&] {
    say(client, up);
    end_sending(client);
  });
  EXPECT_TRUE(hear(client) == down);
  sending.join();
  EXPECT_TRUE(arrived.get_future().get());
  EXPECT_TRUE(drained(gateway, "r1", kPatienceUs));
}

TEST_F(GatewayTest, OddSizesArriveInOrder) {
  Gateway gateway;
  std::uint16_t port = publish(gateway);
  Server server(netns, echo);
  gateway.open_gate("web", "r1", netns);
  Fd client = connect_to(port);
  // From single bytes to more than the shared buffer, so that a connection changes between both
  // ways of moving bytes.
  for (std::size_t size : {1u, 17u, 65'535u, 65'536u, 65'537u, 1u, 300'001u, 3u, 2'000'003u, 5u}) {
    std::string text = pattern(size, size);
    std::thread sending([&] { say(client, text); });
    EXPECT_TRUE(hear(client, size) == text) << size;
    sending.join();
  }
}

TEST_F(GatewayTest, AReaderThatStopsHoldsUpTheWriterAndLosesNothing) {
  Gateway gateway;
  std::uint16_t port = publish(gateway);
  std::promise<void> go;
  std::promise<std::string> heard;
  Server server(netns, [&](Fd& client) {
    go.get_future().wait();
    heard.set_value(hear(client));
  });
  gateway.open_gate("web", "r1", netns);
  Fd client = connect_to(port);
  std::string text = pattern(64 << 20, 3);
  std::size_t sent = 0;
  // Until the way is full: nothing more is taken for a while, and far from everything was.
  for (pollfd wait{client.get(), POLLOUT, 0}; sent < text.size() && ::poll(&wait, 1, 200) == 1;) {
    ssize_t n =
        ::send(client.get(), text.data() + sent, text.size() - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n > 0) sent += static_cast<std::size_t>(n);
  }
  EXPECT_LT(sent, text.size());
  end_sending(client);
  go.set_value();
  text.resize(sent);
  EXPECT_TRUE(heard.get_future().get() == text);
}

TEST_F(GatewayTest, AResetOfTheClientReachesTheReplica) {
  Gateway gateway;
  std::uint16_t port = publish(gateway);
  std::promise<std::string> heard;
  Server server(netns, [&](Fd& client) {
    say(client, hear(client, 4));
    heard.set_value(hear(client));
  });
  gateway.open_gate("web", "r1", netns);
  Fd client = connect_to(port);
  say(client, "ping");
  EXPECT_EQ(hear(client, 4), "ping");
  reset(client);
  EXPECT_EQ(heard.get_future().get(), "<reset>");
  EXPECT_TRUE(drained(gateway, "r1", kPatienceUs));
}

// Neither takes what the other says, so nothing that is on its way can be delivered any more.
TEST_F(GatewayTest, AResetWithBothDirectionsFullReachesTheReplica) {
  Gateway gateway({.linger_us = 100'000});
  std::uint16_t port = publish(gateway);
  std::promise<bool> sent;
  Server server(netns, [&](Fd& client) {
    std::string text(64 << 20, 'x');
    sent.set_value(::send(client.get(), text.data(), text.size(), MSG_NOSIGNAL) ==
                   static_cast<ssize_t>(text.size()));
  });
  gateway.open_gate("web", "r1", netns);
  Fd client = connect_to(port);
  std::string text(1 << 20, 'x');
  for (pollfd wait{client.get(), POLLOUT, 0}; ::poll(&wait, 1, 300) == 1;)
    (void)::send(client.get(), text.data(), text.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  reset(client);
  EXPECT_FALSE(sent.get_future().get());
  EXPECT_TRUE(drained(gateway, "r1", kPatienceUs));
}

TEST_F(GatewayTest, AResetOfTheReplicaReachesTheClientAfterItsLastWords) {
  Gateway gateway;
  std::uint16_t port = publish(gateway);
  Server server(netns, [&](Fd& client) {
    hear(client, 4);
    say(client, "413 too much");
    client.reset();  // with bytes unread: a reset
  });
  gateway.open_gate("web", "r1", netns);
  Fd client = connect_to(port);
  say(client, "ping and a body that nobody reads");
  EXPECT_EQ(hear(client), "413 too much<reset>");
  EXPECT_TRUE(drained(gateway, "r1", kPatienceUs));
}

TEST_F(GatewayTest, AResetAfterAHalfCloseIsPassedOn) {
  Gateway gateway;
  std::uint16_t port = publish(gateway);
  std::promise<void> gone;
  Server server(netns, [&](Fd& client) {
    EXPECT_EQ(hear(client), "request");
    gone.get_future().wait();
    reset(client);
  });
  gateway.open_gate("web", "r1", netns);
  Fd client = connect_to(port);
  say(client, "request");
  end_sending(client);
  gone.set_value();
  EXPECT_EQ(hear(client), "<reset>");
}

// ---- publishing ----

TEST_F(GatewayTest, PublishKeepsWhatStaysAndClosesWhatGoes) {
  Gateway gateway;
  auto first = gateway.publish("web", {{"127.0.0.1", 0, kInside}, {"127.0.0.1", 0, 81}});
  ASSERT_EQ(first.size(), 2u);
  EXPECT_NE(first[0].host, 0);
  EXPECT_NE(first[0].host, first[1].host);
  Fd held = connect_to(first[0].host), gone = connect_to(first[1].host);
  EXPECT_TRUE(eventually([&] { return gateway.traffic("web").held == 2; }));

  auto second = gateway.publish("web", {{"127.0.0.1", 0, 82}, {"127.0.0.1", 0, kInside}});
  EXPECT_EQ(second[1].host, first[0].host);
  EXPECT_EQ(hear(gone), "<reset>");
  EXPECT_EQ(gateway.traffic("web").held, 1);
  EXPECT_THROW(connect_to(first[1].host), Error);

  // By number, too; and what is behind it may change.
  auto third = gateway.publish("web", {{"127.0.0.1", first[0].host, 90}});
  EXPECT_EQ(third[0].host, first[0].host);
  EXPECT_EQ(gateway.traffic("web").held, 1);
  // The same number on every address: the old listener makes room.
  auto fourth = gateway.publish("web", {{"0.0.0.0", first[0].host, 90}});
  EXPECT_EQ(fourth[0].host, first[0].host);
  connect_to(first[0].host);
  EXPECT_TRUE(gateway.publish("web", {}).empty());
  EXPECT_THROW(connect_to(first[0].host), Error);
}

TEST_F(GatewayTest, AConflictNamesPortAndPodAndChangesNothing) {
  Gateway gateway;
  std::uint16_t taken = publish(gateway, "first");
  std::uint16_t own = publish(gateway, "second");
  Fd held = connect_to(own);
  EXPECT_TRUE(eventually([&] { return gateway.traffic("second").held == 1; }));
  for (const char* address : {"127.0.0.1", "0.0.0.0"}) {
    try {
      gateway.publish("second",
                      {{"127.0.0.1", 0, 99}, {"0.0.0.0", own, kInside}, {address, taken, kInside}});
      FAIL() << "no error";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::kConflict);
      EXPECT_THAT(error.what(), HasSubstr(fmt::format("{}:{}", address, taken)));
      EXPECT_THAT(error.what(), HasSubstr("pod first"));
    }
  }
  EXPECT_EQ(gateway.traffic("second").held, 1);
  connect_to(own);
  EXPECT_EQ(gateway.publish("second", {{"127.0.0.1", 0, kInside}})[0].host, own);
}

TEST_F(GatewayTest, AConflictWithAnotherProgram) {
  Gateway gateway, other;
  std::uint16_t taken = publish(other);
  try {
    gateway.publish("web", {{"127.0.0.1", taken, kInside}});
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::kConflict);
    EXPECT_THAT(error.what(), HasSubstr(std::to_string(taken)));
  }
}

TEST_F(GatewayTest, RefusesWhatCannotBePublished) {
  Gateway gateway;
  auto code_of = [&](std::vector<PublishedPort> ports) {
    try {
      gateway.publish("web", ports);
    } catch (const Error& error) {
      return error.code();
    }
    return Code::kInternal;
  };
  EXPECT_EQ(code_of({{"not an address", 0, 80}}), Code::kInvalid);
  EXPECT_EQ(code_of({{"192.0.2.1", 0, 80}}), Code::kInvalid);
  EXPECT_EQ(code_of({{"127.0.0.1", 0, 0}}), Code::kInvalid);
  EXPECT_EQ(code_of({{"127.0.0.1", 40'001, 80}, {"127.0.0.1", 40'001, 81}}), Code::kInvalid);
}

TEST_F(GatewayTest, PublishesOnIpv6) {
  Gateway gateway;
  Server server(netns, answers("hello"));
  gateway.open_gate("web", "r1", netns);
  auto chosen = gateway.publish("web", {{"::1", 0, kInside}});
  Fd client(check(::socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0), "make", "socket"));
  sockaddr_in6 to{};
  to.sin6_family = AF_INET6;
  to.sin6_port = htons(chosen[0].host);
  to.sin6_addr = in6addr_loopback;
  check(::connect(client.get(), reinterpret_cast<sockaddr*>(&to), sizeof to), "connect");
  say(client, "ping");
  EXPECT_EQ(hear(client), "hello");
}

// ---- descriptors ----

TEST_F(GatewayTest, LeavesNoDescriptorBehind) {
  Server server(netns, echo);
  std::size_t before = open_descriptors();
  {
    Gateway gateway;
    std::uint16_t port = publish(gateway);
    publish(gateway, "other");
    gateway.open_gate("web", "r1", netns);
    std::string text = pattern(1 << 20, 4);
    for (int i = 0; i < 20; ++i) {
      Fd client = connect_to(port);
      std::thread sending([&] {
        say(client, text);
        end_sending(client);
      });
      EXPECT_TRUE(hear(client) == text);
      sending.join();
      Fd rude = connect_to(port);
      say(rude, "x");
      reset(rude);
    }
    gateway.close_gate("web", "r1");
    EXPECT_TRUE(drained(gateway, "r1", kPatienceUs));
    auto clients = held_clients(gateway, port, 5);
  }
  // The server's own ends close as their threads find out.
  EXPECT_TRUE(eventually([&] { return open_descriptors() == before; }));
}

TEST_F(GatewayTest, ManyThreadsOpenCloseAndConnectAtOnce) {
  Gateway gateway;
  std::uint16_t port = publish(gateway);
  Fd other = make_netns();
  Server one(netns, answers("hello")), two(other, answers("hello"));
  gateway.open_gate("web", "r1", netns);
  std::atomic<bool> stop{false};
  std::thread scaling([&] {
    for (int i = 0; !stop; ++i) {
      std::string replica = fmt::format("extra-{}", i);
      gateway.open_gate("web", replica, other);
      gateway.traffic("web");
      gateway.close_gate("web", replica);
      EXPECT_TRUE(drained(gateway, replica, kPatienceUs));
      gateway.drop(replica);
    }
  });
  std::vector<std::thread> callers;
  std::atomic<int> answered{0};
  for (int i = 0; i < 4; ++i)
    callers.emplace_back([&] {
      for (int j = 0; j < 100; ++j) {
        Fd client = connect_to(port);
        say(client, "ping");
        if (hear(client) == "hello") ++answered;
      }
    });
  for (auto& caller : callers) caller.join();
  stop = true;
  scaling.join();
  EXPECT_EQ(answered, 400);
}

}  // namespace
}  // namespace thaw::gateway
