// Traffic to replicas: published ports listen from deploy on; a connection that comes while no
// replica is ready is held; then a connection is made from inside a ready replica's network
// namespace and the bytes move with splice(2). A replica's gate is closed until open_gate: the
// gateway simply does not connect before. One epoll thread; the public functions are thread-safe.
#pragma once

#include <netinet/in.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "util/fd.h"

namespace thaw {
class Holder;
}

namespace thaw::gateway {

struct Limits {
  // A held client that hangs up is forgotten. One that sent something and then ended its stream
  // stays: it may be a half-close that waits for its answer.
  int held_per_port = 1024;  // connections that wait for a replica; past it they are refused
  std::int64_t held_bytes_per_port = 64 << 20;  // that those have sent meanwhile, together
  std::int64_t held_timeout_us = 120'000'000;   // a connection held longer is refused
  // For which replicas that refuse, and did not before, are tried again. One that has not listened
  // yet, or whose backlog is full, is tried until held_timeout_us.
  std::int64_t connect_timeout_us = 2'000'000;
  // Of connections with a replica that move no byte, and clients of HTTP ports that ask nothing:
  // for good (0: never; a port may have its own), and when one end has ended its stream.
  std::int64_t idle_timeout_us = 0;
  std::int64_t half_closed_us = 600'000'000;
  // For which the other end is given time to take what a failed end had said, and to end its own
  // stream when the replica has ended.
  std::int64_t linger_us = 5'000'000;
  // After which a connection is ended that has had its answer and says no more, when its replica is
  // to leave: on an HTTP port, or when one end has ended its stream.
  std::int64_t quiet_us = 30'000'000;
};

enum class Protocol {
  kTcp,  // anything: a client that cannot be served is reset
  // The client speaks first, and waits for no replica before. One that cannot be served gets a 503
  // that says why.
  kHttp,
};
// What the replica sees as the address of its client.
enum class ClientAddress {
  kGateway,  // 10.77.0.1
  kKeep,     // the client's own
  kProxy,    // 10.77.0.1, and the client's own in a PROXY protocol header (version 2) ahead of all
};

struct PublishedPort {
  std::string address;     // IPv4 or IPv6 as text; empty: 127.0.0.1
  std::uint16_t host = 0;  // 0: any free one
  std::uint16_t container = 0;
  Protocol protocol = Protocol::kTcp;
  ClientAddress client_address = ClientAddress::kGateway;
  std::optional<std::int64_t> idle_timeout_us = {};  // in place of the gateway's
};

// How the connections of a pod are spread.
struct Share {
  int concurrency = 100;  // of one replica, before more of them are called for
  bool hard = false;      // no replica gets more: those beyond are held
};

// What a replica's program offers. While a new version takes over, that differs between replicas of
// one pod, and each is reached as its own version says.
struct Offer {
  std::vector<PublishedPort> ports;
  std::map<std::string, std::uint16_t> routes;  // CallTarget::route -> port of the container
  bool restored = false;                        // it started from a checkpoint
};

struct PodTraffic {
  std::int64_t held = 0;    // waiting for a replica, or for the next attempt to reach one
  std::int64_t active = 0;  // with a replica: being connected, or spliced
  std::int64_t total =
      0;  // accepted since the pod was published, without those refused at the bound
};

// How many replicas the connections of a pod call for.
struct Need {
  int now = 0;   // those in use, divided by the pod's concurrency: not those that are at rest
  int held = 0;  // the same, of those held only
  int peak = 0;  // the most of all since the last question, `now` included
  std::int64_t idle_since_us = 0;  // monotonic: the end, or the last byte, of the last connection
                                   // (0: there was none)
};

// Connections that another process has, of an earlier daemon.
struct Elsewhere {
  std::map<std::string, std::int64_t> held;  // by pod
  std::map<std::string, std::pair<std::string, std::int64_t>>
      active;              // by replica: its pod, and how many
  std::int64_t total = 0;  // with those that are being told why they are not served
};

// Why a client is not served.
enum class Refusal {
  kNotPublished,  // there is no such pod, or not any more
  kTooMany,       // as many are held as may be
  kTooManyBytes,  // those held have sent as much as they may
  kTooLong,       // it was held for as long as it may be
  kNoRoom,        // the same, while each replica had as many as it takes
  kExhausted,     // the daemon has no descriptors left for clients
  kUnreachable,   // no ready replica accepts the connection
  kFailed,        // a failure of ours
};
// One line for the client, without an end of line.
std::string refusal_text(Refusal why, const std::string& pod);
int retry_after_s(Refusal why);

// A connection to a pod that is made for another part of the daemon, which speaks on it itself:
// held, balanced, counted as in flight and drained like a client's own.
struct CallTarget {
  std::string pod;
  std::string route;                    // whose port it is, where replicas differ
  std::uint16_t port = 0;               // of the container
  sockaddr_storage client{}, server{};  // of the connection it came by; AF_UNSPEC: none
  std::int64_t bytes = 0;               // held in memory meanwhile
  // Monotonic: when a byte moved last, of what the request has become a stream of bytes; 0 before.
  std::shared_ptr<const std::atomic<std::int64_t>> moved_us = {};
};
struct Reached {
  Fd socket;  // connected, non-blocking
  std::string replica;
  bool held = false;      // no replica was ready when it came
  bool restored = false;  // the replica started from a checkpoint
};
struct Refused {
  Refusal why;
  std::string text;  // refusal_text, and what is known of the pod's trouble
};
using CallAnswer = std::variant<Reached, Refused>;
// Both are called on the gateway's thread and must not wait for anything.
struct CallEvents {
  std::function<void(CallAnswer)> answered;  // once, unless the call was ended before
  std::function<void()> dropped;             // the replica goes: the connection must end now
};

class Gateway {
 public:
  // Called from the gateway's thread when connections of a pod call for more replicas than are
  // ready, once for each rise. Must not block, and must not call the gateway.
  using OnNeed = std::function<void(const std::string& pod)>;
  // `holder` keeps the listening sockets for the next daemon; it outlives the gateway.
  explicit Gateway(Limits limits = {}, OnNeed on_need = {}, Holder* holder = nullptr);
  ~Gateway();  // closes listeners and connections

