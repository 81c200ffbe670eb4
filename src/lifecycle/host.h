// What the parts of one daemon share: settings, paths, and what the host can do.
#pragma once

#include <cstdint>
#include <string>

namespace thaw::lifecycle {

struct Settings {
  std::string data_dir = "/var/lib/thaw";
  std::string runtime = "runc";  // the OCI runtime for cold starts: a name in PATH or a path
  std::string criu_home;         // "" : found (see checkpoint/criu_install.h)
  std::string thaw_binary = "/proc/self/exe";
  int slots = 2;  // prepared ahead
  bool keep_logs = true;
  std::uint64_t checkpoint_quota = 0;  // bytes all checkpoints may take; 0: what the disk has

  std::string database() const { return data_dir + "/thaw.db"; }
  std::string slot_dir(const std::string& slot) const { return data_dir + "/slots/" + slot; }
  std::string log_dir(const std::string& replica) const { return data_dir + "/logs/" + replica; }
  std::string checkpoint_dir(const std::string& id) const {
    return data_dir + "/checkpoints/" + id;
  }
};

}  // namespace thaw::lifecycle
