#include "gateway/proxy_header.h"

#include <string_view>

namespace thaw::gateway {
namespace {

using namespace std::string_view_literals;

constexpr std::string_view kSignature = "\r\n\r\n\0\r\nQUIT\n"sv;
constexpr char kLocal = 0x20, kProxied = 0x21;  // version 2, and the command
constexpr char kTcp4 = 0x11, kTcp6 = 0x21;

template <typename T>
void append(std::string& to, const T& value) {
  to.append(reinterpret_cast<const char*>(&value), sizeof value);
}

}  // namespace

std::string proxy_header(const sockaddr_storage& client, const sockaddr_storage& server) {
  std::string header(kSignature), addresses;
  char family = 0;
  auto put = [&](const auto& from, const auto& to, in_port_t from_port, in_port_t to_port) {
    append(addresses, from);
    append(addresses, to);
    append(addresses, from_port);
    append(addresses, to_port);
  };
  if (client.ss_family == AF_INET && server.ss_family == AF_INET) {
    auto& from = reinterpret_cast<const sockaddr_in&>(client);
    auto& to = reinterpret_cast<const sockaddr_in&>(server);
    family = kTcp4;
    put(from.sin_addr, to.sin_addr, from.sin_port, to.sin_port);
  } else if (client.ss_family == AF_INET6 && server.ss_family == AF_INET6) {
    auto& from = reinterpret_cast<const sockaddr_in6&>(client);
    auto& to = reinterpret_cast<const sockaddr_in6&>(server);
    family = kTcp6;
    put(from.sin6_addr, to.sin6_addr, from.sin6_port, to.sin6_port);
  }
  header += family ? kProxied : kLocal;
  header += family;
  append(header, htons(static_cast<std::uint16_t>(addresses.size())));
  return header + addresses;
}

}  // namespace thaw::gateway
