#include "network/layout.h"

#include <charconv>

namespace thaw::network {

std::string Network::interface_name(int instance, int index) {
  return fmt::format("thaw{}-{}", instance, index);
}

std::string Network::unique_address(int instance, int index) {
  return fmt::format("10.78.{}.{}", 8 * instance + index / 256, index % 256);
}

std::string Network::unique_address6(int instance, int index) {
  return fmt::format("fd00:78:{:x}::{:x}", instance, index);
}

std::string table_name(int instance) { return fmt::format("thaw{}", instance); }

std::string interface_pattern(int instance) { return fmt::format("thaw{}-*", instance); }

std::string address_block(int instance) { return fmt::format("10.78.{}.0/21", 8 * instance); }

std::string address_block6(int instance) { return fmt::format("fd00:78:{:x}::/64", instance); }

std::optional<InterfaceName> parse_interface_name(std::string_view name) {
  constexpr std::string_view kPrefix = "thaw";
  if (!name.starts_with(kPrefix)) return std::nullopt;
  const char* end = name.data() + name.size();
  InterfaceName parsed;
  auto [dash, error] = std::from_chars(name.data() + kPrefix.size(), end, parsed.instance);
  if (error != std::errc() || dash == end || *dash != '-') return std::nullopt;
  auto [rest, error2] = std::from_chars(dash + 1, end, parsed.index);
  if (error2 != std::errc() || rest != end) return std::nullopt;
  if (parsed.instance < 0 || parsed.instance >= kInstances) return std::nullopt;
  if (parsed.index < 1 || parsed.index > kAddresses) return std::nullopt;
  return parsed;
}

}  // namespace thaw::network
