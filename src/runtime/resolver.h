// The name servers that replicas are told of.
#pragma once

#include <string>
#include <vector>

namespace thaw::runtime {

// The host's /etc/resolv.conf without servers on loopback addresses, which mean something else
// inside a replica. Where there is no other, and systemd-resolved stands behind it, what that one
// asks. "" when nothing is left.
std::string resolver_configuration(const std::string& etc = "/etc/resolv.conf",
                                   const std::string& systemd = "/run/systemd/resolve/resolv.conf");
std::vector<std::string> name_servers(const std::string& configuration);

}  // namespace thaw::runtime
