// JSON that comes from outside.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace thaw {

enum class Fractions { kAllowed, kRefused };

// Error kCorrupt, about `object`, when it is not JSON, is more than 64 levels deep (whatever copies
// or prints it calls itself as often), or has a number that is not whole (or beyond 64 bits) where
// those are refused: to convert such a one to an integer is undefined.
nlohmann::json parse_json(std::string_view text, const std::string& object,
                          Fractions fractions = Fractions::kAllowed);

}  // namespace thaw
