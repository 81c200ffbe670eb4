#include "util/parse_json.h"

#include "util/error.h"

namespace thaw {

nlohmann::json parse_json(std::string_view text, const std::string& object, Fractions fractions) {
  using nlohmann::json;
  constexpr int kMostDepth = 64;
  auto refuse = [&](const std::string& cause) {
    throw Error(Code::kCorrupt, "read the JSON of", object, cause);
  };
  auto on_event = [&](int depth, json::parse_event_t event, json& value) {
    bool opens = event == json::parse_event_t::object_start ||
                 event == json::parse_event_t::array_start;  // inside `depth` others
    if (opens && depth >= kMostDepth) refuse(fmt::format("it has more than {} levels", kMostDepth));
    if (fractions == Fractions::kRefused && event == json::parse_event_t::value &&
        value.is_number_float())
      refuse("a number is not whole, or is too large");
    return true;
  };
  try {
    return json::parse(text, on_event);
  } catch (const json::exception& error) {
    refuse(error.what());
  }
  return {};
}

}  // namespace thaw
