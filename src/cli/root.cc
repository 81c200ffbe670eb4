#include "cli/command.h"

namespace thaw::cli {

Command thaw_command() {
  Command root;
  root.name = "thaw";
  root.summary =
      "Pods that start warm: containers checkpointed when ready and restored from there.";
  root.description =
      "The first replica of a pod starts the ordinary way; when the condition in its specification "
      "holds, it is "
      "checkpointed with CRIU, and every later replica starts from that checkpoint. Every command "
      "but daemon and doctor "
      "talks to a daemon.";
  root.examples = {"thaw deploy pod.yaml", "thaw scale web 4 --wait", "thaw ps"};
  root.commands = {daemon_command(),     deploy_command(),     serve_command(),   init_command(),
                   ls_command(),         ps_command(),         logs_command(),    exec_command(),
                   scale_command(),      stop_command(),       rm_command(),      events_command(),
                   trace_command(),      checkpoint_command(), image_command(),   secret_command(),
                   token_command(),      doctor_command(),     version_command(), schema_command(),
                   completion_command(), docs_command(),       debug_command()};
  return root;
}

}  // namespace thaw::cli
