// Needs root. Every test runs in a network namespace of its own that stands for the host, with a
// second one behind it that stands for the outside.
#include "network/network.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <netinet/icmp6.h>
#include <netinet/in.h>
#include <netinet/ip_icmp.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "network/address_pool.h"
#include "network/layout.h"
#include "network/rtnetlink.h"
#include "network/sock_diag.h"
#include "util/clock.h"
#include "util/error.h"
#include "util/file.h"
#include "util/log.h"
#include "util/process.h"

namespace thaw::network {
namespace {

constexpr const char* kHostSide = "198.51.100.1";  // the host's address towards the outside
constexpr const char* kHostSide6 = "2001:db8:1::1";
constexpr const char* kWorld = "198.51.100.2";
constexpr const char* kWorld6 = "2001:db8:1::2";

// --- sockets ---

struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t size = 0;
  sockaddr* get() { return reinterpret_cast<sockaddr*>(&storage); }
};

SocketAddress socket_address(const std::string& text, int port) {
  SocketAddress result;
  if (text.find(':') == std::string::npos) {
    auto* in = reinterpret_cast<sockaddr_in*>(&result.storage);
    in->sin_family = AF_INET;
    in->sin_port = htons(static_cast<std::uint16_t>(port));
    check(::inet_pton(AF_INET, text.c_str(), &in->sin_addr) - 1, "read", text);
    result.size = sizeof *in;
  } else {
    auto* in = reinterpret_cast<sockaddr_in6*>(&result.storage);
    in->sin6_family = AF_INET6;
    in->sin6_port = htons(static_cast<std::uint16_t>(port));
    check(::inet_pton(AF_INET6, text.c_str(), &in->sin6_addr) - 1, "read", text);
    result.size = sizeof *in;
  }
  return result;
}

std::string text_of(const SocketAddress& address) {
  char text[INET6_ADDRSTRLEN] = "";
  if (address.storage.ss_family == AF_INET) {
    ::inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in*>(&address.storage)->sin_addr, text,
                sizeof text);
  } else {
    ::inet_ntop(AF_INET6, &reinterpret_cast<const sockaddr_in6*>(&address.storage)->sin6_addr, text,
                sizeof text);
  }
  return text;
}

int port_of(const Fd& fd) {
  SocketAddress address;
  address.size = sizeof address.storage;
  check(::getsockname(fd.get(), address.get(), &address.size), "getsockname");
  return ntohs(address.storage.ss_family == AF_INET
                   ? reinterpret_cast<sockaddr_in*>(&address.storage)->sin_port
                   : reinterpret_cast<sockaddr_in6*>(&address.storage)->sin6_port);
}

std::string name_of(const Fd& fd, bool peer) {
  SocketAddress address;
  address.size = sizeof address.storage;
  check(peer ? ::getpeername(fd.get(), address.get(), &address.size)
             : ::getsockname(fd.get(), address.get(), &address.size),
        "getsockname");
  return text_of(address);
}

// Every socket here is non-blocking: a packet that is lost must fail a test, never hang it.
Fd open_socket(const std::string& address, int type, int port = 0, int protocol = 0) {
  SocketAddress local = socket_address(address, port);
  Fd fd(check(::socket(local.storage.ss_family, type | SOCK_CLOEXEC | SOCK_NONBLOCK, protocol),
              "socket", address));
  int on = 1;
  check(::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on), "setsockopt", address);
  check(::bind(fd.get(), local.get(), local.size), "bind", address);
  return fd;
}

Fd listen_on(const std::string& address, int port = 0) {
  Fd fd = open_socket(address, SOCK_STREAM, port);
  check(::listen(fd.get(), 64), "listen", address);
  return fd;
}

const char* any(const std::string& address) {
  return address.find(':') == std::string::npos ? "0.0.0.0" : "::";
}

Fd start_connect(const std::string& address, int port, int type = SOCK_STREAM,
                 const std::string& from = "") {
  Fd fd = open_socket(from.empty() ? any(address) : from, type);
  SocketAddress remote = socket_address(address, port);
  if (::connect(fd.get(), remote.get(), remote.size) < 0 && errno != EINPROGRESS)
    throw_errno("connect", address);
  return fd;
}

bool ready(const Fd& fd, short events, int timeout_ms = 5000) {
  pollfd entry{fd.get(), events, 0};
  return check(::poll(&entry, 1, timeout_ms), "poll") == 1;
}

int error_of(const Fd& fd) {
  int error = 0;
  socklen_t size = sizeof error;
  check(::getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &size), "getsockopt");
  return error;
}

Fd accept_one(const Fd& listener) {
  if (!ready(listener, POLLIN)) throw Error(Code::kTimeout, "accept", "", "no connection came");
  return Fd(
      check(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK), "accept"));
}

struct Pair {
  Fd client, server;
};

Pair connect_pair(const Fd& listener, const std::string& address, const std::string& from = "") {
  Pair pair;
  pair.client = start_connect(address, port_of(listener), SOCK_STREAM, from);
  pair.server = accept_one(listener);
  if (!ready(pair.client, POLLOUT)) throw Error(Code::kTimeout, "connect", address, "no answer");
  if (int error = error_of(pair.client)) throw_errno("connect", address, error);
  return pair;
}

