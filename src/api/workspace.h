// What a token of a workspace reaches. Pods of workspace W are those named W--NAME; their replicas,
// checkpoints and events are theirs. A client of W names and sees NAME alone, and nothing of what
// is not W's: this stands between it and the backend, so that no handler has to think of it.
#pragma once

#include <memory>

#include "api/backend.h"
#include "api/tokens.h"

namespace thaw::api {

// `backend` outlives it. `token` has a workspace.
std::unique_ptr<Backend> inside_workspace(Backend& backend, const Token& token);

}  // namespace thaw::api
