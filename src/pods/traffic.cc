#include "pods/traffic.h"

#include <algorithm>

#include "gateway/listener.h"
#include "network/links.h"

namespace thaw::pods {
namespace {

gateway::ClientAddress client_address(state::Port::ClientAddress wanted) {
  switch (wanted) {
    case state::Port::ClientAddress::kKeep:
      return gateway::ClientAddress::kKeep;
    case state::Port::ClientAddress::kProxy:
      return gateway::ClientAddress::kProxy;
    case state::Port::ClientAddress::kGateway:
      break;
  }
  return gateway::ClientAddress::kGateway;
}

}  // namespace

gateway::Limits traffic_limits(const lifecycle::Settings& settings) {
  return {.held_per_port = settings.hold_connections,
          .held_bytes_per_port = settings.hold_bytes,
          .held_timeout_us = settings.hold_time_us,
          .idle_timeout_us = settings.idle_time_us,
          .half_closed_us = settings.half_closed_time_us};
}

std::vector<gateway::PublishedPort> published_ports(const state::PodSpec& spec) {
  std::vector<gateway::PublishedPort> ports;
  for (const auto& port : spec.ports)
    ports.push_back({.address = port.address,
                     .host = port.host,
                     .container = port.container,
                     .protocol = port.protocol == state::Port::Protocol::kHttp
                                     ? gateway::Protocol::kHttp
                                     : gateway::Protocol::kTcp,
                     .client_address = client_address(port.client_address),
                     .idle_timeout_us = port.idle_timeout_us});
  return ports;
}

gateway::Offer offer_of(const state::PodSpec& spec) {
  gateway::Offer offer{.ports = published_ports(spec), .routes = {}};
  for (const auto& route : spec.routes) offer.routes[route.host + route.path] = route.port;
  return offer;
}

void keep_earlier(std::vector<gateway::PublishedPort>& ports, std::vector<front::Route>& routes,
                  const state::PodSpec& earlier) {
  for (auto& port : published_ports(earlier))
    if (std::ranges::none_of(ports, [&](const gateway::PublishedPort& other) {
          return other.host == port.host &&
                 gateway::addresses_overlap(gateway::normal_address(other.address),
                                            gateway::normal_address(port.address));
        }))
      ports.push_back(std::move(port));
  for (auto& route : routes_of(earlier))
    if (std::ranges::none_of(routes, [&](const front::Route& other) {
          return other.host == route.host && other.path == route.path;
        }))
      routes.push_back(std::move(route));
}

void Links::set(const std::string& pod, const std::vector<std::string>& links) {
  std::map<std::string, std::string> names;
  for (const std::string& link : links) names.emplace(network::link_address(link), link);
  std::lock_guard lock(mutex_);
  if (names.empty())
    by_pod_.erase(pod);
  else
    by_pod_[pod] = std::move(names);
}

std::optional<std::string> Links::find(const std::string& replica_address,
                                       const std::string& link_address) {
  {
    std::lock_guard lock(mutex_);
    if (by_pod_.empty()) return std::nullopt;
  }
  std::string pod = database_.pod_at(replica_address);
  std::lock_guard lock(mutex_);
  auto names = by_pod_.find(pod);
  if (names == by_pod_.end()) return std::nullopt;
  auto found = names->second.find(link_address);
  return found == names->second.end() ? std::nullopt : std::optional(found->second);
}

std::vector<front::Route> routes_of(const state::PodSpec& spec) {
  std::vector<front::Route> routes;
  for (const auto& route : spec.routes)
    routes.push_back({route.host, route.path, spec.name, route.port});
  return routes;
}

std::unique_ptr<front::Front> make_front(const lifecycle::Settings& settings,
                                         gateway::Gateway& gateway, Holder* holder) {
  if (settings.front.empty()) return nullptr;
  front::Options options{.address = settings.front,
                         .tls_cert = settings.front_tls_cert,
                         .tls_key = settings.front_tls_key,
                         .header_us = settings.front_header_time_us,
                         .idle_us = settings.front_keep_alive_time_us,
                         .stall_us = settings.front_stall_time_us};
  return std::make_unique<front::Front>(gateway, std::move(options), holder);
}

}  // namespace thaw::pods
