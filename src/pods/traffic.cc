#include "pods/traffic.h"

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
          .held_timeout_us = settings.hold_time_us};
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
                     .client_address = client_address(port.client_address)});
  return ports;
}

}  // namespace thaw::pods
