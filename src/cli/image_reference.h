#pragma once

#include <string>

namespace thaw::cli {

// oci:./images/python:3.12 as the daemon needs it, whose working directory is another: with an
// absolute path.
std::string absolute_reference(const std::string& reference);

}  // namespace thaw::cli
