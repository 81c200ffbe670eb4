// The shim: one small process for each replica. It lives inside the replica's network, uts and ipc
// namespaces and in a mount namespace of its own, is the parent of the container (cold or
// restored), owns its stdio and exit status, starts CRIU for dump and restore, and outlives the
// daemon.
#pragma once

namespace thaw::lifecycle {

// `thaw shim DIRECTORY`: serves the control socket that is its descriptor 3 and
// DIRECTORY/shim.sock. Returns the exit code.
int shim_main(int argc, char** argv);

}  // namespace thaw::lifecycle
