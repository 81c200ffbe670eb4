#pragma once

#include <string>

#include "cli/context.h"

namespace thaw::cli {

// oci:./images/python:3.12 as the daemon needs it, whose working directory is another: with an
// absolute path.
std::string absolute_reference(const std::string& reference);

// Has the daemon import it, telling how that goes when stderr is a terminal; the image's row.
nlohmann::json import_image(Context& context, const std::string& reference);

}  // namespace thaw::cli