// Bytes one way, in and out at the same time; true when all came and none was wrong.
bool stream(const Fd& from, const Fd& to, std::size_t size) {
  std::string sent(size, '\0'), got;
  for (std::size_t i = 0; i < size; ++i) sent[i] = static_cast<char>(i * 31 + i / 251);
  std::size_t done = 0;
  std::vector<char> buffer(65536);
  while (got.size() < size) {
    if (done < size) {
      ssize_t n = ::send(from.get(), sent.data() + done, size - done, MSG_NOSIGNAL);
      if (n < 0 && errno != EAGAIN) return false;
      if (n > 0) done += static_cast<std::size_t>(n);
    }
    if (!ready(to, POLLIN)) return false;
    ssize_t n = ::recv(to.get(), buffer.data(), buffer.size(), 0);
    if (n <= 0) return false;
    got.append(buffer.data(), static_cast<std::size_t>(n));
  }
  return got == sent;
}

bool talks(const Pair& pair, std::size_t size = 100) {
  return stream(pair.client, pair.server, size) && stream(pair.server, pair.client, size);
}

// So that no TIME_WAIT stays behind, which would use up the ports.
void reset_on_close(const Fd& fd) {
  linger now{1, 0};
  check(::setsockopt(fd.get(), SOL_SOCKET, SO_LINGER, &now, sizeof now), "SO_LINGER");
}

// An ICMP echo through an unprivileged socket. Also the way to know that packets sent before have
// arrived, or never will: they share one queue.
bool ping(const std::string& address) {
  bool four = address.find(':') == std::string::npos;
  Fd fd = open_socket(any(address), SOCK_DGRAM, 0,
                      four ? static_cast<int>(IPPROTO_ICMP) : static_cast<int>(IPPROTO_ICMPV6));
  SocketAddress remote = socket_address(address, 0);
  char packet[16] = {};
  packet[0] = static_cast<char>(four ? ICMP_ECHO : ICMP6_ECHO_REQUEST);
  if (::sendto(fd.get(), packet, sizeof packet, 0, remote.get(), remote.size) < 0) return false;
  return ready(fd, POLLIN, 2000);
}

bool nothing_came(const Fd& fd) { return !ready(fd, POLLIN, 0); }

// --- namespaces ---

constexpr const char* kSelf = "/proc/thread-self/ns/net";

Fd this_netns() { return Fd::open(kSelf, O_RDONLY | O_CLOEXEC); }

std::uint64_t netns_id() {
  return std::hash<std::string>{}(std::filesystem::read_symlink(kSelf).string());
}

Fd new_netns() {
  Fd netns;
  std::thread([&] {
    if (::unshare(CLONE_NEWNET) == 0) netns = this_netns();
  }).join();
  if (!netns) throw Error(Code::kDenied, "create a network namespace", "", "this test needs root");
  return netns;
}

std::vector<std::string> link_names() {
  std::vector<std::string> names;
  for (const Link& link : links(open_route_socket())) names.push_back(link.name);
  return names;
}

bool link_exists(const std::string& name) {
  return find_link(open_route_socket(), name).has_value();
}

// Links that vanish are told by the kernel.
class LinkWatch {
 public:
  LinkWatch() : socket_(open_route_socket()) {
    int group = RTNLGRP_LINK;
    check(::setsockopt(socket_.get(), SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof group),
          "watch links");
  }
  bool wait_gone(const std::string& name) {
    Deadline deadline = Deadline::after_ms(20000);
    char buffer[32768];
    while (link_exists(name)) {
      if (!wait_readable(socket_.get(), deadline)) return false;
      (void)::recv(socket_.get(), buffer, sizeof buffer, MSG_DONTWAIT);
    }
    return true;
  }

 private:
  Fd socket_;
};

std::string nft_tables() { return run({"nft", "list", "tables"}, Deadline::after_ms(10000)).out; }

void set_mtu(const std::string& name, int mtu) {
  Fd fd = open_socket("0.0.0.0", SOCK_DGRAM);
  ifreq request{};
  name.copy(request.ifr_name, IFNAMSIZ - 1);
  request.ifr_mtu = mtu;
  check(::ioctl(fd.get(), SIOCSIFMTU, &request), "set the MTU of", name);
}

std::string mac_of(const std::string& name) {
  Fd fd = open_socket("0.0.0.0", SOCK_DGRAM);
  ifreq request{};
  name.copy(request.ifr_name, IFNAMSIZ - 1);
  check(::ioctl(fd.get(), SIOCGIFHWADDR, &request), "read the MAC of", name);
  std::string text;
  for (int i = 0; i < 6; ++i)
    text += fmt::format("{:02x}", static_cast<unsigned char>(request.ifr_hwaddr.sa_data[i]));
  return text;
}

class NetworkTest : public testing::Test {
 protected:
  void SetUp() override {
    log::set_level(log::Level::kError);
    home_ = this_netns();
    host_ = new_netns();
    check(::setns(host_.get(), CLONE_NEWNET), "enter the test's host");
    Batch batch;
    set_up(batch, "lo", true);
    send(open_route_socket(), batch);
    char pattern[] = "/tmp/thaw-network-test-XXXXXX";
    if (!::mkdtemp(pattern)) throw_errno("mkdtemp", pattern);
    lock_dir_ = pattern;
  }

  void TearDown() override {
    check(::setns(home_.get(), CLONE_NEWNET), "leave the test's host");
    remove_tree(lock_dir_);
  }

