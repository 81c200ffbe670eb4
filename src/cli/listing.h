// What the listing verbs share.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "cli/command.h"

namespace thaw::cli {

std::vector<Option> listing_options(Listing& listing, const std::string& key);
// `key` is what -q prints of each row.
int show_listing(const Context& context, const Listing& listing, const nlohmann::json& rows,
                 const char* key, const std::function<Table()>& table);
std::string ports_text(const nlohmann::json& ports);  // "127.0.0.1:9000->8000"

}  // namespace thaw::cli
