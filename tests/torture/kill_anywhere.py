"""Ends the daemon, a shim, CRIU, the OCI runtime or a container with SIGKILL at every named step of every path (`thaw debug faults`), starts
the daemon again, and checks that nothing is lost and nothing is left. As a program: all of it, or the steps whose names contain the words
given; the last line is `N steps killed, M invariants checked, K broken`. `make torture` runs it.

Each case is one step and one victim. The path that leads to the step is walked by a daemon with the fault in its environment; what it did
not come to do is then up to a daemon without.
"""

import contextlib
import http.client
import json
import os
import pathlib
import re
import subprocess
import sys
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "lib"), str(HERE.parent / "main")]

import common  # noqa: E402
import thawtest  # noqa: E402
from common import Pod  # noqa: E402
from thawtest import ApiError, Failure, wait_for  # noqa: E402

GO = {"file": "/ctl/go"}
REACHED_S, SETTLED_S = 90, 120
# Statuses of a checkpoint on its way.
UNDER_WAY = ("creating", "sealed", "verifying")

# Which path comes to a step, by the beginning of its name; the first that fits.
PATHS = (
    ("slot.", "start"), ("shim.prepare.", "start"), ("restore.", "restore"), ("shim.restore.", "restore"), ("fallback.", "fallback"),
    ("standby.", "standby"), ("pause.", "pause"), ("hook.", "hook"), ("create.", "create"), ("scale.", "restore"), ("shutdown.", "shutdown"), ("adopt.", "adopt"),
    ("recover.", "adopt"), ("listeners.", "adopt"), ("handover.", "handover"), ("stop.", "stop"), ("shim.destroy.", "stop"), ("pod.", "remove"),
    ("checkpoint.deleted", "drop"), ("rest.", "rest"), ("inflate.", "inflate"), ("", "cold"),
)  # fmt: skip


def steps():
    done = subprocess.run([thawtest.binary(), "debug", "faults", "--json"], capture_output=True, text=True, timeout=30, check=True)
    return json.loads(done.stdout)


def cases(words=()):
    """(step, victim, path) of those whose `step:victim` contains one of the words."""
    for step in steps():
        for victim in step["victims"].split():
            if not words or any(word in f"{step['name']}:{victim}" for word in words):
                yield step["name"], victim, next(path for start, path in PATHS if step["name"].startswith(start))


