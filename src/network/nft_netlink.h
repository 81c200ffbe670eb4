// What is said to nftables in netlink messages: many map elements, which libnftables takes ten
// times as long to parse, and a rewrite with a checksum at a place of our choice, which its
// language has no words for.
#pragma once

#include <string>
#include <vector>

#include "network/rtnetlink.h"

namespace thaw::network {

struct MapElement {
  std::string interface;
  Address value;
};

// Adds elements to a map of an inet table, from interface name to address. Elements that exist
// already stay.
void fill_map(const std::string& table, const std::string& map,
              const std::vector<MapElement>& elements);

struct Rewrite {
  std::uint32_t offset;  // from the transport header
  Address value;
  std::uint32_t checksum_offset;  // of the internet checksum to adjust, from the same place
};
// Appends a rule that matches everything and does the rewrite.
void add_rewrite(const std::string& table, const std::string& chain, const Rewrite& rewrite);

}  // namespace thaw::network