  // Another namespace, one veth away from the host. It knows no route to any replica.
  void add_world() {
    world_ = new_netns();
    Batch batch;
    add_veth(batch, "up0", Mac{2, 0, 0, 0, 0, 1}, "world0", Mac{2, 0, 0, 0, 0, 2}, 2, world_.get());
    set_up(batch, "up0", true);
    Fd socket = open_route_socket();
    send(socket, batch);
    add_addresses(find_link(socket, "up0")->index, kHostSide, kHostSide6);
    NetnsScope scope(world_.get());
    Batch inside;
    set_up(inside, "lo", true);
    set_up(inside, "world0", true);
    send(open_route_socket(), inside);
    wait_until_ready(open_route_socket(), "world0");
    wait_until_ready(socket, "up0");
    add_addresses(2, kWorld, kWorld6);
  }

  void add_addresses(int link, const std::string& four, const std::string& six) {
    Batch batch;
    add_address(batch, link, Address::parse(four), 24);
    add_address(batch, link, Address::parse(six), 64);
    Fd socket = open_route_socket();
    send(socket, batch);
    wait_until_local(socket, Address::parse(six));
  }

  Fd listen_in(const Fd& netns, const std::string& address, int port = 0) {
    NetnsScope scope(netns.get());
    return listen_on(address, port);
  }
  Fd socket_in(const Fd& netns, const std::string& address, int type = SOCK_DGRAM, int port = 0) {
    NetnsScope scope(netns.get());
    return open_socket(address, type, port);
  }
  Pair pair_in(const Fd& netns, const Fd& listener, const std::string& address,
               const std::string& from = "") {
    NetnsScope scope(netns.get());
    return connect_pair(listener, address, from);
  }
  bool ping_in(const Fd& netns, const std::string& address) {
    NetnsScope scope(netns.get());
    return ping(address);
  }

  Fd home_, host_, world_;
  std::string lock_dir_;
};

void send_text(const Fd& fd, const std::string& text, const std::string& address, int port) {
  SocketAddress remote = socket_address(address, port);
  check(::sendto(fd.get(), text.data(), text.size(), 0, remote.get(), remote.size), "send to",
        address);
}

struct Datagram {
  std::string text;
  SocketAddress from;
};

Datagram receive(const Fd& fd) {
  if (!ready(fd, POLLIN)) throw Error(Code::kTimeout, "receive", "", "no datagram came");
  Datagram datagram;
  datagram.text.resize(65536);
  datagram.from.size = sizeof datagram.from.storage;
  ssize_t n = check(::recvfrom(fd.get(), datagram.text.data(), datagram.text.size(), 0,
                               datagram.from.get(), &datagram.from.size),
                    "receive");
  datagram.text.resize(static_cast<std::size_t>(n));
  return datagram;
}

// --- names and numbers ---

TEST(Layout, NamesAndAddresses) {
  EXPECT_EQ(Network::interface_name(31, 2000), "thaw31-2000");
  EXPECT_EQ(Network::unique_address(0, 1), "10.78.0.1");
  EXPECT_EQ(Network::unique_address(3, 257), "10.78.25.1");
  EXPECT_EQ(Network::unique_address(31, 2000), "10.78.255.208");
  EXPECT_EQ(Network::unique_address6(31, 2000), "fd00:78:1f::7d0");
  EXPECT_EQ(address_block(31), "10.78.248.0/21");
  auto name = parse_interface_name("thaw12-345");
  ASSERT_TRUE(name);
  EXPECT_EQ(name->instance, 12);
  EXPECT_EQ(name->index, 345);
  for (const char* other : {"thaw", "thaw1", "thaw1-", "thaw1-x", "thaw1-1x", "thaw32-1", "thaw0-0",
                            "thaw0-2001", "eth0", "thaw-1-1"}) {
    EXPECT_FALSE(parse_interface_name(other)) << other;
  }
}

TEST(AddressPool, GoesRoundAndRests) {
  AddressPool pool(3);
  EXPECT_EQ(pool.take(), 1);
  pool.rest(1, 100);
  EXPECT_EQ(pool.take(), 2);
  pool.adopt(3);
  EXPECT_EQ(pool.next_rested_us(), 100);
  EXPECT_FALSE(pool.take_rested(99));
  EXPECT_EQ(pool.take(), 1) << "a resting one is better than none";
  EXPECT_EQ(pool.take(), std::nullopt);
  pool.rest(2, 200);
  pool.rest(2, 300);  // twice is once
  EXPECT_EQ(pool.take_rested(200), 2);
  EXPECT_FALSE(pool.is_free(2));
  pool.free(2);
  EXPECT_TRUE(pool.is_free(2));
  EXPECT_EQ(pool.next_rested_us(), std::nullopt);
}

// --- inside ---

