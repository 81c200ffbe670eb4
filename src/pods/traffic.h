// From specifications and settings to what the gateway is told.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "front/front.h"
#include "gateway/gateway.h"
#include "lifecycle/host.h"
#include "state/database.h"
#include "state/spec.h"

namespace thaw::pods {

gateway::Limits traffic_limits(const lifecycle::Settings& settings);
std::vector<gateway::PublishedPort> published_ports(const state::PodSpec& spec);
// What a replica of this specification offers.
gateway::Offer offer_of(const state::PodSpec& spec);
// Which pods a pod may reach. Thread-safe.
class Links {
 public:
  explicit Links(state::Database& database) : database_(database) {}
  void set(const std::string& pod, const std::vector<std::string>& links);
  std::optional<std::string> find(const std::string& replica_address,
                                  const std::string& link_address);

 private:
  state::Database& database_;
  std::mutex mutex_;
  std::map<std::string, std::map<std::string, std::string>> by_pod_;  // then by link's address
};

std::vector<front::Route> routes_of(const state::PodSpec& spec);
// While replicas of an earlier version serve: what that had and the new one does not, where both
// fit.
void keep_earlier(std::vector<gateway::PublishedPort>& ports, std::vector<front::Route>& routes,
                  const state::PodSpec& earlier);
// nullptr when none is wanted.
std::unique_ptr<front::Front> make_front(const lifecycle::Settings& settings,
                                         gateway::Gateway& gateway, Holder* holder);

}  // namespace thaw::pods
