// Which CRIU is used, how it is started, and its cached knowledge of the kernel.
#pragma once

#include <string>
#include <vector>

namespace thaw::checkpoint {

struct CriuInstall {
  std::vector<std::string>
      command;          // argv prefix: one program, or a private dynamic loader with its libraries
  std::string version;  // "4.2.1"
};

// Looks in `home` when given, else in $THAW_CRIU_HOME, else /usr/local/lib/thaw/criu, else the criu
// in PATH. A home holds sbin/criu, lib/ (its own libc and loader) and VERSION. Where this process
// lacks CAP_SYS_RESOURCE the home's lib/thaw-prlimit.so is loaded into CRIU (docs/criu.md). Error
// kUnsupported when none is found or it is older than 4.2: the remedy says how to install it.
CriuInstall find_criu(const std::string& home = {});

// CRIU probes the kernel at each start (45 to 100 ms) unless it finds /run/criu.kdat, which it
// writes only where /run is a tmpfs. Makes that file, once a boot, kernel and CRIU version, by
// running CRIU in a mount namespace of its own. Called at the daemon's start. Quick when it is
// there.
void prime_kernel_cache(const CriuInstall& criu);

}  // namespace thaw::checkpoint