TEST_F(NetworkTest, TheSameInsideEveryReplica) {
  std::uint64_t before = netns_id();
  Network network(lock_dir_);
  std::vector<Endpoint> endpoints;
  for (int i = 0; i < 3; ++i) endpoints.push_back(network.create());
  EXPECT_EQ(netns_id(), before) << "the calling thread was moved";
  std::set<std::string> unique;
  for (const Endpoint& each : endpoints) {
    unique.insert(each.address);
    unique.insert(each.address6);
    EXPECT_EQ(each.interface, Network::interface_name(0, each.index));
    EXPECT_TRUE(link_exists(each.interface));
    NetnsScope scope(each.netns.get());
    EXPECT_NE(netns_id(), before);
    auto eth0 = find_link(open_route_socket(), "eth0");
    ASSERT_TRUE(eth0);
    EXPECT_EQ(eth0->index, 2);
    EXPECT_EQ(link_names(), (std::vector<std::string>{"lo", "eth0"}));
    EXPECT_EQ(mac_of("eth0"), "025448415702");
    std::set<std::string> found;
    for (const Address& address : addresses(open_route_socket())) found.insert(address.text());
    EXPECT_EQ(found, (std::set<std::string>{"127.0.0.1", "::1", kGatewayAddress, kReplicaAddress,
                                            kReplicaAddress6}));
    EXPECT_EQ(trim(read_file("/proc/sys/net/ipv4/ip_forward")), "0");
    EXPECT_TRUE(ping("127.0.0.1"));
    EXPECT_TRUE(ping("::1"));
  }
  EXPECT_EQ(unique.size(), 6u);
  EXPECT_EQ(netns_id(), before);
  EXPECT_EQ(trim(read_file("/proc/sys/net/ipv4/ip_forward")), "1");
  EXPECT_EQ(trim(read_file("/proc/sys/net/ipv6/conf/all/forwarding")), "1");
}

TEST_F(NetworkTest, TheGatewayConnectsFromInside) {
  Network network(lock_dir_);
  Endpoint replica = network.create();
  Fd fixed6 = listen_in(replica.netns, kReplicaAddress6);
  EXPECT_TRUE(talks(pair_in(replica.netns, fixed6, kReplicaAddress6)))
      << "first of all, for its route comes last";
  Fd fixed = listen_in(replica.netns, kReplicaAddress),
     loopback = listen_in(replica.netns, "127.0.0.1");
  Pair pair = pair_in(replica.netns, fixed, kReplicaAddress, kGatewayAddress);
  EXPECT_TRUE(talks(pair));
  EXPECT_EQ(name_of(pair.server, true), kGatewayAddress);
  EXPECT_TRUE(talks(pair_in(replica.netns, loopback, "127.0.0.1")));
}

// --- the gate and the filters ---

TEST_F(NetworkTest, NothingReachesAReplicaFromTheHost) {
  Network network(lock_dir_);
  Endpoint replica = network.create();
  for (bool four : {true, false}) {
    const std::string unique = four ? replica.address : replica.address6;
    Fd listener = listen_in(replica.netns, any(unique));
    Fd datagrams = socket_in(replica.netns, any(unique));
    Fd client = start_connect(unique, port_of(listener));
    Fd sender = open_socket(any(unique), SOCK_DGRAM);
    SocketAddress remote = socket_address(unique, port_of(datagrams));
    EXPECT_LT(::sendto(sender.get(), "x", 1, 0, remote.get(), remote.size), 0);
    EXPECT_EQ(errno, EPERM);
    EXPECT_FALSE(ready(client, POLLOUT, 50));
    EXPECT_TRUE(nothing_came(listener));
    EXPECT_TRUE(nothing_came(datagrams));
    // The echo itself never leaves the host.
    Fd echo = open_socket(any(unique), SOCK_RAW, 0,
                          four ? static_cast<int>(IPPROTO_ICMP) : static_cast<int>(IPPROTO_ICMPV6));
    char packet[16] = {static_cast<char>(four ? ICMP_ECHO : ICMP6_ECHO_REQUEST)};
    EXPECT_LT(::sendto(echo.get(), packet, sizeof packet, 0, socket_address(unique, 0).get(),
                       remote.size),
              0);
    EXPECT_EQ(errno, EPERM);
  }
}

TEST_F(NetworkTest, NothingReachesAReplicaFromOutsideOrFromAnotherReplica) {
  add_world();
  Network network(lock_dir_);
  Network second(lock_dir_);
  Endpoint replica = network.create(), neighbour = network.create(), stranger = second.create();
  Fd listener = listen_in(replica.netns, "0.0.0.0");
  Fd datagrams = socket_in(replica.netns, "0.0.0.0");
  {
    // Someone outside who knows the way.
    NetnsScope scope(world_.get());
    Batch batch;
    add_default_route(batch, 2, Address::parse(kHostSide), Address::parse(kWorld));
    send(open_route_socket(), batch);
  }
  for (const Fd* from : {&world_, &neighbour.netns, &stranger.netns}) {
    NetnsScope scope(from->get());
    Fd client = start_connect(replica.address, port_of(listener));
    Fd sender = open_socket("0.0.0.0", SOCK_DGRAM);
    send_text(sender, "x", replica.address, port_of(datagrams));
    EXPECT_FALSE(ready(client, POLLOUT, 20));
    EXPECT_TRUE(nothing_came(listener));
    EXPECT_TRUE(nothing_came(datagrams));
  }
}

TEST_F(NetworkTest, AReplicaReachesNoServiceOfTheHost) {
  add_world();
  Network network(lock_dir_);
  Endpoint replica = network.create();
  for (const char* address : {kHostSide, kHostSide6}) {
    Fd listener = listen_on(any(address));
    Fd datagrams = open_socket(any(address), SOCK_DGRAM);
    NetnsScope scope(replica.netns.get());
    Fd client = start_connect(address, port_of(listener));
    Fd sender = open_socket(any(address), SOCK_DGRAM);
    send_text(sender, "x", address, port_of(datagrams));
    EXPECT_TRUE(ping(address))
        << "echo is allowed, and says that the packets before it have been judged";
    EXPECT_TRUE(nothing_came(listener));
    EXPECT_TRUE(nothing_came(datagrams));
    EXPECT_FALSE(ready(client, POLLOUT, 0));
  }
}

