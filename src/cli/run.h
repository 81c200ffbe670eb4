#pragma once

namespace thaw::cli {

// The program: finds the sub-command, runs it, turns errors into one sentence and an exit code.
int run(int argc, char** argv);

}  // namespace thaw::cli
