// The shared HTTP(S) port: requests go to pods by host name or path. Requests are held, balanced
// and drained as connections of published ports are: each asks the gateway for a connection of its
// own. HTTP/1.1, one thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "front/routes.h"
#include "gateway/gateway.h"

namespace thaw::front {

struct Options {
  std::string address;  // ADDRESS:PORT; port 0: any free one
  // Files in PEM form; both or none. The certificate's own comes first in its chain.
  std::string tls_cert, tls_key;
  int connections = 20'000;               // of clients; more are refused
  std::int64_t header_us = 30'000'000;    // for a request's header, and a TLS handshake
  std::int64_t idle_us = 75'000'000;      // between requests
  std::int64_t stall_us = 3'600'000'000;  // in which no byte of a request or answer moves
};

class Front {
 public:
  // Listens; clients wait until start. `holder`, if any, keeps the socket for the next daemon.
  // Error kInvalid for an address, certificate or key that cannot be used, kConflict when the port
  // is taken. The gateway must outlive it.
  Front(gateway::Gateway& gateway, Options options, Holder* holder = nullptr);
  ~Front();  // ends every connection

  void start();  // accepts, from now on

  // Another daemon accepts from now on. Clients that are connected get one answer more each, then
  // their connections end; `changed` is signalled whenever one has.
  void hand_over(const Fd& changed);
  std::int64_t clients() const;  // that are connected

  std::uint16_t port() const;
  Routes& routes();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace thaw::front
