#include "runtime/resolver.h"

#include <sstream>

#include "util/file.h"

namespace thaw::runtime {
namespace {

std::string server_of(const std::string& line) {
  std::istringstream words(line);
  std::string key, server;
  words >> key >> server;
  return key == "nameserver" ? server : "";
}

bool is_loopback(const std::string& server) {
  return server.starts_with("127.") || server == "::1";
}

std::string reachable_part(const std::string& path) {
  if (!exists(path)) return {};
  std::string kept;
  std::istringstream lines(read_file(path));
  for (std::string line; std::getline(lines, line);)
    if (!is_loopback(server_of(line))) kept += line + "\n";
  return kept;
}

}  // namespace

std::vector<std::string> name_servers(const std::string& configuration) {
  std::vector<std::string> servers;
  std::istringstream lines(configuration);
  for (std::string line; std::getline(lines, line);)
    if (std::string server = server_of(line); !server.empty()) servers.push_back(server);
  return servers;
}

std::string resolver_configuration(const std::string& etc, const std::string& systemd) {
  std::string own = reachable_part(etc);
  if (!name_servers(own).empty()) return own;
  std::string behind = reachable_part(systemd);
  return name_servers(behind).empty() ? own : behind;
}

}  // namespace thaw::runtime
