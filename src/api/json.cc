#include "api/json.h"

#include <unistd.h>

#include "pods/spec.h"
#include "util/clock.h"
#include "util/version.h"

namespace thaw::api {
namespace {

using nlohmann::json;

// NAME_at for people and NAME_us for programs; null and 0 when it has not happened.
void put_time(json& object, const std::string& name, std::int64_t us) {
  object[name + "_at"] = us ? json(format_wall(us)) : json();
  object[name + "_us"] = us;
}

json text_or_null(const std::string& text) { return text.empty() ? json() : json(text); }

std::string url_host(const std::string& address) {
  if (address == "0.0.0.0") return "127.0.0.1";
  if (address == "::") return "[::1]";
  return address.find(':') == std::string::npos ? address : "[" + address + "]";
}

json ports_json(const state::PodSpec& spec) {
  json ports = json::array();
  for (auto& port : spec.ports) {
    json url = port.host == 0
                   ? json()
                   : json("http://" + url_host(port.address) + ":" + std::to_string(port.host));
    ports.push_back({{"container", port.container},
                     {"host", port.host},
                     {"address", port.address},
                     {"url", url}});
  }
  return ports;
}

constexpr Code kCodes[] = {Code::kInvalid,     Code::kNotFound, Code::kConflict,
                           Code::kUnavailable, Code::kTimeout,  Code::kCancelled,
                           Code::kUnsupported, Code::kCorrupt,  Code::kExhausted,
                           Code::kDenied,      Code::kSystem,   Code::kInternal};

}  // namespace

json to_json(const pods::PodView& pod) {
  json backoff;
  if (pod.dump_failures) {
    backoff = {{"failures", pod.dump_failures}, {"reason", text_or_null(pod.dump_failure)}};
    put_time(backoff, "until", pod.dump_pause_until_us);
  }
  json crash_loop;
  if (pod.crash_failures > 1) {
    crash_loop = {{"failures", pod.crash_failures}, {"reason", text_or_null(pod.crash_reason)}};
    put_time(crash_loop, "until", pod.crash_until_us);
  }
  json object{{"name", pod.row.name},
              {"version", pod.row.version},
              {"stopped", pod.row.stopped},
              {"scale", pod.row.desired},
              {"desired", pod.desired},
              {"ready", pod.ready},
              {"total", pod.total},
              {"standby", pod.standby},
              {"paused", pod.paused},
              {"ports", ports_json(pod.spec)},
              {"problem", text_or_null(pod.problem)},
              {"checkpoint",
               {{"enabled", pod.spec.checkpoint.enabled},
                {"effective", pod.checkpoint_effective},
                {"reason", text_or_null(pod.checkpoint_reason)},
                {"id", text_or_null(pod.checkpoint)},
                {"backoff", backoff}}},
              {"crash_loop", crash_loop},
              {"connections", {{"held", pod.held}, {"active", pod.active}}},
              {"program", pod.row.program},
              {"spec", pods::to_json(pod.spec)}};
  put_time(object, "created", pod.row.created_us);
  put_time(object, "updated", pod.row.updated_us);
  return object;
}

json to_json(const Token& token) {
  json object{{"name", token.name},
              {"scope", name(token.scope)},
              {"workspace", text_or_null(token.workspace)},
              {"folders", token.folders}};
  put_time(object, "created", token.created_us);
  return object;
}

json to_json(const pods::SecretRow& secret) {
  json object{{"name", secret.name}};
  put_time(object, "updated", secret.updated_us);
  return object;
}

json to_json(const pods::DeployResult& result) {
  return {{"pod", to_json(result.pod)},
          {"created", result.created},
          {"changed", result.changed},
          {"warnings", result.warnings}};
}

json to_json(const state::ReplicaRow& replica) {
  json object{{"id", replica.id},
              {"pod", replica.pod},
              {"version", replica.version},
              {"state", replica.state},
              {"started_from", replica.started_from},
              {"intent", text_or_null(replica.intent)},
              {"outcome", text_or_null(replica.outcome)},
              {"reason", text_or_null(replica.reason)},
              {"slot", text_or_null(replica.slot)},
              {"hostname", replica.hostname},
              {"address", text_or_null(replica.address)},
              {"address6", text_or_null(replica.address6)},
              {"pid", replica.pid ? json(replica.pid) : json()},
              {"exit_code", replica.exit_code ? json(*replica.exit_code) : json()},
              {"gate_open", replica.gate_open},
              {"proof", replica.proof},
              {"phases", state::to_json(replica.phases)}};
  put_time(object, "created", replica.created_us);
  put_time(object, "ready", replica.ready_us);
  put_time(object, "ended", replica.ended_us);
  // From the request on, by the clock of the phases.
  object["ready_in_us"] = nullptr;
  for (const auto& phase : replica.phases) {
    if (phase.name != "ready") continue;
    object["ready_in_us"] = phase.start_us;
    break;
  }
  return object;
}

json to_json(const state::CheckpointRow& checkpoint) {
  json object{{"id", checkpoint.id},
              {"pod", checkpoint.pod},
              {"replica", text_or_null(checkpoint.replica)},
              {"fingerprint", checkpoint.fingerprint},
              {"status", checkpoint.status},
              {"reason", text_or_null(checkpoint.reason)},
              {"bytes", checkpoint.bytes},
              {"memory_bytes", checkpoint.memory_bytes},
              {"stored_bytes", checkpoint.stored_bytes},
              {"compressed", checkpoint.compressed},
              {"freeze_us", checkpoint.freeze_us},
              {"dump_us", checkpoint.dump_us},
              {"restores", checkpoint.restores},
              {"failures_in_a_row", checkpoint.failures_in_a_row}};
  put_time(object, "created", checkpoint.created_us);
  put_time(object, "updated", checkpoint.updated_us);
  return object;
}

json to_json(const state::EventRow& event) {
  return {{"id", event.id},
          {"time", format_wall(event.time_us)},
          {"time_us", event.time_us},
          {"type", event.type},
          {"pod", text_or_null(event.pod)},
          {"replica", text_or_null(event.replica)},
          {"checkpoint", text_or_null(event.checkpoint)},
          {"message", event.message},
          {"data", event.data}};
}

json to_json(const state::ImageRow& image) {
  json object{{"id", image.id},
              {"reference", image.reference},
              {"bytes", image.bytes},
              {"config", image.config}};
  put_time(object, "created", image.created_us);
  return object;
}

json to_json(const pods::CheckResult& check) {
  using Status = pods::CheckResult::Status;
  const char* status = check.status == Status::kPass   ? "pass"
                       : check.status == Status::kWarn ? "warn"
                                                       : "fail";
  return {{"name", check.name},
          {"status", status},
          {"found", check.found},
          {"remedy", text_or_null(check.remedy)}};
}

json version_json(std::int64_t last_event) {
  return {{"version", kVersion}, {"api", "v1"}, {"pid", ::getpid()}, {"last_event", last_event}};
}

json error_json(const Error& error) {
  return {{"error",
           {{"code", code_name(error.code())},
            {"message", error.what()},
            {"action", error.action()},
            {"object", error.object()},
            {"cause", error.cause()},
            {"remedy", error.remedy()}}}};
}

Error from_error_json(const json& body) {
  auto text = [&](const char* key) -> std::string {
    const json& error = body["error"];
    return error.contains(key) && error[key].is_string() ? error[key].get<std::string>() : "";
  };
  if (!body.is_object() || !body.contains("error") || !body["error"].is_object()) {
    return Error(Code::kInternal, "understand the daemon's answer", {}, dump(body),
                 "check that --host points at a thaw daemon of this version");
  }
  Code code = Code::kInternal;
  for (Code candidate : kCodes) {
    if (code_name(candidate) == text("code")) code = candidate;
  }
  return Error(code, text("action"), text("object"), text("cause"), text("remedy"));
}

std::string dump(const json& value) {
  return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

int http_status(Code code) {
  switch (code) {
    case Code::kInvalid:
      return 400;
    case Code::kNotFound:
      return 404;
    case Code::kConflict:
      return 409;
    case Code::kUnavailable:
      return 503;
    case Code::kTimeout:
      return 504;
    case Code::kCancelled:
      return 409;
    case Code::kUnsupported:
      return 501;
    case Code::kExhausted:
      return 507;
    case Code::kDenied:
      return 403;
    case Code::kCorrupt:
    case Code::kSystem:
    case Code::kInternal:
      return 500;
  }
  return 500;
}

}  // namespace thaw::api
