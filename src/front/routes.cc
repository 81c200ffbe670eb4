#include "front/routes.h"

#include <fmt/format.h>

#include "util/error.h"

namespace thaw::front {
namespace {

std::string plain_host(std::string_view host) {
  // [::1]:80 keeps its colons.
  std::size_t colon = host.rfind(':');
  if (colon != std::string_view::npos && host.find(']', colon) == std::string_view::npos &&
      (host.empty() || host[0] == '[' || host.find(':') == colon))
    host = host.substr(0, colon);
  if (host.ends_with('.')) host.remove_suffix(1);
  std::string name(host);
  for (char& c : name) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  return name;
}

}  // namespace

void Routes::check(const std::string& pod, const std::vector<Route>& routes) const {
  std::lock_guard lock(mutex_);
  refuse_taken(pod, routes);
}

void Routes::refuse_taken(const std::string& pod, const std::vector<Route>& routes) const {
  for (const Route& route : routes) {
    auto host = by_host_.find(route.host);
    if (host == by_host_.end()) continue;
    auto path = host->second.find(route.path);
    if (path == host->second.end() || path->second.pod == pod) continue;
    throw Error(Code::kConflict, "route requests to pod", pod,
                fmt::format("those for {}{} go to pod {}", route.host.empty() ? "*" : route.host,
                            route.path, path->second.pod),
                "choose another host or path, or remove that pod");
  }
}

void Routes::set(const std::string& pod, const std::vector<Route>& routes) {
  std::lock_guard lock(mutex_);
  refuse_taken(pod, routes);
  for (auto& [host, paths] : by_host_)
    std::erase_if(paths, [&](auto& entry) { return entry.second.pod == pod; });
  for (const Route& route : routes) {
    Route& own = by_host_[route.host][route.path] = route;
    own.pod = pod;
  }
  std::erase_if(by_host_, [](auto& entry) { return entry.second.empty(); });
}

void Routes::remove(const std::string& pod) { set(pod, {}); }

const Route* Routes::longest_path(const std::string& host, std::string_view path) const {
  auto found = by_host_.find(host);
  if (found == by_host_.end()) return nullptr;
  for (std::string prefix(path);;) {
    auto route = found->second.find(prefix);
    if (route != found->second.end()) return &route->second;
    if (prefix.size() <= 1) return nullptr;
    std::size_t slash = prefix.rfind('/');
    if (slash == std::string::npos) return nullptr;
    prefix.resize(slash == 0 ? 1 : slash);
  }
}

std::optional<Route> Routes::find(std::string_view host, std::string_view target) const {
  std::string_view path = target.substr(0, target.find_first_of("?#"));
  if (!path.starts_with('/')) path = "/";
  std::string name = plain_host(host);
  std::lock_guard lock(mutex_);
  const Route* route = name.empty() ? nullptr : longest_path(name, path);
  for (std::size_t dot = name.find('.'); !route && dot != std::string::npos;
       dot = name.find('.', dot + 1))
    route = longest_path("*" + name.substr(dot), path);
  if (!route) route = longest_path("", path);
  return route ? std::optional(*route) : std::nullopt;
}

}  // namespace thaw::front
