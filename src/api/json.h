// The shapes of the API's answers, as docs/openapi.yaml describes them.
#pragma once

#include <string>

#include <nlohmann/json.hpp>

#include "api/backend.h"
#include "util/error.h"

namespace thaw::api {

nlohmann::json to_json(const pods::PodView& pod);
nlohmann::json to_json(const pods::DeployResult& result);
nlohmann::json to_json(const state::ReplicaRow& replica);
nlohmann::json to_json(const state::CheckpointRow& checkpoint);
nlohmann::json to_json(const state::EventRow& event);
nlohmann::json to_json(const state::ImageRow& image);
nlohmann::json to_json(const pods::CheckResult& check);
nlohmann::json to_json(const Token& token);
nlohmann::json to_json(const pods::SecretRow& secret);
nlohmann::json version_json(std::int64_t last_event);
// {"error": {…}}, and back. from_error_json takes anything: what is no error of ours becomes
// kInternal.
nlohmann::json error_json(const Error& error);
Error from_error_json(const nlohmann::json& json);

// One line; bytes that are no UTF-8 become U+FFFD, since a program's output and names may hold any.
std::string dump(const nlohmann::json& json);
// HTTP status of an error.
int http_status(Code code);

}  // namespace thaw::api
