// From specifications and settings to what the gateway is told.
#pragma once

#include <memory>
#include <vector>

#include "front/front.h"
#include "gateway/gateway.h"
#include "lifecycle/host.h"
#include "state/database.h"
#include "state/spec.h"

namespace thaw::pods {

gateway::Limits traffic_limits(const lifecycle::Settings& settings);
std::vector<gateway::PublishedPort> published_ports(const state::PodSpec& spec);
std::vector<front::Route> routes_of(const state::PodSpec& spec);
// nullptr when none is wanted.
std::unique_ptr<front::Front> make_front(const lifecycle::Settings& settings,
                                         gateway::Gateway& gateway, state::Database& database);

}  // namespace thaw::pods