  // Listens on the ports of a pod; returns the numbers chosen. Ports that the pod publishes already
  // stay as they are (with their connections), ports that are gone are closed. kConflict with the
  // port and who has it when one cannot be bound; then nothing changed.
  std::vector<PublishedPort> publish(const std::string& pod,
                                     const std::vector<PublishedPort>& ports, Share share = {});
  // Why the pod has no replica just now, for clients that wait in vain; "" when nothing is wrong.
  void set_trouble(const std::string& pod, const std::string& why);
  // Stops listening; held connections are refused, spliced ones live on.
  void unpublish(const std::string& pod);

  // From now on connections go to this replica (the one with the fewest in flight). Held ones are
  // connected at once. `netns` is duplicated. Opening an open gate is an Error (kInternal). Without
  // an offer it is reached on the ports that its pod publishes.
  void open_gate(const std::string& pod, const std::string& replica, const Fd& netns,
                 std::optional<Offer> offer = {});
  bool gate_is_open(const std::string& replica) const;
  // No new connections; those in flight go on. No error when it was not open.
  void close_gate(const std::string& pod, const std::string& replica);
  // Readable as soon as no connection of this replica is in flight.
  Fd drained(const std::string& replica);
  // Resets what is left of this replica's connections.
  void drop(const std::string& replica);
  // Ends those of its connections that are at rest: no byte has moved on them for so long, and the
  // last was the replica's, or there was none.
  void end_quiet(const std::string& replica, std::int64_t quiet_us);

  // Connections of replicas to other pods come to this listener (network/links.h). `find` says
  // which pod is meant by an address, if the replica of the other address may reach it; called from
  // a thread of its own, since it may have to read the database.
  using FindLink = std::function<std::optional<std::string>(const std::string& replica_address,
                                                            const std::string& link_address)>;
  void listen_for_links(const std::string& address, std::uint16_t port, FindLink find);

  // Returns the call's number at once. After the answer it counts as in flight until end_call,
  // which must follow once (it does not wait); without an answer yet, end_call calls it off.
  std::uint64_t call(CallTarget target, CallEvents events);
  void end_call(std::uint64_t number);

  PodTraffic traffic(const std::string& pod) const;
  // Begins a new peak. Connections at rest for `quiet_us` are no need.
  Need need(const std::string& pod, std::int64_t quiet_us);
  std::int64_t in_flight(const std::string& replica) const;

  // Another daemon accepts from now on: the listening sockets are closed here and stay with the
  // holder. The connections that there are go on, held ones, too. `changed` is signalled whenever
  // one came, moved on or went.
  void hand_over(const Fd& changed);
  Elsewhere connections() const;  // those of this process, once nothing is set below
  // What another process has: counted as in flight and as held, like this one's own.
  void set_elsewhere(int source, Elsewhere connections);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace thaw::gateway
