// Which pod a request of the shared HTTP port is for. Thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace thaw::front {

struct Route {
  std::string host;        // lower case; "*.example.com" for what is below; empty: any
  std::string path = "/";  // and what is below
  std::string pod;
  std::uint16_t port = 0;  // of the container
};

class Routes {
 public:
  // kConflict when another pod has one of them.
  void check(const std::string& pod, const std::vector<Route>& routes) const;
  // In place of what the pod had; nothing changed when it throws what check does.
  void set(const std::string& pod, const std::vector<Route>& routes);
  void remove(const std::string& pod);
  // The host's own name before a domain's before any, then the longest path. `host` as the client
  // wrote it, with or without a port; `target` with its query.
  std::optional<Route> find(std::string_view host, std::string_view target) const;

 private:
  void refuse_taken(const std::string& pod, const std::vector<Route>& routes) const;
  const Route* longest_path(const std::string& host, std::string_view path) const;

  mutable std::mutex mutex_;
  std::map<std::string, std::map<std::string, Route>> by_host_;  // then by path
};

}  // namespace thaw::front
