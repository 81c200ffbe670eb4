// Reads argv by a Command tree.
#pragma once

#include <string>

#include "cli/command.h"

namespace thaw::cli {

struct Parsed {
  const Command* command =
      nullptr;  // to run; null: `exit_code` is the end (help, version, a mistake)
  int exit_code = 0;
};

// Fills the targets. Prints help, or the mistake, itself.
Parsed parse(const Command& root, Context& context, int argc, char** argv);

}  // namespace thaw::cli
