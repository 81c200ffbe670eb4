#include "network/links.h"

#include <fmt/format.h>
#include <linux/netfilter_ipv4.h>
#include <sys/socket.h>

#include <string_view>

namespace thaw::network {
namespace {

constexpr std::uint32_t kNumbers = 254 * 254;

// FNV-1a.
std::uint32_t hash(std::string_view text) {
  std::uint32_t value = 2166136261u;
  for (unsigned char c : text) value = (value ^ c) * 16777619u;
  return value;
}

}  // namespace

std::string link_address(const std::string& pod) {
  std::uint32_t number = hash(pod) % kNumbers;
  return fmt::format("10.77.{}.{}", 1 + number / 254, 1 + number % 254);
}

// No replica has index 0.
std::string link_listener(int instance) { return fmt::format("10.78.{}.0", 8 * instance); }

bool original_destination(int socket, sockaddr_in& destination) {
  socklen_t size = sizeof destination;
  return ::getsockopt(socket, SOL_IP, SO_ORIGINAL_DST, &destination, &size) == 0 &&
         destination.sin_family == AF_INET;
}

}  // namespace thaw::network
