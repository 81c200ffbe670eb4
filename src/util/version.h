// The version of this build. A test holds it against the build system's.
#pragma once

#include <string_view>

namespace thaw {
inline constexpr std::string_view kVersion = "0.1.0";
}  // namespace thaw
