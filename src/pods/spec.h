// Reads and writes pod specifications. One schema for YAML and JSON, strictly checked: an unknown
// key, a wrong type, a bad unit, a value out of range is an Error (kInvalid) whose object is
// `file:line: key.path` and whose remedy says what is allowed (with "did you mean" for a near
// miss).
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "state/spec.h"

namespace thaw::pods {

// `file` is used in messages; relative paths (rootfs, mount sources, oci: and dir: and archive
// images) are taken from `base_dir`.
state::PodSpec parse_spec(std::string_view text, const std::string& file,
                          const std::string& base_dir);
// What parse_spec(dump) reads back to the same value. Absolute paths, units in plain form (memory
// in bytes, durations by format_duration), defaults included.
nlohmann::json to_json(const state::PodSpec& spec);
state::PodSpec from_json(const nlohmann::json& json);
// Checks what the schema cannot (name form, targets absolute and distinct, ports distinct,
// min<=max, command or image given, checkpoint without a condition, python condition's form,
// regular expressions compile). Called by parse_spec.
void validate(const state::PodSpec& spec, const std::string& file);
// Short forms of the command line's --checkpoint-when: http:/health (first port), http:8000/health,
// tcp, tcp:8000, file:/path, log:REGEX, python:module:function, exec:COMMAND (split on spaces),
// notify, workers:N, after:5s, or JSON of the long form. kInvalid lists the forms.
state::Condition parse_condition_flag(const std::string& text,
                                      const std::vector<state::Port>& ports);
std::string describe(
    const state::Condition& condition);  // one line for people: "http :8000/health is 200"
nlohmann::json condition_json(const state::Condition& condition);
// The schema as a JSON Schema document (for docs, editors and `thaw schema`), made from the same
// table.
nlohmann::json json_schema();

}  // namespace thaw::pods
