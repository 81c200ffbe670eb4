// Conditions in the pod specification: `when: {http: {port: 8000, path: /health}}` and the other
// forms, exactly one key a level.
#pragma once

#include <nlohmann/json.hpp>

#include "pods/fields.h"
#include "state/spec.h"

namespace thaw::pods {

struct ConditionType {
  state::Condition read(const Place& at) const;
  nlohmann::json write(const state::Condition& condition) const;
  nlohmann::json schema() const { return {{"$ref", "#/$defs/condition"}}; }
  static nlohmann::json definition();  // what that $ref means
};

}  // namespace thaw::pods
