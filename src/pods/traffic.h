// From specifications and settings to what the gateway is told.
#pragma once

#include <vector>

#include "gateway/gateway.h"
#include "lifecycle/host.h"
#include "state/spec.h"

namespace thaw::pods {

gateway::Limits traffic_limits(const lifecycle::Settings& settings);
std::vector<gateway::PublishedPort> published_ports(const state::PodSpec& spec);

}  // namespace thaw::pods
