// From a pod's specification to what one replica is: the container, the fingerprint, what the
// container sees. The one writer of THAW_* variables.
#pragma once

#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "image/images.h"
#include "lifecycle/host.h"
#include "runtime/cgroup.h"
#include "runtime/container.h"
#include "state/spec.h"

namespace thaw::lifecycle {

// What must be equal on two hosts for a checkpoint of one to run on the other.
nlohmann::json host_class(const std::string& criu_version);

// The features of one processor, sorted, separated by blanks.
std::string cpu_features();

// The program part of the fingerprint: everything of a spec that the dumped processes depend on.
std::string program_digest(const state::PodSpec& spec, const std::string& image_id);
std::string fingerprint(const std::string& program, const nlohmann::json& host);

// Whether a checkpoint can be made here at all, and if not, why ("" when it can or is not asked
// for).
struct Effective {
  bool enabled = false;
  std::string reason;
};
Effective effective_checkpoint(const state::PodSpec& spec, const std::string& criu_missing);
// The same of the dumps that `idle: checkpoint` makes, which wait for no condition.
Effective effective_pause(const state::PodSpec& spec, const std::string& criu_missing);

// A pod version ready to be run: the spec with its image and its secrets found.
struct PodPlan {
  state::PodSpec spec;
  std::int64_t version = 1;
  std::string image_id, rootfs;  // the overlay's lowest layer
  nlohmann::json image_config;   // of the OCI image; empty for a rootfs
  image::Identity user;
  std::vector<state::Secret> secrets;  // each with the file that holds it
  std::string secrets_key;             // the file of the key that kept ones are sealed with
  runtime::Enforceable limits;         // what this host holds of resources
  std::string program, fingerprint;
  Effective checkpoint;
  Effective pause;  // whether a replica of it can be dumped for `idle: checkpoint`
};
PodPlan make_plan(const state::PodSpec& spec, std::int64_t version, const image::Image* image,
                  const nlohmann::json& host, const std::string& criu_missing,
                  const Settings& settings);

std::vector<std::string> command_of(const PodPlan& plan);
// What a replica is waited for before its gate opens, beside checkpoint.when: its `ready`, or
// nothing, or, where neither is given, that one of its ports listens.
std::optional<state::Condition> ready_condition(const state::PodSpec& spec);
// `layers`: filesystem layers of the checkpoint it is restored from, topmost first; empty for a
// cold start.
runtime::ContainerSpec container_of(const PodPlan& plan, const std::string& replica,
                                    const std::string& hostname, const std::string& started_from,
                                    const std::vector<std::string>& layers);

}  // namespace thaw::lifecycle
