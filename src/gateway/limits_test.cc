// What bounds connections: time without bytes, descriptors, a replica's room.
#include "gateway/testing.h"

#include <fcntl.h>
#include <sys/resource.h>

#include <atomic>

#include <gmock/gmock.h>

#include "util/finally.h"

namespace thaw::gateway {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

constexpr std::string_view kGet = "GET /a HTTP/1.1\r\nHost: x\r\n\r\n";

PublishedPort http_port() { return {.container = kInside, .protocol = Protocol::kHttp}; }

// ---- time ----

TEST_F(GatewayTest, IdleConnectionsAreReset) {
  Gateway gateway({.idle_timeout_us = 50'000});
  std::uint16_t port = publish(gateway);
  std::promise<std::string> heard;
  Server server(netns, [&](Fd& client) {
    say(client, hear(client, 4));
    heard.set_value(hear(client));
  });
  gateway.open_gate("web", "r1", netns);
  Fd client = connect_to(port);
  say(client, "ping");
  EXPECT_EQ(hear(client), "ping<reset>");
  EXPECT_EQ(heard.get_future().get(), "<reset>");
}

TEST_F(GatewayTest, APortsOwnIdleTimeGoesBeforeTheGateways) {
  Gateway gateway({.idle_timeout_us = 50'000});
  auto ports = gateway.publish("web", {{.container = kInside, .idle_timeout_us = 0},
                                       {.container = kInside, .idle_timeout_us = 50'000}});
  Server server(netns, echo);
  gateway.open_gate("web", "r1", netns);
  Fd for_ever = connect_to(ports[0].host), idle = connect_to(ports[1].host);
  say(for_ever, "ping");
  EXPECT_EQ(hear(for_ever, 4), "ping");
  say(idle, "ping");
  EXPECT_EQ(hear(idle), "ping<reset>");
  pollfd quiet{for_ever.get(), POLLIN, 0};
  EXPECT_EQ(::poll(&quiet, 1, 150), 0);
  say(for_ever, "pong");
  EXPECT_EQ(hear(for_ever, 4), "pong");
}

TEST_F(GatewayTest, WhatIsHalfClosedAndMovesNothingIsEnded) {
  Gateway gateway({.half_closed_us = 50'000});
  std::uint16_t port = publish(gateway);
  Server server(netns, [](Fd& client) {
    hear(client, 4);
    hear(client);  // the end of the client's stream
    hear(client);
    std::this_thread::sleep_for(milliseconds(1));
    pollfd gone{client.get(), POLLRDHUP | POLLERR, 0};
    while (!(gone.revents & POLLERR) && ::poll(&gone, 1, kPatienceS * 1000) > 0)
      gone.events = POLLERR;
  });
  gateway.open_gate("web", "r1", netns);
  Fd client = connect_to(port);
  say(client, "ping");
  end_sending(client);
  EXPECT_EQ(hear(client), "<reset>");
  EXPECT_TRUE(drained(gateway, "r1", kPatienceUs));
}

TEST_F(GatewayTest, WhatIsOnlyKeptForANextRequestDoesNotHoldUpADrain) {
  Gateway gateway({.quiet_us = 100'000});
  std::uint16_t port =
      gateway.publish("web", {{.container = kInside, .protocol = Protocol::kHttp}}).at(0).host;
  std::promise<void> answer;
  Server server(netns, [&](Fd& client) {
    std::string request = hear(client, 4);
    if (request == "slow") answer.get_future().wait();
    say(client, request);
    hear(client);
  });
  gateway.open_gate("web", "r1", netns);
  Fd answered = connect_to(port), asking = connect_to(port);
  say(answered, "ping");
  EXPECT_EQ(hear(answered, 4), "ping");
  say(asking, "slow");
  EXPECT_TRUE(eventually([&] { return server.accepted() == 2; }));
  gateway.close_gate("web", "r1");
  EXPECT_EQ(hear(answered), "");
  EXPECT_FALSE(drained(gateway, "r1", 300'000));  // one has not had its answer
  answer.set_value();
  EXPECT_EQ(hear(asking), "slow");
  EXPECT_TRUE(drained(gateway, "r1", kPatienceUs));
}

// Neither of a client that has ended its stream and stays.
TEST_F(GatewayTest, WhatIsHalfClosedAndHadItsAnswerDoesNotHoldUpADrain) {
  Gateway gateway({.quiet_us = 50'000});
  std::uint16_t port = publish(gateway);
  Server server(netns, [](Fd& client) {
    std::string request = hear(client, 4);
    say(client, request);
    if (request == "ends") end_sending(client);
    hear(client);  // to its end, or the client's
    pollfd gone{client.get(), POLLERR | POLLHUP, 0};
    ::poll(&gone, 1, kPatienceS * 1000);
  });
  gateway.open_gate("web", "r1", netns);
  Fd client_ended = connect_to(port), replica_ended = connect_to(port);
  say(client_ended, "ping");
  EXPECT_EQ(hear(client_ended, 4), "ping");
  end_sending(client_ended);
  say(replica_ended, "ends");
  EXPECT_EQ(hear(replica_ended), "ends");
  gateway.close_gate("web", "r1");
  EXPECT_TRUE(drained(gateway, "r1", kPatienceUs));
}

// ---- clients of HTTP ports that say nothing ----

TEST_F(GatewayTest, ASilentHttpClientNeedsNoReplica) {
  std::atomic<int> needs{0};
  Gateway gateway({}, [&](const std::string&) { ++needs; });
  std::uint16_t port = gateway.publish("web", {http_port()}).at(0).host;
  Server server(netns, answers("hello"));
  Fd silent = connect_to(port), leaves = connect_to(port), asks = connect_to(port);
  say(asks, "ping");
  EXPECT_TRUE(eventually([&] { return gateway.traffic("web").held == 1; }));
  leaves.reset();
  EXPECT_EQ(needs, 1);
  gateway.open_gate("web", "r1", netns);
  EXPECT_EQ(hear(asks), "hello");
  EXPECT_EQ(server.accepted(), 1);
  say(silent, "ping");
  EXPECT_EQ(hear(silent), "hello");
}

TEST_F(GatewayTest, ASilentHttpClientEndsWithItsPort) {
  Gateway gateway;
  std::uint16_t port = gateway.publish("web", {http_port()}).at(0).host;
  Fd silent = connect_to(port);
  Fd asks = connect_to(port);  // accepted after the other
  say(asks, kGet);
  EXPECT_TRUE(eventually([&] { return gateway.traffic("web").held == 1; }));
  gateway.unpublish("web");
  EXPECT_EQ(hear(silent), "<reset>");
}

// ---- a replica's room ----

TEST_F(GatewayTest, AHardLimitHoldsWhatAReplicaHasNoRoomFor) {
  Gateway gateway;
  std::uint16_t port =
      gateway.publish("web", {{.container = kInside}}, {.concurrency = 2, .hard = true}).at(0).host;
  std::atomic<int> now{0}, most{0};
  Server server(netns, [&](Fd& client) {
    int mine = ++now;
    for (int seen = most; mine > seen && !most.compare_exchange_weak(seen, mine);) {
    }
    say(client, hear(client, 4));
    --now;
  });
  gateway.open_gate("web", "r1", netns);
  std::vector<Fd> clients;
  for (int i = 0; i < 12; ++i) clients.push_back(connect_to(port));
  EXPECT_TRUE(eventually([&] { return gateway.traffic("web").held == 10; }));
  EXPECT_EQ(gateway.in_flight("r1"), 2);
  EXPECT_EQ(gateway.need("web", kPatienceUs).now, 6);
  gateway.open_gate("web", "r2", netns);
  EXPECT_EQ(gateway.traffic("web").held, 8);
  for (auto& client : clients) {  // the oldest first
    say(client, "ping");
    EXPECT_EQ(hear(client), "ping");
    client.reset();
  }
  EXPECT_LE(most, 4);
}

TEST_F(GatewayTest, WhatFindsNoRoomInTimeHearsSo) {
  Gateway gateway({.held_timeout_us = 50'000});
  std::uint16_t port =
      gateway.publish("web", {http_port()}, {.concurrency = 1, .hard = true}).at(0).host;
  Server server(netns, echo);
  gateway.open_gate("web", "r1", netns);
  Fd first = connect_to(port);
  say(first, "ping");
  EXPECT_EQ(hear(first, 4), "ping");
  Fd late = connect_to(port);
  say(late, kGet);
  EXPECT_THAT(hear(late), HasSubstr("no replica of pod web had room in time"));
}

TEST_F(GatewayTest, ARaisedLimitMakesRoom) {
  Gateway gateway;
  std::uint16_t port =
      gateway.publish("web", {{.container = kInside}}, {.concurrency = 1, .hard = true}).at(0).host;
  Server server(netns, echo);
  gateway.open_gate("web", "r1", netns);
  Fd first = connect_to(port), second = connect_to(port);
  EXPECT_TRUE(eventually([&] { return gateway.traffic("web").held == 1; }));
  gateway.publish("web", {{.host = port, .container = kInside}}, {.concurrency = 2, .hard = true});
  say(second, "ping");
  EXPECT_EQ(hear(second, 4), "ping");
}

// ---- descriptors ----

constexpr int kFew = 400;
constexpr int kLast = kFew / 4;

// Of which all may be taken but `left`.
class FewDescriptors {
 public:
  FewDescriptors() {
    getrlimit(RLIMIT_NOFILE, &before_);
    rlimit small{.rlim_cur = kFew, .rlim_max = before_.rlim_max};
    setrlimit(RLIMIT_NOFILE, &small);
  }
  ~FewDescriptors() { setrlimit(RLIMIT_NOFILE, &before_); }
  void take_all_but(int left) {
    for (int fd = 0; fd + 1 < kFew - left;)
      taken_.emplace_back(fd = check(::open("/dev/null", O_RDONLY | O_CLOEXEC), "open", "a file"));
  }
  void give_back() { taken_.clear(); }

 private:
  rlimit before_{};
  std::vector<Fd> taken_;
};

TEST_F(GatewayTest, WithoutDescriptorsClientsAreResetAndLaterOnesServed) {
  Gateway gateway;
  std::uint16_t port = publish(gateway);
  std::vector<Fd> clients;
  for (int i = 0; i < 10; ++i) clients.push_back(make_socket());

  {
    FewDescriptors few;
    few.take_all_but(0);
    for (auto& client : clients) {
      connect_socket(client, port);
      EXPECT_EQ(hear(client), "<reset>");
    }
  }

  Server server(netns, answers("hello"));
  gateway.open_gate("web", "r1", netns);
  Fd client = connect_to(port);
  say(client, "ping");
  EXPECT_EQ(hear(client), "hello");
}

TEST_F(GatewayTest, TheLastDescriptorsAreNotForClients) {
  FewDescriptors few;
  Gateway gateway;
  auto ports = gateway.publish("web", {{.container = kInside}, http_port()});
  Server server(netns, echo);
  Fd tcp = make_socket(), http = make_socket(), held = make_socket(), later = make_socket();
  connect_socket(held, ports[0].host);
  EXPECT_TRUE(eventually([&] { return gateway.traffic("web").held == 1; }));
  few.take_all_but(kLast);
  connect_socket(tcp, ports[0].host);
  EXPECT_EQ(hear(tcp), "<reset>");
  connect_socket(http, ports[1].host);
  say(http, kGet);
  std::string answer = hear(http);
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 503 "));
  EXPECT_THAT(answer, HasSubstr("\r\nRetry-After: 2\r\n"));
  EXPECT_THAT(answer, HasSubstr("too many clients are connected"));
  // One that waits already goes on waiting.
  gateway.open_gate("web", "r1", netns);
  EXPECT_EQ(server.accepted(), 0);
  few.give_back();
  say(held, "ping");
  EXPECT_EQ(hear(held, 4), "ping");
  connect_socket(later, ports[0].host);
  say(later, "ping");
  EXPECT_EQ(hear(later, 4), "ping");
}

TEST_F(GatewayTest, WithoutDescriptorsForPipesNoByteIsLost) {
  FewDescriptors few;
  Gateway gateway;  // has one pipe
  std::uint16_t port = publish(gateway);
  std::promise<void> go;
  std::shared_future<void> gone = go.get_future();
  std::string text = pattern(16 << 20, 9);
  std::atomic<int> whole{0};
  Server server(netns, [&](Fd& client) {
    say(client, "hello");
    gone.wait();
    if (hear(client) == text) ++whole;
  });
  gateway.open_gate("web", "r1", netns);
  std::vector<Fd> clients;
  for (int i = 0; i < 3; ++i) {
    clients.push_back(connect_to(port));
    EXPECT_EQ(hear(clients.back(), 5), "hello");
  }
  few.take_all_but(kLast);
  std::vector<std::thread> senders;
  for (auto& client : clients)
    senders.emplace_back([&] {
      say(client, text);
      end_sending(client);
      hear(client);
    });
  std::this_thread::sleep_for(milliseconds(100));  // the ways are full
  go.set_value();
  for (auto& sender : senders) sender.join();
  EXPECT_EQ(whole, 3);
}

}  // namespace
}  // namespace thaw::gateway
