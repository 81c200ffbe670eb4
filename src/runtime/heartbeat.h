// Programs that judge their own workers by the age of a file see a freeze as a worker that hangs.
#pragma once

#include <vector>

namespace thaw::runtime {

// To be called while the processes are frozen, before they run on. gunicorn's arbiter kills a
// worker whose unlinked heartbeat file it finds too old, and after a freeze that is longer than its
// time-out it may look before the worker had a chance to touch it: the files are made fresh.
// Processes that have ended meanwhile are passed over.
void freshen_heartbeats(const std::vector<int>& pids);

}  // namespace thaw::runtime
