// The HTTP server: listens on unix and loopback TCP sockets, one thread a connection.
#pragma once

#include <memory>
#include <vector>

#include "api/address.h"
#include "api/backend.h"
#include "api/tls.h"

namespace thaw::api {

struct ServerOptions {
  std::vector<Address> listen;
  int max_connections = 256;      // at each address, so that none shuts out another; more get 503
  std::optional<TlsContext> tls;  // for tls: addresses, whose clients must show a token
  Holder* holder = nullptr;       // keeps the listening sockets for the next daemon
};

class Server {
 public:
  // Binds and listens, so that a taken address is an error here; connections wait until start().
  // `backend` outlives the server.
  Server(Backend& backend, ServerOptions options);
  // As stop().
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  void start();
  // Accepts nothing more, ends idle connections and streams; requests under way are answered.
  // Removes unix socket files.
  void close();
  // Another daemon accepts: the listening sockets stay with the holder. What is connected goes on
  // until stop().
  void hand_over();
  // close(), then waits for the requests under way.
  void stop();
  // For connections that come from now on.
  void use_certificate(TlsContext tls);
  // With the real ports.
  const std::vector<Address>& addresses() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace thaw::api
