// Named steps of the ways a replica's life can go, at which a test lets something die. Without
// THAW_FAULT in the environment a step does nothing; `thaw debug faults` lists them.
//
//   THAW_FAULT=NAME[:VICTIM]  at that step SIGKILL ends the victim: `self` (the default, the
//   process
//                             that comes to the step) or one that the step knows: shim, daemon,
//                             criu, runc, container. `hold` kills nobody: the step waits until the
//                             file MARK.go appears.
//   THAW_FAULT_MARK=FILE      made when the step is reached; the step acts only while it is absent,
//                             so once. Without it every time.
#pragma once

#include <initializer_list>
#include <string_view>

namespace thaw {

struct FaultStep {
  std::string_view name, where, victims;  // victims: separated by blanks
};

// In the order in which they are reached.
inline constexpr FaultStep kFaultSteps[] = {
    {"slot.network", "a slot has its link, nothing is written down", "self"},
    {"slot.noted", "slot.json is written, there is no shim yet", "self"},
    {"slot.shim", "the shim runs, it is not prepared", "self shim"},
    {"slot.prepared", "the slot can be taken", "self shim"},
    {"shim.prepare.cgroup", "the shim has its cgroup and no keeper", "self daemon"},
    {"shim.prepare.listens", "the shim listens, its CRIU is not started", "self daemon"},
    {"shim.prepare.criu", "the waiting CRIU is started", "self daemon criu"},
    {"replica.asked", "the replica's row is written", "self"},
    {"cold.slot", "a slot is taken for a cold start", "self shim"},
    {"cold.asked", "the replica is starting, the shim was not told", "self shim"},
    {"shim.cold.rootfs", "the overlay is mounted", "self daemon"},
    {"shim.cold.create", "the OCI runtime is creating", "self daemon runc"},
    {"shim.cold.created", "the container is created", "self daemon container"},
    {"shim.cold.masked", "its paths are masked, it is not started", "self daemon container"},
    {"shim.cold.started", "the container runs, nobody knows", "self daemon container"},
    {"cold.runs", "the replica is warming", "self shim container"},
    {"warm.holds", "its condition holds", "self shim container"},
    {"dump.leased", "the checkpoint is `creating`", "self"},
    {"create.closed", "a ready replica is to be dumped, its gate is closed", "self shim container"},
    {"hook.begun", "a program of the pod's is to run in the container", "self shim"},
    {"dump.asked", "the replica is checkpointing, the shim was not told", "self shim container"},
    {"shim.dump.begun", "folders are made, CRIU is not started", "self daemon container"},
    {"shim.dump.criu", "CRIU is started and asked for nothing", "self daemon criu container"},
    {"shim.dump.frozen", "all is frozen and in the images", "self daemon criu container"},
    {"shim.dump.captured", "the filesystem is copied, all is frozen", "self daemon criu container"},
    {"shim.dump.done", "the container runs again", "self daemon container"},
    {"dump.answered", "the dump is good, nobody works on it", "self shim container"},
    {"seal.begun", "the dump is to be sealed", "self"},
    {"shim.collect.begun", "the dump's images are in memory only", "self daemon container"},
    {"seal.hashed", "all is hashed, there is no manifest", "self"},
    {"seal.written", "the manifest is written, the row says `creating`", "self"},
    {"seal.sealed", "the checkpoint is `sealed`", "self"},
    {"proof.slot", "the proof has a slot", "self shim"},
    {"proof.restored", "the proof's replica runs", "self shim container"},
    {"proof.validated", "the proof's replica has answered", "self shim container"},
    {"proof.cleaned", "the proof's replica is gone, the row says `verifying`", "self"},
    {"rest.begun", "a checkpoint's memory is to be compressed", "self"},
    {"rest.written", "it is compressed, the plain files are there", "self"},
    {"rest.removed", "a plain file is gone", "self"},
    {"inflate.begun", "a checkpoint is needed, its memory is compressed", "self"},
    {"inflate.written", "the plain file is written, it has no name", "self"},
    {"inflate.placed", "both files are there", "self"},
    {"gate.ready", "the replica is ready, its gate is closed", "self shim container"},
    {"restore.found", "a checkpoint is found", "self"},
    {"restore.slot", "a slot is taken for a restore", "self shim"},
    {"restore.asked", "the replica is restoring, the shim was not told", "self shim"},
    {"shim.restore.mounts", "the overlay is mounted", "self daemon criu"},
    {"shim.restore.asked", "memory is served, CRIU was not asked", "self daemon criu"},
    {"shim.restore.resuming", "all is restored, nothing runs", "self daemon criu"},
    {"shim.restore.open", "the link is open, nothing runs", "self daemon criu"},
    {"shim.restore.done", "the processes run, nobody knows", "self daemon container"},
    {"restore.resumed", "the replica is validating", "self shim container"},
    {"restore.validated", "the replica has answered its probe", "self shim container"},
    {"standby.rested", "a standby waits, nobody has taken it", "self shim"},
    {"standby.taken", "it is taken, and frozen still", "self shim"},
    {"pause.begun", "a replica that nobody uses pauses, its connections are not finished",
     "self shim container"},
    {"pause.rested", "it waits, frozen or in a checkpoint", "self"},
    {"pause.needed", "it is needed again, and frozen or in a checkpoint still", "self"},
    {"fallback.begun", "the restore has failed, its slot is there", "self"},
    {"fallback.cleaned", "nothing of the restore is left", "self"},
    {"stop.intended", "the stop is written down, nothing has been done", "self"},
    {"stop.draining", "the replica is draining", "self shim container"},
    {"stop.stopping", "the replica is stopping, no signal was sent", "self shim container"},
    {"stop.signalled", "SIGTERM was sent", "self shim"},
    {"stop.ended", "the container has ended, its slot is there", "self shim"},
    {"shim.destroy.begun", "the slot is to be removed", "self daemon"},
    {"shim.destroy.killed", "the slot's cgroup is empty", "self daemon"},
    {"stop.removed", "the slot is gone, the row says `stopping`", "self"},
    {"checkpoint.deleted", "the checkpoint is `deleted`, its files are there", "self"},
    {"pod.stopped", "a pod to be removed has been stopped", "self"},
    {"pod.ended", "it has no replicas any more, its row is there", "self"},
    {"pod.removed", "its row is gone, its checkpoints are there", "self"},
    {"deploy.written", "a version is written down, nothing follows from it", "self"},
    {"scale.written", "a number of replicas is written down, nothing follows from it", "self"},
    {"shutdown.begun", "the daemon ends, its replicas run", "self"},
    {"shutdown.detached", "its replicas are let go of", "self"},
    {"handover.begun", "another daemon is to take over, nothing has been let go of", "self"},
    {"handover.released", "all is let go of, the other daemon does not know", "self"},
    {"handover.taken", "this daemon has taken over, and has nothing yet", "self"},
    {"listeners.taken", "the earlier daemon's listening sockets are here, no pod is", "self"},
    {"adopt.slot", "a slot of an earlier daemon is taken back, its replica is not", "self"},
    {"recover.begun", "what an earlier daemon left of checkpoints is there", "self"},
};

// A step's name. One that is not in the list does not compile.
class FaultName {
 public:
  // NOLINTNEXTLINE(google-explicit-constructor): a step is named by a literal.
  consteval FaultName(const char* name) : name_(name) {
    for (const FaultStep& step : kFaultSteps)
      if (step.name == name_) return;
    throw "add it to kFaultSteps";
  }
  std::string_view text() const { return name_; }

 private:
  std::string_view name_;
};

struct Victim {
  std::string_view name;
  int pid = 0;
};

// From any thread. `victims`: who else can be ended here.
void fault_point(FaultName name, std::initializer_list<Victim> victims = {});

}  // namespace thaw
