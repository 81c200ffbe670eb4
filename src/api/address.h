// Where the daemon listens and where a client finds it: "unix:/path", "tls:host:port", or
// "tcp:host:port", which is for tests.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "util/clock.h"
#include "util/fd.h"
#include "util/holder.h"

namespace thaw::api {

struct Address {
  bool is_unix = true;
  std::string path;        // unix
  std::string host;        // tcp: a name or a number, IPv6 without brackets
  std::uint16_t port = 0;  // tcp; 0 lets the kernel choose when listening
  bool tls = false;
  std::string group = "thaw";  // unix, listening: who may use it beside root
  std::string token, ca_file;  // tls, connecting: what to show, whom to trust
  std::string text() const;
};

// Also takes a bare absolute path, unix:///path and tcp://host:port. `source` names where the text
// came from ("--host"). kInvalid says which forms there are.
Address parse_address(std::string_view text, std::string_view source);

// A listening socket, close-on-exec. tcp: loopback only; tcp and tls: `address.port` becomes the
// real one. unix: mode 0660, the group when the host has it; a socket file that nobody answers is
// replaced, one that answers is kConflict.
Fd listen_on(Address& address);
// The same, with a socket that outlives this daemon (`holder` may be none): the one that an earlier
// daemon listened on there, if it is kept and is one.
Fd listen_on(Address& address, Holder* holder);
// Closes such a one for good, and removes its file.
void stop_listening(Fd& listener, const Address& address, Holder* holder);

// kUnavailable when nobody answers there; the message tells how to start a daemon.
Fd connect_to(const Address& address, Deadline deadline);

}  // namespace thaw::api
