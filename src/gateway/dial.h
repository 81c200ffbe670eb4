// Connections to a program in a replica, made from inside the replica's network namespace: a socket
// keeps the namespace it was created in, so only the socket(2) call needs to be in there.
#pragma once

#include <netinet/in.h>

#include <cstdint>
#include <string>
#include <vector>

#include "gateway/listener.h"
#include "util/fd.h"

namespace thaw::gateway {

// Where a program may listen: the replica's fixed address, then loopback for those that bind only
// that.
inline constexpr int kReplicaAddresses = 2;

// A replica's network namespace. Where connections come quickly, some sockets are made ahead: each
// visit costs as much as two of them.
struct Namespace {
  Fd fd;
  std::vector<Fd> sockets = {};
  std::int64_t visited_us = 0;
};

class Dialer {
 public:
  // Of the thread that will call connect(): its own namespace is where it returns to. From the
  // reserve it takes nothing (EMFILE).
  explicit Dialer(DescriptorReserve& reserve);

  struct Attempt {
    Fd socket;      // empty when it failed
    int error = 0;  // errno; EINPROGRESS while it goes on
    bool connected() const { return error == 0; }
    bool pending() const;
  };
  // Non-blocking, with TCP_NODELAY. `address` counts from 0 to kReplicaAddresses - 1.
  Attempt connect(Namespace& replica, int address, std::uint16_t port);
  // The same with a client's own address as the source. The namespace must admit those
  // (network/foreign_sources.h). An IPv6 client is connected to the replica's IPv6 address, then,
  // for programs that have none, to loopback from the gateway's.
  Attempt connect_as(Namespace& replica, const sockaddr_storage& client, int address,
                     std::uint16_t port);
  // Loopback and link-local addresses mean something else inside.
  static bool can_keep(const sockaddr_storage& client);
  // How a pending attempt stands now: 0 connected, EINPROGRESS, or why it failed.
  static int result(const Fd& socket);

  // Checks that it is a network namespace, and lets the gateway's source address be used for more
  // than 28,000 connections a minute (tcp_tw_reuse, in that namespace only). kInvalid when it is
  // none.
  void prepare(const Fd& netns, const std::string& replica);

 private:
  template <typename Work>
  auto inside(const Fd& netns, const Work& work);
  Fd take_socket(Namespace& replica);
  DescriptorReserve& reserve_;
  Fd home_;
};

}  // namespace thaw::gateway
