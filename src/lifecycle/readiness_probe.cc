// Which part of a condition can be asked again. By itself: what reads specifications needs no more
// of conditions.
#include "lifecycle/condition.h"

namespace thaw::lifecycle {

using Kind = state::Condition::Kind;

std::optional<state::Condition> readiness_probe(const state::Condition& condition) {
  switch (condition.kind) {
    case Kind::kHttp:
    case Kind::kTcp:
    case Kind::kExec:
    case Kind::kFile:
    case Kind::kPython:
      return condition;
    case Kind::kLog:
    case Kind::kNotify:
    case Kind::kWorkers:
    case Kind::kAfter:
      return std::nullopt;
    case Kind::kAll:
    case Kind::kAny:
      break;
  }
  state::Condition left = condition;
  left.children.clear();
  for (const state::Condition& child : condition.children)
    if (auto probe = readiness_probe(child)) left.children.push_back(std::move(*probe));
  if (left.children.empty()) return std::nullopt;
  return left;
}

}  // namespace thaw::lifecycle