TEST_F(NetworkTest, AForeignSourceAddressIsDropped) {
  add_world();
  Network network(lock_dir_);
  Endpoint replica = network.create();
  for (bool four : {true, false}) {
    const char* world = four ? kWorld : kWorld6;
    Fd server = socket_in(world_, any(world));
    NetnsScope scope(replica.netns.get());
    const char* forged = four ? "10.77.0.99" : "fd00:77::99";
    Batch batch;
    add_address(batch, kReplicaLink, Address::parse(forged), four ? 32 : 128);
    Fd route = open_route_socket();
    send(route, batch);
    wait_until_local(route, Address::parse(forged));
    send_text(open_socket(forged, SOCK_DGRAM), "forged", world, port_of(server));
    send_text(open_socket(four ? kReplicaAddress : kReplicaAddress6, SOCK_DGRAM), "honest", world,
              port_of(server));
    EXPECT_EQ(receive(server).text, "honest");
  }
}

// --- to the outside ---

TEST_F(NetworkTest, TheOutsideIsReachedAndAnswers) {
  add_world();
  Network network(lock_dir_);
  Endpoint one = network.create(), two = network.create();
  for (bool four : {true, false}) {
    const char* world = four ? kWorld : kWorld6;
    const char* host = four ? kHostSide : kHostSide6;
    const char* fixed = four ? kReplicaAddress : kReplicaAddress6;
    Fd listener = listen_in(world_, any(world));
    Fd datagrams = socket_in(world_, any(world));
    std::vector<Pair> pairs;
    for (const Endpoint* each : {&one, &two}) {
      EXPECT_TRUE(ping_in(each->netns, world));
      pairs.push_back(pair_in(each->netns, listener, world));
      EXPECT_EQ(name_of(pairs.back().client, false), fixed);
      EXPECT_EQ(name_of(pairs.back().server, true), host) << "masqueraded";
      Fd sender = socket_in(each->netns, any(world));
      send_text(sender, "ask", world, port_of(datagrams));
      Datagram asked = receive(datagrams);
      EXPECT_EQ(asked.text, "ask");
      EXPECT_EQ(text_of(asked.from), host);
      check(::sendto(datagrams.get(), "answer", 6, 0, asked.from.get(), asked.from.size), "answer");
      Datagram answer = receive(sender);
      EXPECT_EQ(answer.text, "answer");
      EXPECT_EQ(text_of(answer.from), world);
    }
    for (const Pair& pair : pairs) EXPECT_TRUE(talks(pair, 2'000'000)) << fixed;
  }
}

// One with the same source port in two replicas: they must not be taken for one another.
TEST_F(NetworkTest, ReplicasWithTheSamePortsAreKeptApart) {
  add_world();
  Network network(lock_dir_);
  Endpoint one = network.create(), two = network.create();
  Fd datagrams = socket_in(world_, "0.0.0.0");
  Fd first = socket_in(one.netns, "0.0.0.0", SOCK_DGRAM, 40000),
     second = socket_in(two.netns, "0.0.0.0", SOCK_DGRAM, 40000);
  send_text(first, "1", kWorld, port_of(datagrams));
  send_text(second, "2", kWorld, port_of(datagrams));
  for (int i = 0; i < 2; ++i) {
    Datagram asked = receive(datagrams);
    check(::sendto(datagrams.get(), asked.text.data(), 1, 0, asked.from.get(), asked.from.size),
          "answer");
  }
  EXPECT_EQ(receive(first).text, "1");
  EXPECT_EQ(receive(second).text, "2");
}

TEST_F(NetworkTest, LargeDatagramsPassInFragments) {
  add_world();
  Network network(lock_dir_);
  Endpoint replica = network.create();
  for (const char* world : {kWorld, kWorld6}) {
    Fd datagrams = socket_in(world_, any(world));
    Fd sender = socket_in(replica.netns, any(world));
    std::string large(6000, 'a');
    send_text(sender, large, world, port_of(datagrams));
    Datagram asked = receive(datagrams);
    EXPECT_EQ(asked.text, large);
    large.assign(7000, 'b');
    check(
        ::sendto(datagrams.get(), large.data(), large.size(), 0, asked.from.get(), asked.from.size),
        "answer");
    EXPECT_EQ(receive(sender).text, large);
  }
}

TEST_F(NetworkTest, ErrorsFromOutsideFindTheirSocket) {
  add_world();
  Network network(lock_dir_);
  Endpoint replica = network.create();
  for (const char* world : {kWorld, kWorld6}) {
    Fd closed = socket_in(world_, any(world));
    int port = port_of(closed);
    closed.reset();
    NetnsScope scope(replica.netns.get());
    Fd sender = start_connect(world, port, SOCK_DGRAM);
    check(::send(sender.get(), "x", 1, 0), "send", world);
    ASSERT_TRUE(ready(sender, POLLERR)) << "an ICMP port unreachable from " << world;
    EXPECT_EQ(error_of(sender), ECONNREFUSED);
  }
  // And from the host itself, which knows no way there.
  NetnsScope scope(replica.netns.get());
  int on = 1;
  for (const char* nowhere : {"203.0.113.5", "2001:db8:99::1"}) {
    bool four = nowhere == std::string("203.0.113.5");
    Fd sender = start_connect(nowhere, 80, SOCK_DGRAM);
    check(::setsockopt(sender.get(), four ? IPPROTO_IP : IPPROTO_IPV6,
                       four ? IP_RECVERR : IPV6_RECVERR, &on, sizeof on),
          "RECVERR");
    check(::send(sender.get(), "x", 1, 0), "send", nowhere);
    ASSERT_TRUE(ready(sender, POLLERR)) << nowhere;
    EXPECT_EQ(error_of(sender), ENETUNREACH);
  }
}

