#include "api/routes.h"

#include <algorithm>

#include "api/handlers.h"
#include "api/target.h"

namespace thaw::api {
namespace {

bool matches(std::string_view pattern, const std::vector<std::string>& segments,
             std::map<std::string, std::string>& parameters) {
  auto parts = split(pattern, '/');
  if (parts.size() != segments.size()) return false;
  std::map<std::string, std::string> found;
  for (std::size_t index = 0; index < parts.size(); ++index) {
    std::string_view part = parts[index];
    if (part.starts_with("{")) {
      found[std::string(part.substr(1, part.size() - 2))] = segments[index];
    } else if (part != segments[index]) {
      return false;
    }
  }
  parameters = std::move(found);
  return true;
}

void check_query(const Route& route, const Request& request) {
  for (auto& [key, value] : request.query) {
    if (std::find(route.query.begin(), route.query.end(), key) != route.query.end()) continue;
    std::string known;
    for (auto name : route.query) known += (known.empty() ? "" : ", ") + std::string(name);
    throw Error(Code::kInvalid, "answer", request.method + " " + request.target,
                "the query key '" + key + "' is unknown",
                known.empty() ? "send no query" : "known here: " + known);
  }
}

void check_body(const Route& route, Exchange& exchange) {
  const Request& request = exchange.request();
  if (route.body == Body::kNone) {
    exchange.body_object({});
    return;
  }
  if (route.body == Body::kBytes) return;
  const std::string& type = request.content_type;
  bool json = type == "application/json";
  bool yaml = type == "application/yaml" || type == "application/x-yaml" || type == "text/yaml" ||
              type == "text/x-yaml";
  if (json || (yaml && route.body == Body::kSpec)) return;
  throw HttpError(
      415, Code::kInvalid, "read the body of", request.method + " " + request.target,
      type.empty() ? "it has no Content-Type" : "the content type '" + type + "' is not taken here",
      route.body == Body::kSpec ? "send application/json or application/yaml"
                                : "send application/json");
}

}  // namespace

const std::vector<Route>& routes() {
  static const std::vector<Route> table = {
      {"GET", "/v1/version", {}, Body::kNone, get_version},
      {"GET", "/v1/doctor", {}, Body::kNone, get_doctor},
      {"GET", "/metrics", {}, Body::kNone, get_metrics},
      {"POST", "/v1/pods", {"dry_run"}, Body::kSpec, deploy_pod},
      {"GET", "/v1/pods", {}, Body::kNone, list_pods},
      {"GET", "/v1/pods/{name}", {}, Body::kNone, get_pod},
      {"DELETE", "/v1/pods/{name}", {"force"}, Body::kNone, remove_pod},
      {"POST", "/v1/pods/{name}/scale", {}, Body::kJson, scale_pod},
      {"POST", "/v1/pods/{name}/stop", {}, Body::kNone, stop_pod},
      {"POST", "/v1/pods/{name}/checkpoint", {}, Body::kNone, create_checkpoint},
      {"POST", "/v1/pods/{name}/checkpoint/retry", {}, Body::kNone, retry_checkpoint},
      {"GET", "/v1/replicas", {"pod", "all"}, Body::kNone, list_replicas},
      {"GET", "/v1/replicas/{id}", {}, Body::kNone, get_replica},
      {"POST", "/v1/replicas/{id}/stop", {}, Body::kNone, stop_replica},
      {"GET", "/v1/replicas/{id}/logs", {"follow", "tail", "since"}, Body::kNone, stream_logs},
      {"POST", "/v1/replicas/{id}/exec", {}, Body::kJson, exec_in_replica},
      {"GET", "/v1/events", {"after", "follow", "pod", "limit"}, Body::kNone, stream_events},
      {"GET", "/v1/checkpoints", {"pod"}, Body::kNone, list_checkpoints},
      {"GET", "/v1/checkpoints/{id}", {}, Body::kNone, get_checkpoint},
      {"DELETE", "/v1/checkpoints/{id}", {}, Body::kNone, remove_checkpoint},
      {"POST", "/v1/checkpoints/{id}/verify", {}, Body::kNone, verify_checkpoint},
      {"POST", "/v1/checkpoints/{id}/compress", {}, Body::kNone, compress_checkpoint},
      {"POST", "/v1/images", {}, Body::kJson, import_image},
      {"GET", "/v1/images", {}, Body::kNone, list_images},
      {"DELETE", "/v1/images/{id}", {}, Body::kNone, remove_image},
      {"GET", "/v1/secrets", {}, Body::kNone, list_secrets},
      {"PUT", "/v1/secrets/{name}", {}, Body::kBytes, put_secret},
      {"DELETE", "/v1/secrets/{name}", {}, Body::kNone, remove_secret},
      {"GET", "/v1/tokens", {}, Body::kNone, list_tokens},
      {"POST", "/v1/tokens", {}, Body::kJson, create_token},
      {"DELETE", "/v1/tokens/{name}", {}, Body::kNone, remove_token},
  };
  return table;
}

Scope needed(const Route& route) {
  if (route.pattern.starts_with("/v1/tokens")) return Scope::kAdmin;
  if (route.method == "GET") return Scope::kRead;
  // Images are everybody's.
  return route.pattern.starts_with("/v1/images") ? Scope::kAdmin : Scope::kDeploy;
}

void dispatch(Exchange& exchange) {
  const Request& request = exchange.request();
  std::string allowed;
  for (auto& route : routes()) {
    if (!matches(route.pattern, request.segments, exchange.path())) continue;
    if (route.method != request.method) {
      allowed += (allowed.empty() ? "" : ", ") + std::string(route.method);
      continue;
    }
    if (request.scope < needed(route))
      throw HttpError(403, Code::kDenied, "answer", request.method + " " + request.target,
                      fmt::format("it needs a token of scope {}, and this one's is {}",
                                  name(needed(route)), name(request.scope)),
                      "ask for another token");
    check_query(route, request);
    check_body(route, exchange);
    route.handle(exchange);
    return;
  }
  if (allowed.empty()) {
    throw Error(Code::kNotFound, "answer", request.method + " " + request.target,
                "there is nothing at this path", "see docs/openapi.yaml; paths begin with /v1");
  }
  throw HttpError(405, Code::kInvalid, "answer", request.method + " " + request.target,
                  "the method is not allowed here", "use " + allowed, {{"Allow", allowed}});
}

}  // namespace thaw::api