class Torture:
    """One daemon's data directory, killed again and again."""

    def __init__(self, daemon=None):
        self.daemon = daemon or thawtest.Daemon(slots=1)
        if not self.daemon.running():
            self.daemon.start()
        self.at_rest = self.rest()
        self.killed = self.checked = 0
        self.broken = []
        self.pods = {}
        self.number = 0
        self.last_id = 0

    # --- what is checked ---

    def hold(self, truth, what):
        """One invariant of the case under way."""
        self.checked += 1
        if not truth:
            self.broken.append(f"{self.case}: {what}")
            print(f"BROKEN {self.case}: {what}", flush=True)
        return truth

    def attempt(self, work, what):
        """An invariant that shows by work() succeeding; its value."""
        try:
            value = work()
        except (Failure, ApiError, OSError, http.client.HTTPException) as error:
            self.hold(False, f"{what}: {error}")
            return None
        self.hold(True, what)
        return value

    def rest(self):
        """What a daemon at rest holds, without what differs from one to the next."""
        return self.compared(self.daemon.wait_idle())

    @staticmethod
    def compared(found):
        """Of descriptors only those that keep network namespaces alive."""
        return {key: count for key, count in found.items() if key.startswith("descriptors: net:") or not re.match("descriptors|threads|checkpoint folders", key)}

    def check_records(self):
        """Rows and events, of everything that ever was: they agree, and tell one story."""
        daemon = self.daemon
        events = daemon.events()
        ids = [event["id"] for event in events]
        self.hold(ids == list(range(ids[0], ids[0] + len(ids))), "event ids are not one after the other")
        self.hold(not ids or ids[-1] >= self.last_id, "events have vanished")
        self.last_id = ids[-1]
        told, moves, dumps = {}, {}, {}
        for event in events:
            kind = event["type"]
            if event["replica"] and event["data"].get("to"):
                moves.setdefault(event["replica"], []).append((event["data"]["from"], event["data"]["to"]))
            if event["replica"] and kind in [f"replica.{state}" for state in STATES]:
                told[event["replica"]] = kind.removeprefix("replica.")
            if kind.startswith("checkpoint.") and event["checkpoint"]:
                told[event["checkpoint"]] = "available" if kind == "checkpoint.own" else kind.removeprefix("checkpoint.")
                under_way = dumps.setdefault(event["pod"], set())
                if kind == "checkpoint.creating":
                    self.hold(not under_way, f"{event['checkpoint']} was begun while {under_way} of the same pod was being dumped")
                    under_way.add(event["checkpoint"])
                elif kind != "checkpoint.deleted":
                    under_way.discard(event["checkpoint"])
        for row in daemon.replicas(ended=True):
            steps = moves.get(row["id"], [])
            self.hold(all(a[1] == b[0] for a, b in zip(steps, steps[1:])), f"the states of replica {row['id']} do not follow each other: {steps}")
            wanted = told.get(row["id"], "preparing")
            self.hold(row["state"] == wanted, f"replica {row['id']} is {row['state']}, its last event says {wanted}")
            self.hold(row["gate_open"] == (row["state"] == "ready"), f"replica {row['id']} is {row['state']} with gate_open {row['gate_open']}")
            if row["ended_us"]:
                self.hold(row["state"] in ("stopped", "failed"), f"replica {row['id']} has ended as {row['state']}")
                self.hold(row["state"] == "stopped" or row["intent"] != "stop", f"replica {row['id']} was to stop and counts as {row['state']}")
                self.hold(row["reason"] or row["state"] == "stopped", f"replica {row['id']} has failed without a reason")
            else:
                asleep = row["state"] == "paused" and not row["slot"]
                self.hold(asleep or row["pid"] and os.path.exists(f"/proc/{row['pid']}"), f"replica {row['id']} is {row['state']} and has no process")
        for row in daemon.api("GET", "/v1/checkpoints"):
            folder = daemon.data / "checkpoints" / row["id"]
            self.hold(row["status"] not in UNDER_WAY, f"checkpoint {row['id']} is {row['status']} for ever")
            self.hold(told.get(row["id"]) == row["status"], f"checkpoint {row['id']} is {row['status']}, its last event says {told.get(row['id'])}")
            if row["status"] == "available":
                self.hold((folder / "manifest.json").exists(), f"checkpoint {row['id']} is offered and has no manifest")
            else:
                self.hold(row["reason"], f"checkpoint {row['id']} is {row['status']} without a reason")
                self.hold(wait_or_none(lambda folder=folder: not folder.exists(), REACHED_S), f"files of checkpoint {row['id']}, which is {row['status']}, are left")
        known = {row["id"] for row in daemon.api("GET", "/v1/checkpoints")}
        folders = set(os.listdir(daemon.data / "checkpoints"))
        self.hold(folders <= known or wait_or_none(lambda: set(os.listdir(daemon.data / "checkpoints")) <= known, REACHED_S),
                  f"folders of no checkpoint are left: {folders - known}")  # fmt: skip

        replicas = {row["id"] for row in daemon.replicas(ended=True)}
        logs = {name for name in os.listdir(daemon.data / "logs") if not name.startswith("proof-")}  # one that failed may be looked at
        self.hold(logs <= replicas, f"logs of no replica are left: {logs - replicas}")
        leases = common.sql(daemon, "SELECT name, holder FROM leases WHERE expires_us != 0")
        self.hold(not leases, f"leases of dumps that are over: {leases}")
        pauses = {key for (key,) in common.sql(daemon, "SELECT fingerprint FROM backoffs") if key.startswith("restore-")}
        self.hold(pauses <= {f"restore-{row}" for row in known}, f"back-offs of checkpoints that are gone: {pauses}")

        def all_rows():
            return {row for (row,) in common.sql(daemon, "SELECT id FROM checkpoints")}

        rows = all_rows()
        self.hold(rows == known or wait_or_none(lambda: all_rows() == known, REACHED_S), f"rows of checkpoints that nobody sees: {rows - known}")
        self.check_ports()

    def check_ports(self):
        """The daemon listens for its pods, and for nobody else."""
        text = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, timeout=30, check=True).stdout
        ours = {int(line.split()[3].rpartition(":")[2]) for line in text.splitlines() if f"pid={self.daemon.pid}," in line and "127.0.0.1:" in line}
        wanted = {port["host"] for pod in self.daemon.api("GET", "/v1/pods") for port in pod["ports"]}
        self.hold(ours == wanted, f"the daemon listens on {ours}, its pods publish {wanted}")

    def check_gates(self, pod):
        """No connection came through a gate before its replica was ready."""
        opened = {e["replica"]: e["time_us"] for e in reversed(pod.events("replica.ready"))}
        for note in pod.notes("accepted"):
            if note["peer"] == common.GATEWAY:
                self.hold(opened.get(note["replica"], 1 << 62) <= note["time_us"], f"replica {note['replica']} was reached before it was ready")

    def check_rest(self):
        """With no replica there: only what a daemon at rest has."""
        try:
            found = self.rest()
        except Failure as error:
            found = {"at rest": str(error), **self.compared(self.daemon.holdings())}
        wrong = {key: (count, self.at_rest.get(key, 0)) for key, count in found.items() if count != self.at_rest.get(key, 0)}
        self.hold(not wrong, f"left behind (found, at rest): {wrong}")

    # --- one case ---

    def settled(self):
        """No replica is on its way, and no checkpoint."""
        daemon = self.daemon
        if any(row["status"] in UNDER_WAY for row in daemon.api("GET", "/v1/checkpoints")):
            return False
        for pod in daemon.api("GET", "/v1/pods"):
            rows = [row for row in daemon.replicas(pod["name"]) if row["state"] not in ("ready", "standby", "paused")]
            if rows or pod["ready"] != (0 if pod["stopped"] else pod["desired"]):
                return False
        return True

    def faulty(self, step, victim):
        """The daemon again, with the fault. It may die of it at once."""
        self.mark = self.daemon.data / f"mark-{self.number}"
        self.daemon.stop()
        self.daemon.env |= {"THAW_FAULT": f"{step}:{victim}", "THAW_FAULT_MARK": str(self.mark)}
        with contextlib.suppress(Failure):
            self.daemon.start()

    def healthy(self):
        for name in ("THAW_FAULT", "THAW_FAULT_MARK"):
            self.daemon.env.pop(name, None)
        if not self.daemon.running():
            self.daemon.start()

    def run(self, step, victim, path):
        self.case, self.number = f"{step}:{victim}", self.number + 1
        begin = time.monotonic()
        before = len(self.broken)
        try:
            self.walk(step, victim, path)
        except (Failure, ApiError, OSError, http.client.HTTPException) as error:
            self.hold(False, f"the case could not be finished: {error}")
        if len(self.broken) > before:
            print("\n".join("    " + line for line in self.daemon.tail(6).splitlines()), flush=True)
            self.start_over()
        print(f"{'ok  ' if len(self.broken) == before else 'FAIL'} {self.case} ({time.monotonic() - begin:.1f} s)", flush=True)

    def start_over(self):
        """What a broken case has left must not break the next one."""
        self.daemon.destroy()
        self.daemon = thawtest.Daemon(slots=1)
        self.daemon.start()
        self.pods, self.last_id = {}, 0

    def walk(self, step, victim, path):
        daemon = self.daemon
        pod = getattr(self, "before_" + path)()
        self.since = self.daemon.last_event()
        self.faulty(step, victim)
        with contextlib.suppress(ApiError, OSError, http.client.HTTPException, Failure):
            if daemon.running():
                getattr(self, "walk_" + path)(pod)
        if not self.hold(wait_or_none(self.mark.exists, REACHED_S), "the step was not reached"):
            self.healthy()
            return
        self.killed += 1
        # Of two daemons, one of which takes over, one dies; the other one may be the daemon then.
        if path != "handover" and (victim == "daemon" or (victim == "self" and not step.startswith("shim."))):
            wait_for(lambda: daemon.process.poll() is not None, "the daemon is dead")
        self.healthy()
        self.attempt(lambda: wait_for(lambda: answers(daemon), "the API answers"), "the API answers")
        # A daemon that was not the victim is ended, too: what it knows must be written down.
        self.attempt(lambda: wait_for(self.settled, "everything is settled", SETTLED_S, 0.1), "everything is settled")
        if victim not in ("daemon", "self"):
            daemon.restart(kill=True)
            self.attempt(lambda: wait_for(self.settled, "everything is settled", SETTLED_S, 0.1), "everything is settled after a restart")
        getattr(self, "after_" + path)(pod)
        self.finish(pod)

    def finish(self, pod):
        daemon = self.daemon
        self.attempt(lambda: wait_for(self.settled, "everything is settled", SETTLED_S, 0.1), "everything is settled at the end")
        self.check_records()
        self.check_gates(pod)
        if pod.name in {p["name"] for p in daemon.api("GET", "/v1/pods")}:
            if pod.spec["replicas"].get("standby"):
                daemon.api("POST", f"/v1/pods/{pod.name}/stop")
                self.attempt(lambda: wait_for(lambda: not daemon.replicas(pod.name), "its standbys end", SETTLED_S), "the standbys end")
            else:
                daemon.scale(pod.name, 0)
        self.check_rest()

    def serves(self, pod):
        """It answers through its gate, and another replica starts, too."""
        self.attempt(lambda: pod.get(), "the pod answers")
        rows = self.attempt(lambda: self.daemon.scale(pod.name, 2), "a second replica starts") or []
        offered = self.daemon.api("GET", f"/v1/pods/{pod.name}")["checkpoint"]["id"]
        if offered and rows:
            self.hold(rows[-1]["outcome"] in ("Restored", None) and rows[-1]["started_from"] in (offered, "cold"), f"the second replica: {rows[-1]}")

    # --- the paths: what is there before, what leads to the step, what must be afterwards ---

    def fresh(self, name, env=None, **more):
        """The pod in a version of its own, so in a fingerprint of its own, not deployed."""
        pod = self.pods.get(name)
        if not pod:
            pod = self.pods[name] = Pod(self.daemon, name, when=GO, **more)
            pod.since = max(1, self.daemon.last_event())
        pod.daemon = self.daemon
        pod.spec["env"] = {"CASE": str(self.number), **(env or {})}
        return pod

    def warm(self, name, env=None, **more):
        """A pod with a checkpoint that can be used, and no replica; the same again as long as it has one."""
        pod = self.pods.get(name)
        if pod and self.daemon.api("GET", f"/v1/pods/{name}")["checkpoint"]["id"]:
            self.daemon.cli("checkpoint", "retry", name)
        else:
            pod = self.fresh(name, env, **more)
            since = self.daemon.last_event()
            pod.go()
            self.daemon.deploy(pod.spec, wait=False)
            self.daemon.scale(name, 1)
            self.daemon.wait_checkpoint(name, after=since)
        self.daemon.scale(name, 0)
        return pod

    def before_cold(self):
        pod = self.fresh("cold")
        pod.go()
        return pod

    def walk_cold(self, pod):
        pod.deploy()
        self.daemon.scale(pod.name, 1, wait=False)
        wait_or_none(lambda: self.mark.exists() or not self.daemon.running(), REACHED_S)

    def after_cold(self, pod):
        names = [p["name"] for p in self.daemon.api("GET", "/v1/pods")]
        if pod.name not in names or not self.daemon.replicas(pod.name, "ready"):
            # The daemon died before the wish was written down.
            self.daemon.deploy(pod.spec, wait=False)
            self.attempt(lambda: self.daemon.scale(pod.name, 1), "the pod starts")
        self.serves(pod)

    before_start, walk_start, after_start = before_cold, walk_cold, after_cold

    def before_restore(self):
        return self.warm("warm")

    def walk_restore(self, pod):
        self.daemon.scale(pod.name, 1, wait=False)

    def after_restore(self, pod):
        rows = self.daemon.api("GET", f"/v1/checkpoints?pod={pod.name}")
        self.hold(any(row["status"] == "available" for row in rows), "one kill has taken the pod its checkpoint")
        blamed = [e["message"] for e in pod.events(after=self.since) if e["data"].get("outcome") in ("Refused", "Corrupt", "AppFailed")]
        self.hold(not blamed, f"a kill is held against the checkpoint: {blamed}")
        if not self.daemon.replicas(pod.name, "ready"):
            self.attempt(lambda: self.daemon.scale(pod.name, 1), "the pod starts")
        self.serves(pod)

    def before_rest(self):
        return self.warm("rests")

    def walk_rest(self, pod):
        self.daemon.api("POST", f"/v1/checkpoints/{self.offered(pod)}/compress")

    after_rest = after_restore

    def before_inflate(self):
        pod = self.warm("rests")
        self.daemon.api("POST", f"/v1/checkpoints/{self.offered(pod)}/compress")
        return pod

    walk_inflate, after_inflate = walk_restore, after_restore

    def offered(self, pod):
        # Not the pod's own word, which a daemon that has just started may not have yet.
        return next(row["id"] for row in self.daemon.api("GET", f"/v1/checkpoints?pod={pod.name}") if row["status"] == "available")

    def before_standby(self):
        return self.warm("stands", replicas={"min": 1, "max": 4, "standby": 1})

    def walk_standby(self, pod):
        # The one that waits, or is being made, is taken, and another takes its place.
        wait_or_none(lambda: self.mark.exists() or self.daemon.replicas(pod.name, "standby"), REACHED_S)
        self.daemon.scale(pod.name, 1, wait=False)
        wait_or_none(lambda: self.mark.exists() or not self.daemon.running(), REACHED_S)

    after_standby = after_restore

    def before_pause(self):
        return self.warm("pauses", idle="checkpoint", replicas={"min": 0, "max": 4, "keep_warm": "0s"})

    def walk_pause(self, pod):
        for _ in range(2):
            pod.get()
            wait_or_none(lambda: self.mark.exists() or self.daemon.replicas(pod.name, "paused"), REACHED_S)
            if self.mark.exists():
                return  # what is asked of a dead daemon would wait for the next one

    after_pause = after_restore

    def before_hook(self):
        pod = self.fresh("hooks", checkpoint={"before_checkpoint": ["python3", "-S", "-c", "pass"], "after_restore": ["python3", "-S", "-c", "pass"]})
        pod.go()
        return pod

    walk_hook, after_hook = walk_cold, after_cold

    def before_create(self):
        return self.warm("creates")

    def walk_create(self, pod):
        self.daemon.scale(pod.name, 1)
        self.daemon.api("POST", f"/v1/pods/{pod.name}/checkpoint")

    after_create = after_restore

    def before_adopt(self):
        pod = self.warm("lives")
        self.row = self.daemon.scale(pod.name, 1)[0]
        return pod

    def walk_adopt(self, pod):
        """The daemon that is killed is one that starts."""

    def after_adopt(self, pod):
        row = self.attempt(lambda: pod.get()["identity"]["replica"], "the pod answers")
        self.hold(row == self.row["id"], f"{row} answers instead of {self.row['id']}, which lived all the time")
        self.serves(pod)

    before_shutdown, after_shutdown = before_adopt, after_adopt

    def walk_shutdown(self, pod):
        self.daemon.process.terminate()
        self.daemon.process.wait(120)

    before_handover, after_handover = before_adopt, after_adopt

    def walk_handover(self, pod):
        self.daemon.replace()

    def before_fallback(self):
        # Its program ends when it is restored, so every restore falls back.
        pod = self.warm("falls", {"AT_START": "leave-when-restored"}, checkpoint={"verify": False})
        pod.halt()
        return pod

    def walk_fallback(self, pod):
        since = self.daemon.last_event()
        self.daemon.scale(pod.name, 1, wait=False)
        with contextlib.suppress(Failure, OSError, http.client.HTTPException):
            pod.wait_event("replica.validating", since)
        try:
            wait_or_none(lambda: self.mark.exists() or pod.events("replica.starting", after=since), REACHED_S)
        finally:  # a daemon that dies while it is asked has come so far, too
            pod.go()

    def after_fallback(self, pod):
        pod.go()
        if not self.daemon.replicas(pod.name, "ready"):
            self.attempt(lambda: self.daemon.scale(pod.name, 1), "the pod starts")

        def cold():
            return any(row["started_from"] == "cold" for row in self.daemon.replicas(pod.name, "ready"))

        # A restored one dies a moment after it was ready, until its checkpoint is given up.
        self.attempt(lambda: wait_for(cold, "the pod starts from nothing", SETTLED_S), "the pod starts from nothing")
        self.attempt(lambda: pod.get(), "the pod answers")

    def before_stop(self):
        return self.warm("warm")

    def walk_stop(self, pod):
        self.row = self.daemon.scale(pod.name, 1)[0]
        self.daemon.scale(pod.name, 0, wait=False)

    def after_stop(self, pod):
        row = self.daemon.replica(self.row["id"])
        self.hold(row["intent"] != "stop" or row["state"] == "stopped", f"a stop was asked for, the replica is {row['state']}: {row['reason']}")
        rows = self.daemon.api("GET", f"/v1/checkpoints?pod={pod.name}")
        self.hold([r["status"] for r in rows if r["id"] == row["started_from"]] in (["available"], []), f"a stop was held against the checkpoint: {rows}")
        self.attempt(lambda: self.daemon.scale(pod.name, 1), "the pod starts again")
        self.serves(pod)

    def before_remove(self):
        return self.warm("gone")

    def walk_remove(self, pod):
        self.daemon.scale(pod.name, 1)
        self.daemon.api("DELETE", f"/v1/pods/{pod.name}?force=true")

    def after_remove(self, pod):
        with contextlib.suppress(ApiError):  # the kill may have come before the end
            self.daemon.api("DELETE", f"/v1/pods/{pod.name}?force=true")
        self.hold(pod.name not in {p["name"] for p in self.daemon.api("GET", "/v1/pods")}, "the pod is there after it was removed")
        left = [row for row in self.daemon.api("GET", "/v1/checkpoints") if row["pod"] == pod.name]
        self.hold(not left, f"checkpoints of a pod that is gone are left: {[(row['id'], row['status']) for row in left]}")
        self.pods.pop("gone", None)

    def before_drop(self):
        return self.warm("drops")

    def walk_drop(self, pod):
        for row in self.daemon.api("GET", f"/v1/checkpoints?pod={pod.name}"):
            self.daemon.api("DELETE", f"/v1/checkpoints/{row['id']}")

    def after_drop(self, pod):
        self.hold(not self.daemon.api("GET", f"/v1/pods/{pod.name}")["checkpoint"]["id"], "a removed checkpoint is offered")
        self.hold(wait_or_none(lambda: not set(os.listdir(self.daemon.data / "checkpoints")) - self.known(), SETTLED_S), "its files are left")

    def known(self):
        return {row["id"] for row in self.daemon.api("GET", "/v1/checkpoints")}


