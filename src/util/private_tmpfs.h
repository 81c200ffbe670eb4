// A place on the host where one can work and leave nothing.
#pragma once

#include <functional>
#include <string>

namespace thaw {

// Runs `work` on a thread of its own whose mounts nobody else sees, with an empty tmpfs at `path`.
// All it mounts goes with the thread; processes that it starts see it, too. What it throws is
// thrown here.
void with_private_tmpfs(const std::string& path, const std::function<void()>& work);

}  // namespace thaw
