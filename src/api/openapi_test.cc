// Holds docs/openapi.yaml against the server: every route is described, everything described
// exists, and the answers have the keys that are promised and no others.
#include <gtest/gtest.h>
#include <yaml-cpp/yaml.h>

#include "api/client.h"
#include "api/memory_backend.h"
#include "api/routes.h"
#include "api/server.h"
#include "util/source_dir.h"

namespace thaw::api {
namespace {

YAML::Node document() {
  static const YAML::Node root = YAML::LoadFile(THAW_SOURCE_DIR "/docs/openapi.yaml");
  return root;
}

YAML::Node resolve(YAML::Node node) {
  while (node["$ref"]) {
    std::string reference = node["$ref"].as<std::string>();
    EXPECT_TRUE(reference.starts_with("#/")) << reference;
    YAML::Node target = YAML::Clone(document());
    std::size_t at = 2;
    while (at <= reference.size()) {
      std::size_t end = std::min(reference.find('/', at), reference.size());
      YAML::Node child = target[reference.substr(at, end - at)];
      if (!child) throw std::runtime_error("dangling reference " + reference);
      target.reset(child);
      at = end + 1;
    }
    node.reset(target);
  }
  return node;
}

using Operations = std::map<std::string, std::set<std::string>>;  // "GET /v1/pods" -> query keys

Operations documented() {
  Operations operations;
  for (auto path : document()["paths"]) {
    for (auto entry : path.second) {
      std::string method = entry.first.as<std::string>();
      if (method == "parameters") continue;
      for (char& c : method) c = static_cast<char>(std::toupper(c));
      auto& keys = operations[method + " " + path.first.as<std::string>()];
      for (auto parameter : entry.second["parameters"]) {
        YAML::Node resolved = resolve(parameter);
        if (resolved["in"].as<std::string>() == "query") {
          keys.insert(resolved["name"].as<std::string>());
        }
      }
    }
  }
  return operations;
}

Operations served() {
  Operations operations;
  for (auto& route : routes()) {
    auto& keys = operations[std::string(route.method) + " " + std::string(route.pattern)];
    for (auto key : route.query) keys.insert(std::string(key));
  }
  return operations;
}

bool has_type(const nlohmann::json& value, const std::string& type) {
  if (type == "object") return value.is_object();
  if (type == "array") return value.is_array();
  if (type == "string") return value.is_string();
  if (type == "integer") return value.is_number_integer();
  if (type == "boolean") return value.is_boolean();
  return type == "null" && value.is_null();
}

void check(const nlohmann::json& value, YAML::Node unresolved, const std::string& where,
           bool closed = true) {
  YAML::Node schema = resolve(unresolved);
  if (schema["allOf"]) {
    for (auto part : schema["allOf"]) check(value, part, where, false);
    return;
  }
  if (YAML::Node type = schema["type"]) {
    bool fits = false;
    if (type.IsSequence()) {
      for (auto entry : type) fits = fits || has_type(value, entry.as<std::string>());
    } else {
      fits = has_type(value, type.as<std::string>());
    }
    EXPECT_TRUE(fits) << where << " is " << value.dump();
    if (!fits) return;
  }
  if (schema["enum"] && value.is_string()) {
    bool known = false;
    for (auto entry : schema["enum"]) known = known || entry.as<std::string>() == value;
    EXPECT_TRUE(known) << where << " is " << value;
  }
  if (value.is_array() && schema["items"]) {
    for (auto& item : value) check(item, schema["items"], where + "[]");
  }
  if (!value.is_object() || !schema["properties"]) return;
  for (auto key : schema["required"]) {
    EXPECT_TRUE(value.contains(key.as<std::string>())) << where << " lacks " << key;
  }
  for (auto& [key, member] : value.items()) {
    YAML::Node property = schema["properties"][key];
    if (property) check(member, property, where + "." + key);
    EXPECT_TRUE(property || !closed) << where << " has " << key << ", which is not described";
  }
}

YAML::Node schema_of(const std::string& path, const std::string& method, const std::string& status,
                     const std::string& type = "application/json") {
  YAML::Node response = resolve(document()["paths"][path][method]["responses"][status]);
  YAML::Node schema = response["content"][type]["schema"];
  EXPECT_TRUE(schema) << method << " " << path << " " << status;
  return schema;
}

TEST(OpenApi, EveryRouteIsDescribedAndEveryDescriptionServed) { EXPECT_EQ(documented(), served()); }

TEST(OpenApi, EveryReferenceLeadsSomewhere) {
  std::function<void(YAML::Node)> walk = [&](YAML::Node node) {
    if (node.IsMap()) {
      EXPECT_NO_THROW(resolve(node));
      for (auto entry : node) walk(entry.second);
    } else if (node.IsSequence()) {
      for (auto entry : node) walk(entry);
    }
  };
  walk(document());
}

TEST(OpenApi, AnswersHaveTheDescribedShape) {
  TestServer server;
  write_file_atomic(server.backend.log_file(), "2026-01-01T00:00:00Z stdout F hello\n");
  struct Case {
    std::string path, target;
  } cases[] = {{"/v1/version", "/v1/version"},
               {"/v1/doctor", "/v1/doctor"},
               {"/v1/pods", "/v1/pods"},
               {"/v1/pods/{name}", "/v1/pods/web"},
               {"/v1/replicas", "/v1/replicas?all=true"},
               {"/v1/replicas/{id}", "/v1/replicas/0123"},
               {"/v1/events", "/v1/events"},
               {"/v1/checkpoints", "/v1/checkpoints"},
               {"/v1/checkpoints/{id}", "/v1/checkpoints/ccc"},
               {"/v1/images", "/v1/images"}};
  for (auto& one : cases) {
    nlohmann::json answer = server.client->get(one.target);
    EXPECT_FALSE(answer.empty()) << one.target;
    check(answer, schema_of(one.path, "get", "200"), one.path);
  }
  server.client->stream("GET", "/v1/replicas/web/logs", nullptr, [&](std::string_view line) {
    check(nlohmann::json::parse(line),
          schema_of("/v1/replicas/{id}/logs", "get", "200", "application/x-ndjson"), "logs");
    return true;
  });
  check(server.client->post("/v1/pods/web/scale", {{"replicas", 1}}),
        schema_of("/v1/pods/{name}/scale", "post", "200"), "scale");
  check(server.client->post("/v1/pods/web/stop"), schema_of("/v1/pods/{name}/stop", "post", "200"),
        "stop");
  check(server.client->post("/v1/replicas/web/stop"),
        schema_of("/v1/replicas/{id}/stop", "post", "200"), "replica stop");
  check(server.client->post("/v1/pods/web/checkpoint"),
        schema_of("/v1/pods/{name}/checkpoint", "post", "201"), "checkpoint");
  check(server.client->remove("/v1/pods/web?force=true"),
        schema_of("/v1/pods/{name}", "delete", "200"), "remove");
  nlohmann::json spec{{"name", "new"}, {"rootfs", "/srv/rootfs"}, {"command", {"serve"}}};
  check(server.client->post("/v1/pods", spec), schema_of("/v1/pods", "post", "201"), "deploy");
  check(server.client->post("/v1/pods?dry_run=true", spec),
        document()["components"]["schemas"]["DryRun"], "dry run");
  check(body_of(server.ask("GET", "/v1/pods/nobody")), schema_of("/v1/pods/{name}", "get", "404"),
        "error");
}

}  // namespace
}  // namespace thaw::api