STATES = ("preparing", "starting", "warming", "checkpointing", "restoring", "validating", "standby", "ready", "pausing", "paused", "draining", "stopping", "stopped", "failed")


def wait_or_none(predicate, timeout):
    try:
        return wait_for(predicate, "", timeout, 0.01)
    except Failure:
        return None


@contextlib.contextmanager
def aside(work, *arguments):
    """work(*arguments) on a thread of its own, which has ended when this has; what it raises is nobody's."""

    def quietly():
        with contextlib.suppress(ApiError, OSError, http.client.HTTPException, Failure):
            work(*arguments)

    thread = threading.Thread(target=quietly)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def answers(daemon):
    try:
        return daemon.api("GET", "/v1/version", timeout=10)["pid"] == daemon.pid
    except (OSError, http.client.HTTPException):
        return False


def torture(words=(), exact=False):
    """Runs the cases; exact: the words are whole names. The Torture, for its figures."""
    work = Torture()
    for step, victim, path in cases(words):
        if not exact or f"{step}:{victim}" in words:
            work.run(step, victim, path)
    return work


def figures(work):
    return f"{work.killed} steps killed, {work.checked} invariants checked, {len(work.broken)} broken"


if __name__ == "__main__":
    words, sys.argv[1:] = sys.argv[1:], []
    chosen = list(cases(words))
    if not chosen:
        sys.exit("there are no such steps: see `thaw debug faults`")

    done = []

    def test_torture():
        work = torture(words)
        done.append(work)
        thawtest.check(not work.broken, f"{len(work.broken)} invariants are broken:\n" + "\n".join(work.broken))

    try:
        thawtest.main({"test_torture": test_torture})
    finally:
        for work in done:
            print(figures(work), flush=True)