TEST_F(NetworkTest, SegmentsFitTheUplink) {
  add_world();
  set_mtu("up0", 1400);
  Network network(lock_dir_);
  Endpoint replica = network.create();
  for (bool four : {true, false}) {
    const char* world = four ? kWorld : kWorld6;
    Fd listener = listen_in(world_, any(world));
    Pair pair = pair_in(replica.netns, listener, world);
    for (const Fd* end : {&pair.client, &pair.server}) {
      tcp_info info{};
      socklen_t size = sizeof info;
      check(::getsockopt(end->get(), IPPROTO_TCP, TCP_INFO, &info, &size), "TCP_INFO");
      EXPECT_LE(info.tcpi_snd_mss, 1400u - (four ? 40 : 60));
    }
    EXPECT_TRUE(talks(pair, 500'000));
  }
  // What is not TCP learns the size from the error that quotes its packet.
  NetnsScope scope(replica.netns.get());
  Fd sender = start_connect(kWorld, 9, SOCK_DGRAM);
  int discover = IP_PMTUDISC_DO, mtu = 0;
  socklen_t size = sizeof mtu;
  check(::setsockopt(sender.get(), IPPROTO_IP, IP_MTU_DISCOVER, &discover, sizeof discover),
        "IP_MTU_DISCOVER");
  const std::string large(1450, 'x');
  check(::send(sender.get(), large.data(), large.size(), 0), "send");
  ASSERT_TRUE(ready(sender, POLLERR));
  EXPECT_EQ(error_of(sender), EMSGSIZE);
  check(::getsockopt(sender.get(), IPPROTO_IP, IP_MTU, &mtu, &size), "IP_MTU");
  EXPECT_EQ(mtu, 1400);
}

TEST_F(NetworkTest, NothingPassesAClosedLink) {
  add_world();
  Network network(lock_dir_);
  Endpoint replica = network.create();
  Fd listener = listen_in(world_, "0.0.0.0"), listener6 = listen_in(world_, "::");
  Fd route = open_route_socket();
  NetnsScope scope(replica.netns.get());
  for (int round = 0; round < 2; ++round) {
    Pair before = connect_pair(listener, kWorld);
    set_link_open(route, replica.interface, false);
    for (const Fd* end : {&before.client, &before.server}) {
      check(::send(end->get(), "x", 1, 0), "send");
      EXPECT_FALSE(ready(end == &before.client ? before.server : before.client, POLLIN, 20));
    }
    EXPECT_FALSE(ready(start_connect(kWorld, port_of(listener)), POLLOUT, 20));
    set_link_open(route, replica.interface, true);
    EXPECT_TRUE(talks(connect_pair(listener, kWorld)));
    EXPECT_TRUE(talks(connect_pair(listener6, kWorld6)));
  }
  try {
    set_link_open(route, "thaw0-1999", true);
    FAIL() << "no such link";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("thaw0-1999"), std::string::npos);
  }
}

// --- connections that a restore leaves behind ---

TEST_F(NetworkTest, OutsideSocketsDieAndInnerOnesLive) {
  add_world();
  Network network(lock_dir_);
  Endpoint replica = network.create();
  Fd world_listener = listen_in(world_, "0.0.0.0"),
     world_listener6 = listen_in(world_, "2001:db8:1::2");
  Fd world_udp = socket_in(world_, "0.0.0.0");
  NetnsScope scope(replica.netns.get());

  Fd inner4 = listen_on("0.0.0.0"), inner6 = listen_on("fd00:77::2"), dual = listen_on("::");
  std::vector<Pair> inner;
  inner.push_back(connect_pair(inner4, "127.0.0.1"));
  inner.push_back(connect_pair(inner4, "127.0.0.77"));
  inner.push_back(connect_pair(inner4, kReplicaAddress));
  inner.push_back(connect_pair(inner4, kReplicaAddress, kGatewayAddress));
  inner.push_back(connect_pair(inner6, kReplicaAddress6));
  inner.push_back(connect_pair(dual, "::1"));
  inner.push_back(connect_pair(dual, kReplicaAddress));  // the server's end has the mapped address
  inner.push_back(
      connect_pair(inner4, std::string("::ffff:") + kReplicaAddress));  // the client's end has
  Fd inner_udp = open_socket(kReplicaAddress, SOCK_DGRAM);
  Fd inner_udp_client = start_connect(kReplicaAddress, port_of(inner_udp), SOCK_DGRAM);

  std::vector<Pair> outer;
  outer.push_back(connect_pair(world_listener, kWorld));
  outer.push_back(connect_pair(world_listener6, kWorld6));
  outer.push_back(connect_pair(world_listener, std::string("::ffff:") + kWorld));
  EXPECT_EQ(count_outside_connections({}), 3);
  EXPECT_EQ(count_outside_connections({static_cast<std::uint16_t>(port_of(outer[0].client))}), 1);
  EXPECT_EQ(count_outside_connections({1}), 0);
  // Closed by the other side, and not yet by us.
  outer.push_back(connect_pair(world_listener, kWorld));
  outer.back().server.reset();
  ASSERT_TRUE(ready(outer.back().client, POLLRDHUP));
  // Closed by us: what is left belongs to the kernel.
  Pair over = connect_pair(world_listener, kWorld);
  over.client.reset();
  ASSERT_TRUE(ready(over.server, POLLIN));
  over.server.reset();
  // Still being made: nobody answers for this address.
  Fd unanswered = start_connect("198.51.100.77", 80);
  Fd outer_udp = start_connect(kWorld, port_of(world_udp), SOCK_DGRAM);
  Fd outer_udp6 = start_connect(kWorld6, 9, SOCK_DGRAM);
  // The gateway's, after a restore: its other end is in no process any more. TCP_REPAIR closes
  // without a word.
  Pair orphan = connect_pair(inner4, kReplicaAddress, kGatewayAddress);
  int on = 1;
  check(::setsockopt(orphan.client.get(), IPPROTO_TCP, TCP_REPAIR, &on, sizeof on), "TCP_REPAIR");
  orphan.client.reset();
  EXPECT_EQ(count_outside_connections({static_cast<std::uint16_t>(port_of(inner4))}), 1);

  int closing = 0;  // the end that was closed by us may have left the kernel's list already
  Fd diag = open_netlink(NETLINK_SOCK_DIAG);
  for (auto& socket : connected_sockets(diag, IPPROTO_TCP, ~0u))
    closing += socket.state == TCP_TIME_WAIT ? 1 : 0;
  EXPECT_EQ(destroy_outside_sockets(), 4 + closing + 1 + 2 + 1);

  for (const Pair& pair : outer) {
    EXPECT_TRUE(ready(pair.client, POLLERR, 0)) << "it must know at once";
    EXPECT_EQ(error_of(pair.client), ECONNABORTED);
  }
  EXPECT_EQ(error_of(unanswered), ECONNABORTED);
  EXPECT_EQ(error_of(outer_udp), ECONNABORTED);
  EXPECT_EQ(error_of(outer_udp6), ECONNABORTED);
  EXPECT_EQ(error_of(orphan.server), ECONNABORTED);
  for (std::size_t i = 0; i < inner.size(); ++i)
    EXPECT_TRUE(talks(inner[i], 100'000)) << "pair " << i;
  check(::send(inner_udp_client.get(), "x", 1, 0), "send");
  EXPECT_EQ(receive(inner_udp).text, "x");
  EXPECT_TRUE(talks(connect_pair(inner4, kReplicaAddress))) << "the listener lives";
  EXPECT_TRUE(talks(connect_pair(world_listener, kWorld)))
      << "and new connections to the outside work";
  EXPECT_EQ(count_outside_connections({}), 0);
  EXPECT_EQ(destroy_outside_sockets(), 0);
}

// Connections come and go while the list is read: none of them may be taken for one with its other
// end missing.
TEST_F(NetworkTest, InnerConnectionsMadeMeanwhileLive) {
  Network network(lock_dir_);
  Endpoint replica = network.create();
  std::atomic<bool> stop{false};
  std::atomic<int> made{0}, broken{0};
  std::thread busy([&] {
    NetnsScope scope(replica.netns.get());
    Fd listener = listen_on(kReplicaAddress);
    while (!stop) {
      try {
        Pair pair = connect_pair(listener, kReplicaAddress);
        if (!talks(pair)) ++broken;
        reset_on_close(pair.client);
      } catch (const Error&) {
        ++broken;
      }
      ++made;
    }
  });
  {
    NetnsScope scope(replica.netns.get());
    // What it destroys is not counted: an end whose other end has just been closed may be among it.
    while (made < 100 && !broken) (void)destroy_outside_sockets();
  }
  stop = true;
  busy.join();
  EXPECT_EQ(broken, 0);
}

// --- the host's side ---

TEST_F(NetworkTest, AReleasedReplicaLeavesNothing) {
  Network network(lock_dir_);
  Endpoint replica = network.create();
  LinkWatch watch;
  network.release(replica.index);
  replica.netns.reset();
  EXPECT_TRUE(watch.wait_gone(replica.interface));
  EXPECT_NE(network.create().index, replica.index) << "an index rests after its release";
}

TEST_F(NetworkTest, ALinkThatOutlivesItsReplicaIsDeleted) {
  Network network(lock_dir_, -1, {}, 1000);
  log::set_level(log::Level::kOff);
  Endpoint replica = network.create();
  LinkWatch watch;
  network.release(replica.index);
  EXPECT_TRUE(watch.wait_gone(replica.interface)) << "though its namespace is still held";
}

TEST_F(NetworkTest, AnOldLinkOfTheSameNameIsReplaced) {
  Fd other = new_netns();
  Batch batch;
  add_veth(batch, "thaw0-1", kHostMac, "eth0", kReplicaMac, 2, other.get());
  Fd route = open_route_socket();
  send(route, batch);
  int before = find_link(route, "thaw0-1")->index;
  Network network(lock_dir_, 0);
  Endpoint replica = network.create();
  EXPECT_EQ(replica.interface, "thaw0-1");
  EXPECT_NE(find_link(route, "thaw0-1")->index, before);
}

TEST_F(NetworkTest, StrayLinksAreRemoved) {
  Network network(lock_dir_, 0), other(lock_dir_);
  Endpoint living = network.create(), adopted = network.create(), elsewhere = other.create();
  Fd nowhere = new_netns();
  Fd route = open_route_socket();
  for (int i = 1; i <= 3; ++i) {
    Batch batch;
    add_veth(batch, Network::interface_name(0, 1990 + i), kHostMac, fmt::format("x{}", i),
             kReplicaMac, 100 + i, nowhere.get());
    send(route, batch);
  }
  network.adopt(1993);
  EXPECT_EQ(network.remove_stray_interfaces(), 2);
  EXPECT_EQ(network.remove_stray_interfaces(), 0);
  for (auto& name :
       {living.interface, adopted.interface, elsewhere.interface, std::string("thaw0-1993")}) {
    EXPECT_TRUE(link_exists(name)) << name;
  }
  EXPECT_FALSE(link_exists("thaw0-1991"));
  EXPECT_THROW(network.adopt(0), Error);
  EXPECT_THROW(network.release(2001), Error);
}

TEST_F(NetworkTest, EachDaemonHasItsInstance) {
  auto first = std::make_unique<Network>(lock_dir_);
  Network second(lock_dir_);
  EXPECT_EQ(first->instance(), 0);
  EXPECT_EQ(second.instance(), 1);
  Endpoint a = first->create(), b = second.create();
  EXPECT_EQ(b.address, "10.78.8.1");
  try {
    Network third(lock_dir_, 0);
    FAIL() << "instance 0 is taken";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::kConflict);
  }
  EXPECT_THROW(Network(lock_dir_, 32), Error);
  first.reset();
  Network third(lock_dir_);
  EXPECT_EQ(third.instance(), 2) << "replicas of instance 0 live on; it is kept for their daemon";
  auto again = std::make_unique<Network>(lock_dir_, 0);
  EXPECT_EQ(again->instance(), 0);

  Fd kept = again->lock().duplicate();
  again.reset();
  EXPECT_THROW(Network(lock_dir_, 0), Error) << "somebody keeps it for the next daemon";
  EXPECT_EQ(Network(lock_dir_, -1, std::move(kept)).instance(), 0);
  EXPECT_EQ(Network(lock_dir_, 0, Fd::open("/dev/null", O_RDONLY)).instance(), 0);
}

TEST_F(NetworkTest, ConnectionsSurviveADaemonsRestart) {
  add_world();
  auto network = std::make_unique<Network>(lock_dir_);
  Endpoint replica = network->create();
  Fd listener = listen_in(world_, "0.0.0.0");
  Pair pair = pair_in(replica.netns, listener, kWorld);
  network.reset();
  EXPECT_TRUE(talks(pair)) << "without a daemon";
  network = std::make_unique<Network>(lock_dir_, 0);
  network->adopt(replica.index);
  EXPECT_EQ(network->remove_stray_interfaces(), 0);
  EXPECT_TRUE(talks(pair));
  EXPECT_TRUE(talks(pair_in(replica.netns, listener, kWorld)));
  EXPECT_NE(network->create().index, replica.index);
}

TEST_F(NetworkTest, ATableOfAnotherShapeIsReplaced) {
  RunResult made =
      run({"nft", "add table inet thaw0; add map inet thaw0 unique4 { type inet_service : mark; }"},
          Deadline::after_ms(10000));
  ASSERT_TRUE(made.ok()) << made.why();
  add_world();
  Network network(lock_dir_, 0);
  Endpoint replica = network.create();
  Fd listener = listen_in(world_, "0.0.0.0");
  EXPECT_TRUE(talks(pair_in(replica.netns, listener, kWorld)));
}

TEST_F(NetworkTest, DestroyLeavesNothing) {
  auto names = link_names();
  auto tables = nft_tables();
  Network network(lock_dir_);
  std::vector<Endpoint> endpoints;
  for (int i = 0; i < 20; ++i) endpoints.push_back(network.create());
  EXPECT_EQ(link_names().size(), names.size() + 20);
  EXPECT_NE(nft_tables(), tables);
  network.destroy();
  EXPECT_EQ(link_names(), names);
  EXPECT_EQ(nft_tables(), tables);
}

TEST_F(NetworkTest, ThreadsCreateAtTheSameTime) {
  Network network(lock_dir_);
  std::mutex mutex;
  std::set<int> indexes;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 10; ++i) {
        Endpoint endpoint = network.create();
        std::lock_guard hold(mutex);
        EXPECT_TRUE(indexes.insert(endpoint.index).second);
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(indexes.size(), 40u);
}

TEST_F(NetworkTest, AHostWithIpv6SwitchedOffStillServes) {
  add_world();
  write_file("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
  Network network(lock_dir_);
  Endpoint replica = network.create();
  Fd listener = listen_in(world_, "0.0.0.0");
  EXPECT_TRUE(talks(pair_in(replica.netns, listener, kWorld)));
  Fd inner = listen_in(replica.netns, kReplicaAddress6);
  EXPECT_TRUE(talks(pair_in(replica.netns, inner, kReplicaAddress6)));
}

}  // namespace
}  // namespace thaw::network
