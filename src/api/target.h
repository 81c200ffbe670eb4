// What a request asks for: its path and query.
#pragma once

#include <string_view>
#include <vector>

#include "api/exchange.h"

namespace thaw::api {

// The parts between separators that are not empty.
std::vector<std::string_view> split(std::string_view text, char separator);

// Splits a request's target into normalised, decoded path segments and query. kInvalid for bad
// percent-encoding.
void parse_target(Request& request);

}  // namespace thaw::api
