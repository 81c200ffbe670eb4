// Desired state: pods, their replicas, their checkpoints. What the API calls; floor 4's face.
// Thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "lifecycle/host.h"
#include "pods/handover.h"
#include "pods/secret_store.h"
#include "state/database.h"
#include "state/spec.h"
#include "util/process.h"

namespace thaw::pods {

struct PodView {
  state::PodRow row;
  state::PodSpec spec;
  std::int64_t desired = 0;              // replicas: asked for, or called for by connections
  int ready = 0, total = 0;              // replicas now, without standbys
  int standby = 0;                       // those that wait to be taken
  int paused = 0;                        // those that wait until they are needed again
  bool checkpoint_effective = false;     // asked for, and possible here
  std::string checkpoint_reason;         // why not, when asked for
  std::string problem;                   // what keeps it from being reached or started; "": nothing
  int dump_failures = 0;                 // in a row; 0: no back-off
  std::int64_t dump_pause_until_us = 0;  // wall clock: no dump before
  std::string dump_failure;              // the last one's reason
  int crash_failures = 0;                // starts that failed in a row; 0 or 1: no crash loop
  std::int64_t crash_until_us = 0;       // wall clock: no start before
  std::string crash_reason;              // of the last one
  std::string checkpoint;  // id of the one that the next replica would start from; "" when none
  std::int64_t held = 0, active = 0;  // connections
};

struct DeployResult {
  PodView pod;
  bool created = false, changed = false;
  std::vector<std::string> warnings;
};

struct CheckResult {  // one line of `thaw doctor`
  std::string name;
  enum class Status { kPass, kWarn, kFail } status = Status::kPass;
  std::string found, remedy;
};

struct ExecStream {  // the caller's ends of an exec session
  Fd input;          // write: the process's stdin (or the terminal)
  Fd output;         // read: stdout (or the terminal)
  Fd error;          // read: stderr; none with a terminal
  std::function<void(int rows, int columns)> resize;
  std::function<void(int signal)> signal;
  std::function<ExitStatus()> wait;  // blocks until the process ends
};

class Controller {
 public:
  explicit Controller(lifecycle::Settings settings);
  ~Controller();

  // Takes back living replicas from their shims, cleans up after dead ones, then reconciles. Called
  // once, before the API listens.
  void start();
  // Ends the daemon: replicas run on (`stop_replicas` false) or are stopped.
  void shutdown(bool stop_replicas);
  // Another daemon takes the place of this one: nothing is decided here any more, the data
  // directory is free, and connections go on. What is left of those. `end_requests`: after it
  // nobody calls the functions below any more.
  Remainder hand_over(const std::function<void()>& end_requests);

  state::Database& database();
  const lifecycle::Settings& settings() const;
  Holder* holder();  // of listening sockets; may be none

  DeployResult deploy(const state::PodSpec& spec);
  std::vector<PodView> pods();
  PodView pod(const std::string& name);  // kNotFound with the names that exist
  // kInvalid outside 0..max; without a number nothing is changed. wait_us > 0: returns when as many
  // as are wanted are ready, all of this version (or kTimeout, kUnavailable with the reason of the
  // newest failure).
  PodView scale(const std::string& name, std::optional<int> replicas, std::int64_t wait_us = 0);
  void stop(const std::string& name);                // all replicas; stays deployed
  void remove(const std::string& name, bool force);  // kConflict while replicas run, unless force
  std::vector<state::ReplicaRow> replicas(const std::string& pod = {}, bool all = false);
  state::ReplicaRow replica(
      const std::string& id_or_prefix_or_pod);  // a pod's name: its newest running replica
  void stop_replica(const std::string& id);

  // Path of the replica's log (CRI lines); it is followed by inotify. Rotated to path + ".1".
  std::string log_path(const std::string& replica);
  ExecStream exec(const std::string& replica, const std::vector<std::string>& argv, bool terminal,
                  int rows, int columns);

  std::vector<state::CheckpointRow> checkpoints(const std::string& pod = {});
  state::CheckpointRow checkpoint(const std::string& id_or_prefix);
  nlohmann::json inspect_checkpoint(const std::string& id_or_prefix);  // the manifest and the row
  // Dumps a ready replica of the pod now (its traffic is held meanwhile). Waits for the end.
  state::CheckpointRow create_checkpoint(const std::string& pod);
  void remove_checkpoint(const std::string& id_or_prefix);
  // Reads all of it. Error kCorrupt when it is broken: it is not offered any more.
  state::CheckpointRow verify_checkpoint(const std::string& id_or_prefix);
  // Compresses its memory, now. Error kConflict when something uses it.
  state::CheckpointRow compress_checkpoint(const std::string& id_or_prefix);
  // Forgets the failures of the pod: the next cold start dumps, the next start restores.
  PodView retry_checkpoint(const std::string& pod);

  state::ImageRow import_image(const std::string& reference,
                               const std::function<void(const std::string&)>& progress);
  std::vector<state::ImageRow> images();
  void remove_image(const std::string& id_or_reference);

  // Secrets that are kept here for pods to name.
  bool put_secret(const std::string& name, std::string_view value);  // true: it is new
  std::vector<SecretRow> secrets();
  void remove_secret(const std::string& name);  // kConflict while a pod names it

  std::vector<CheckResult> doctor();
  std::string metrics();  // for Prometheus

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// The checks of `thaw doctor`; also run without a daemon.
std::vector<CheckResult> run_doctor(const lifecycle::Settings& settings);

}  // namespace thaw::pods
