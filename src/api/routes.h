// The API's routes: one table, from which requests are dispatched and against which
// docs/openapi.yaml is tested.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "api/exchange.h"

namespace thaw::api {

enum class Body {
  kNone,  // none, or an empty JSON object
  kJson,  // application/json
  kSpec,  // application/json or application/yaml
  kBytes  // anything
};

struct Route {
  std::string_view method;
  std::string_view pattern;  // "/v1/pods/{name}"
  std::vector<std::string_view> query;
  Body body = Body::kNone;
  void (*handle)(Exchange&) = nullptr;
};

const std::vector<Route>& routes();
// What a client must be allowed for it.
Scope needed(const Route& route);

// Finds the route, checks query keys and content type, runs the handler. Every refusal is an Error
// or HttpError.
void dispatch(Exchange& exchange);

}  // namespace thaw::api
