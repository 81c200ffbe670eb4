#include "cli/run.h"

#include <unistd.h>

#include <csignal>
#include <cstring>

#include "cli/command.h"
#include "cli/parser.h"
#include "lifecycle/shim.h"
#include "util/error.h"
#include "util/holder.h"

namespace thaw::cli {
namespace {

void leave_on_interrupt() {
  struct sigaction action {};
  action.sa_handler = [](int) { ::_exit(kInterrupted); };
  ::sigaction(SIGINT, &action, nullptr);
}

}  // namespace

int run(int argc, char** argv) {
  // One shim a replica, on the path of every start: it gets here before anything is built up.
  if (argc > 1 && std::strcmp(argv[1], "shim") == 0) return lifecycle::shim_main(argc, argv);
  if (argc > 1 && std::strcmp(argv[1], "holder") == 0) return holder_main(argc, argv);
  leave_on_interrupt();
  try {
    Context context;
    Command root = thaw_command();
    Parsed parsed = parse(root, context, argc, argv);
    return parsed.command ? parsed.command->run(context) : parsed.exit_code;
  } catch (const Error& error) {
    print_error("thaw: " + std::string(error.what()));
    return exit_code_of(error);
  } catch (const std::exception& error) {
    print_error("thaw: an error of its own: " + std::string(error.what()) + "; please report it");
    return kFailed;
  }
}

}  // namespace thaw::cli
