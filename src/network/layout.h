// Every name, number and address of a replica's network, in one place. The picture is in
// docs/network.md.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "network/network.h"
#include "network/rtnetlink.h"

namespace thaw::network {

inline constexpr int kInstances = 32;    // 10.78.0.0/16 in blocks of /21
inline constexpr int kAddresses = 2000;  // of an instance: 1 to 2000
inline constexpr int kReplicaLink = 2;   // eth0's index; lo has 1
inline constexpr const char* kNextHop =
    "169.254.1.1";  // nobody's address: only a name for the other end of the veth
inline constexpr const char* kNextHop6 = "fe80::1";
// The link group of a host end whose replica is cut off from everything; the nft table drops what
// comes from it or goes to it. Changing a group costs microseconds and the replica notices nothing.
inline constexpr std::uint32_t kClosedGroup = 0x54485800;
inline constexpr Mac kHostMac{0x02, 0x54, 0x48, 0x41, 0x57, 0x01};
inline constexpr Mac kReplicaMac{0x02, 0x54, 0x48, 0x41, 0x57, 0x02};

std::string table_name(int instance);
std::string interface_pattern(int instance);  // thaw3-* as nft writes it
std::string address_block(int instance);      // 10.78.24.0/21
std::string address_block6(int instance);     // fd00:78:3::/64

struct InterfaceName {
  int instance = 0;
  int index = 0;
};
// The other way; nullopt when the name is not one of ours.
std::optional<InterfaceName> parse_interface_name(std::string_view name);

}  // namespace thaw::network
