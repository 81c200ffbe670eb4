#include "api/handlers.h"

#include "api/json.h"
#include "pods/secrets.h"
#include "pods/spec.h"
#include "util/units.h"

namespace thaw::api {
namespace {

using nlohmann::json;

template <typename Rows>
json list(const Rows& rows) {
  json array = json::array();
  for (auto& row : rows) array.push_back(to_json(row));
  return array;
}

// Who may only look is not to learn from what he sees how to do more.
void hide_secrets(Exchange& exchange, json& object) {
  constexpr const char* kHidden = "(hidden)";
  if (exchange.request().scope != Scope::kRead) return;
  if (object.is_array())
    for (json& item : object) hide_secrets(exchange, item);
  if (!object.is_object()) return;
  if (object.contains("spec") && object["spec"].contains("env"))
    for (auto& [key, value] : object["spec"]["env"].items())
      if (pods::looks_secret(key, value.get<std::string>())) value = kHidden;
  if (object.contains("config") && object["config"].contains("Env"))
    for (json& entry : object["config"]["Env"])
      if (std::string key = pods::secret_name(entry.get<std::string>()); !key.empty())
        entry = key + "=" + kHidden;
}

void reply_shown(Exchange& exchange, json body) {
  hide_secrets(exchange, body);
  exchange.reply(200, body);
}

constexpr std::int64_t kLongestWaitUs = 24LL * 3600 * 1'000'000;

std::int64_t wait_of(const json& body) {
  if (!body.contains("wait")) return 0;
  std::optional<std::int64_t> wait;
  if (body["wait"].is_string()) wait = parse_duration_us(body["wait"].get<std::string>());
  if (!wait || *wait < 0 || *wait > kLongestWaitUs) {
    throw Error(Code::kInvalid, "read", "wait", dump(body["wait"]) + " is no duration up to 24h",
                "give one such as \"30s\"");
  }
  return *wait;
}

int replicas_of(const json& body) {
  // Not get<int>: 1.5 would become 1, and a number above 2^31 another one.
  const json value = body.contains("replicas") ? body["replicas"] : json();
  if (!value.is_number_integer() || value < 0 || value > 1'000'000) {
    throw Error(Code::kInvalid, "read", "replicas",
                value.is_null() ? "it is missing" : dump(value) + " is no whole number from 0 on",
                "send {\"replicas\": 2}");
  }
  return value.get<int>();
}

}  // namespace

void get_version(Exchange& exchange) {
  exchange.reply(200, version_json(exchange.backend().last_event_id()));
}

void get_doctor(Exchange& exchange) { exchange.reply(200, list(exchange.backend().doctor())); }

void deploy_pod(Exchange& exchange) {
  bool dry_run = exchange.query_flag("dry_run");
  // No directory of the caller's is known here, so relative paths cannot mean anything.
  state::PodSpec spec = pods::parse_spec(exchange.request().body, "request body", "");
  if (!dry_run) {
    // What the deploy sets in motion is told by the events after this one.
    std::int64_t last_event = exchange.backend().last_event_id();
    pods::DeployResult result = exchange.backend().deploy(spec);
    json body = to_json(result);
    body["last_event"] = last_event;
    exchange.reply(result.created ? 201 : 200, body);
    return;
  }
  bool exists = false;
  for (auto& pod : exchange.backend().pods()) exists = exists || pod.row.name == spec.name;
  exchange.reply(200, {{"dry_run", true}, {"created", !exists}, {"spec", pods::to_json(spec)}});
}

void list_pods(Exchange& exchange) { reply_shown(exchange, list(exchange.backend().pods())); }

void get_pod(Exchange& exchange) {
  reply_shown(exchange, to_json(exchange.backend().pod(exchange.path("name"))));
}

void remove_pod(Exchange& exchange) {
  exchange.backend().remove(exchange.path("name"), exchange.query_flag("force"));
  exchange.reply(200, {{"removed", exchange.path("name")}});
}

void scale_pod(Exchange& exchange) {
  json body = exchange.body_object({"replicas", "wait"});
  std::int64_t wait = wait_of(body);
  std::optional<int> replicas;
  if (body.contains("replicas") || wait == 0) replicas = replicas_of(body);
  exchange.reply(200, to_json(exchange.backend().scale(exchange.path("name"), replicas, wait)));
}

void stop_pod(Exchange& exchange) {
  exchange.backend().stop(exchange.path("name"));
  exchange.reply(200, to_json(exchange.backend().pod(exchange.path("name"))));
}

void create_checkpoint(Exchange& exchange) {
  exchange.reply(201, to_json(exchange.backend().create_checkpoint(exchange.path("name"))));
}

void list_replicas(Exchange& exchange) {
  std::string pod = exchange.query("pod");
  auto rows = exchange.backend().replicas(pod, exchange.query_flag("all"));
  // Nothing of a pod that does not exist is a mistake in its name; of one that is gone, history.
  if (rows.empty() && !pod.empty()) exchange.backend().pod(pod);
  exchange.reply(200, list(rows));
}

void get_replica(Exchange& exchange) {
  exchange.reply(200, to_json(exchange.backend().replica(exchange.path("id"))));
}

void stop_replica(Exchange& exchange) {
  std::string id = exchange.backend().replica(exchange.path("id")).id;
  exchange.backend().stop_replica(id);
  exchange.reply(200, to_json(exchange.backend().replica(id)));
}

void list_checkpoints(Exchange& exchange) {
  std::string pod = exchange.query("pod");
  auto rows = exchange.backend().checkpoints(pod);
  if (rows.empty() && !pod.empty()) exchange.backend().pod(pod);
  exchange.reply(200, list(rows));
}

void get_checkpoint(Exchange& exchange) {
  json body = to_json(exchange.backend().checkpoint(exchange.path("id")));
  json inspected = exchange.backend().inspect_checkpoint(body["id"].get<std::string>());
  body["manifest"] = inspected.contains("manifest") ? inspected["manifest"] : inspected;
  exchange.reply(200, body);
}

void remove_checkpoint(Exchange& exchange) {
  std::string id = exchange.backend().checkpoint(exchange.path("id")).id;
  exchange.backend().remove_checkpoint(id);
  exchange.reply(200, {{"removed", id}});
}

void verify_checkpoint(Exchange& exchange) {
  exchange.reply(200, to_json(exchange.backend().verify_checkpoint(exchange.path("id"))));
}

void compress_checkpoint(Exchange& exchange) {
  exchange.reply(200, to_json(exchange.backend().compress_checkpoint(exchange.path("id"))));
}

void retry_checkpoint(Exchange& exchange) {
  exchange.reply(200, to_json(exchange.backend().retry_checkpoint(exchange.path("name"))));
}

void get_metrics(Exchange& exchange) {
  std::string text = exchange.backend().metrics();
  exchange.begin(200, "text/plain; version=0.0.4; charset=utf-8");
  exchange.write(text);
}

void list_secrets(Exchange& exchange) { exchange.reply(200, list(exchange.backend().secrets())); }

void put_secret(Exchange& exchange) {
  const std::string& name = exchange.path("name");
  bool created = exchange.backend().put_secret(name, exchange.request().body);
  exchange.reply(created ? 201 : 200, {{"name", name}, {"created", created}});
}

void remove_secret(Exchange& exchange) {
  exchange.backend().remove_secret(exchange.path("name"));
  exchange.reply(200, {{"removed", exchange.path("name")}});
}

void list_tokens(Exchange& exchange) {
  exchange.reply(200, list(exchange.backend().tokens().list()));
}

void create_token(Exchange& exchange) {
  json body = exchange.body_object({"name", "scope", "workspace", "folders"});
  auto text = [&](const char* key) {
    if (body.contains(key) && body[key].is_string()) return body[key].get<std::string>();
    throw Error(Code::kInvalid, "read", key, "it is missing or no text",
                "send {\"name\": \"ci\", \"scope\": \"deploy\"}");
  };
  std::string name = text("name");
  auto scope = parse_scope(text("scope"));
  if (!scope)
    throw Error(Code::kInvalid, "read", "scope", "there is no such scope",
                "give read, deploy or admin");
  std::string workspace = body.contains("workspace") ? text("workspace") : "";
  std::vector<std::string> folders;
  for (const json& folder : body.value("folders", json::array())) {
    if (!folder.is_string())
      throw Error(Code::kInvalid, "read", "folders", dump(folder) + " is no text", "send paths");
    folders.push_back(folder);
  }
  auto [token, kept] = exchange.backend().tokens().create(name, *scope, workspace, folders);
  json answer = to_json(kept);
  answer["token"] = token;
  exchange.reply(201, answer);
}

void remove_token(Exchange& exchange) {
  exchange.backend().tokens().remove(exchange.path("name"));
  exchange.reply(200, {{"removed", exchange.path("name")}});
}

void import_image(Exchange& exchange) {
  json body = exchange.body_object({"reference"});
  if (!body.contains("reference") || !body["reference"].is_string() ||
      body["reference"].get<std::string>().empty()) {
    throw Error(Code::kInvalid, "read", "reference", "it is missing or no text",
                "send {\"reference\": \"docker://docker.io/library/python:3.12\"}");
  }
  auto begin_once = [&] {
    if (!exchange.begun()) exchange.begin(200, "application/x-ndjson");
  };
  // An import goes on when the client goes: the next try finds it done. Errors before the first
  // line keep their status.
  auto image = exchange.backend().import_image(body["reference"].get<std::string>(),
                                               [&](const std::string& line) {
                                                 begin_once();
                                                 exchange.write(dump({{"progress", line}}) + "\n");
                                               });
  begin_once();
  exchange.write(dump({{"image", to_json(image)}}) + "\n");
}

void list_images(Exchange& exchange) { reply_shown(exchange, list(exchange.backend().images())); }

void remove_image(Exchange& exchange) {
  exchange.backend().remove_image(exchange.path("id"));
  exchange.reply(200, {{"removed", exchange.path("id")}});
}

}  // namespace thaw::api
