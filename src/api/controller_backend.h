// The real backend: the controller and its database.
#pragma once

#include <memory>

#include "api/backend.h"

namespace thaw::api {

// The controller outlives the backend.
std::unique_ptr<Backend> make_controller_backend(pods::Controller& controller);

}  // namespace thaw::api
