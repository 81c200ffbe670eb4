// The PROXY protocol, version 2 (haproxy.org/download/2.9/doc/proxy-protocol.txt): what a proxy
// says ahead of a connection's bytes about whose connection it is.
#pragma once

#include <netinet/in.h>

#include <cstdint>
#include <string>

namespace thaw::gateway {

// Both addresses of a client's connection as it reached the host. Without a client (AF_UNSPEC): a
// header that says LOCAL, which means the proxy's own.
std::string proxy_header(const sockaddr_storage& client, const sockaddr_storage& server);

}  // namespace thaw::gateway
