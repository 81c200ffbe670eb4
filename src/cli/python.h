// Pods that are written in Python: FILE.py:NAME is loaded, built and deployed by the package `thaw`
// of python3, which speaks to the daemon by itself.
#pragma once

#include <string>
#include <vector>

#include "cli/context.h"

namespace thaw::cli {

// Whether it is FILE.py:NAME.
bool is_python_pod(const std::string& argument);

// Becomes `python3 -m thaw ARGUMENTS`. Returns only by an Error: there is no python3, or no
// package.
int run_python(const Context& context, const std::vector<std::string>& arguments);

}  // namespace thaw::cli
