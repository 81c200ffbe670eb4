"""A stop of any kind during every phase of a cold start, a dump, a proof and a restore: it is a stop, whatever is seen of it afterwards.
It marks no checkpoint and counts as no crash. As a program: every phase with every kind; tests/main/test_intents.py takes each phase once."""

import contextlib
import http.client
import pathlib
import sys
import threading

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "lib"), str(HERE.parent / "main")]

import thawtest  # noqa: E402
from common import Pod  # noqa: E402
from kill_anywhere import UNDER_WAY  # noqa: E402
from thawtest import check, equal, wait_for  # noqa: E402

GO = {"file": "/ctl/go"}
COLD = ("cold.slot", "cold.asked", "shim.cold.create", "shim.cold.started", "cold.runs", "warm.holds", "dump.asked", "shim.dump.criu", "shim.dump.frozen",
        "dump.answered", "seal.hashed", "proof.restored", "gate.ready")  # fmt: skip
RESTORE = ("restore.found", "restore.slot", "restore.asked", "shim.restore.mounts", "shim.restore.asked", "shim.restore.resuming", "shim.restore.done",
           "restore.resumed", "restore.validated", "gate.ready")  # fmt: skip
INTENTS = ("scale", "stop", "remove", "shutdown", "shutdown with replicas")
PHASES = [("cold", step) for step in COLD] + [("restore", step) for step in RESTORE]


class Intents:
    def __init__(self):
        self.daemon = thawtest.Daemon(slots=1)
        self.daemon.start()
        self.number = 0

    def wish(self, intent, pod):
        """Asks for it, as somebody else would while the step is held; a thread when it waits for the end."""
        daemon = self.daemon
        if intent == "scale":
            daemon.scale(pod.name, 0, wait=False)
        elif intent == "stop":
            daemon.api("POST", f"/v1/pods/{pod.name}/stop")
        elif intent == "remove":
            with contextlib.suppress(OSError, http.client.HTTPException):
                daemon.api("DELETE", f"/v1/pods/{pod.name}?force=true")
        else:
            daemon.stop()

    def case(self, path, step, intent):
        daemon, what = self.daemon, f"{intent} at {step} of a {path} start"
        self.number += 1
        pod = Pod(daemon, f"{path}-{self.number}", when=GO)
        pod.go()
        checkpoint = None
        if path == "restore":
            pod.deploy()
            checkpoint = pod.wait_checkpoint()
            daemon.scale(pod.name, 0)
        mark = daemon.data / f"mark-{self.number}"
        daemon.stop()
        daemon.env |= {"THAW_FAULT": f"{step}:hold", "THAW_FAULT_MARK": str(mark)}
        if intent == "shutdown with replicas":
            daemon.arguments.append("--stop-replicas-on-exit")
        daemon.start()
        since = daemon.last_event()
        if path == "cold":
            pod.deploy()
        else:
            daemon.scale(pod.name, 1, wait=False)
        wait_for(mark.exists, f"{what}: the step is reached", step=0.005)
        rows = [row["id"] for row in daemon.replicas(pod.name)]
        for name in ("THAW_FAULT", "THAW_FAULT_MARK"):
            daemon.env.pop(name)
        failures = []

        def ask():
            try:
                self.wish(intent, pod)
            except Exception as error:  # noqa: BLE001: told by the caller
                failures.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        asking.join(0.15)  # a stop that is waited for waits for the step
        pathlib.Path(f"{mark}.go").touch()
        asking.join(180)
        check(not asking.is_alive(), f"{what}: it does not end")
        equal(failures, [], f"{what}: what went wrong")
        if not daemon.running():
            if "--stop-replicas-on-exit" in daemon.arguments:
                daemon.arguments.remove("--stop-replicas-on-exit")
            daemon.start()
        wait_for(lambda: self.settled(pod, intent), f"{what}: it settles", 180, 0.05)
        self.verify(what, path, intent, pod, checkpoint, rows, since)
        daemon.clear()
        wait_for(lambda: not daemon.replicas(), f"{what}: its replicas end", 120)

    def settled(self, pod, intent):
        daemon = self.daemon
        if any(row["status"] in UNDER_WAY for row in daemon.api("GET", "/v1/checkpoints")):
            return False
        # After a shutdown the next daemon goes on with what was wanted.
        states = [row["state"] for row in daemon.replicas(pod.name)] if pod.name in {p["name"] for p in daemon.api("GET", "/v1/pods")} else []
        return states == (["ready"] if intent.startswith("shutdown") else [])

    def verify(self, what, path, intent, pod, checkpoint, rows, since):
        daemon = self.daemon
        events = daemon.events(since, pod.name)
        crashes = [e["message"] for e in events if e["type"] == "replica.failed"]
        equal(crashes, [], f"{what}: what counts as a crash")
        bad = [(e["type"], e["message"]) for e in events if e["type"] in ("checkpoint.restore_failed", "replica.fallback")]
        equal(bad, [], f"{what}: what is held against a checkpoint")
        for row in daemon.replicas(ended=True):
            if row["id"] in rows and row["ended_us"]:
                equal(row["state"], "stopped", f"{what}: the replica (its reason is: {row['reason']})")
                equal(row["intent"], "stop", f"{what}: the intent that was written down")
                check(row["outcome"] in (None, "StoppedByUser", "Restored"), f"{what}: the outcome is {row['outcome']}")
        if intent == "remove":
            return
        status = daemon.api("GET", f"/v1/pods/{pod.name}")["checkpoint"]
        equal(status["backoff"], None, f"{what}: the back-off")
        if checkpoint:
            row = daemon.api("GET", f"/v1/checkpoints/{checkpoint['id']}")
            equal((row["status"], status["id"]), ("available", checkpoint["id"]), f"{what}: the checkpoint (its reason is: {row['reason']})")
        if not intent.startswith("shutdown"):
            daemon.scale(pod.name, 1)
        pod.get()


def run(cases):
    work = Intents()
    count = 0
    for (path, step), intent in cases:
        work.case(path, step, intent)
        count += 1
        print(f"ok   {intent} at {step} ({path})", flush=True)
    print(f"{count} stops in the middle, none held against anything", flush=True)
    return count


def main():
    words = sys.argv[1:]
    cases = [(phase, intent) for phase in PHASES for intent in INTENTS if not words or any(w in f"{phase[1]}:{intent}" for w in words)]
    sys.argv[1:] = []

    def test_intents():
        check(run(cases) == len(cases), "not all were tried")

    thawtest.main({"test_intents": test_intents})


if __name__ == "__main__":
    main()
