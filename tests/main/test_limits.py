"""The host has no descriptors, processes or memory left for the daemon, or CRIU hangs: what runs runs on, what is asked for is refused or tried
again, and when there is room again nothing is lost and nothing is left."""

import contextlib
import http.client
import json
import os
import pathlib
import resource
import signal
import time

import common
import thawtest
from common import Pod
from thawtest import check, equal, wait_for

GO = {"file": "/ctl/go"}


@contextlib.contextmanager
def few_descriptors(daemon):
    """Three more than it has, which is one question to its API and a little."""
    before = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
    now = max(int(name) for name in os.listdir(f"/proc/{daemon.pid}/fd"))
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (now + 4, before[1]))
    try:
        yield
    finally:
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, before)


@contextlib.contextmanager
def few_processes(daemon):
    """Two threads more than it has, in a cgroup of its own."""
    root = pathlib.Path("/sys/fs/cgroup")
    old = root / "pids" if (root / "pids").is_dir() else root
    if old == root:
        (root / "cgroup.subtree_control").write_text("+pids")
    line = next(x for x in pathlib.Path(f"/proc/{daemon.pid}/cgroup").read_text().splitlines() if (":pids:" in x if old != root else x.startswith("0::")))
    group = old / f"thaw-test-{daemon.pid}"
    group.mkdir()
    try:
        (group / "cgroup.procs").write_text(str(daemon.pid))
        (group / "pids.max").write_text(str(int((group / "pids.current").read_text()) + 2))
        yield
    finally:
        (group / "pids.max").write_text("max")
        home = old / line.rpartition(":")[2].lstrip("/")
        wait_for(lambda: emptied(group, home), "the cgroup is empty")


@contextlib.contextmanager
def little_memory(daemon):
    """Room for one thread more than it has."""
    before = resource.prlimit(daemon.pid, resource.RLIMIT_AS)
    pages = int(pathlib.Path(f"/proc/{daemon.pid}/statm").read_text().split()[0])
    resource.prlimit(daemon.pid, resource.RLIMIT_AS, (pages * resource.getpagesize() + (12 << 20), before[1]))
    try:
        yield
    finally:
        resource.prlimit(daemon.pid, resource.RLIMIT_AS, before)


def emptied(group, home):
    for pid in (group / "cgroup.procs").read_text().split():
        with contextlib.suppress(OSError):
            (home / "cgroup.procs").write_text(pid)
    with contextlib.suppress(OSError):
        group.rmdir()
    return not group.exists()


def under(limit, daemon):
    pod = Pod(daemon, when=GO)
    pod.warm()
    checkpoint = pod.wait_checkpoint()
    first = pod.only_replica()
    wait_for(lambda: len(common.shims(daemon)) == daemon.slots + 1, "slots are prepared")
    with limit(daemon):
        with contextlib.suppress(OSError, http.client.HTTPException, thawtest.ApiError):
            daemon.api("POST", "/v1/pods/web/scale", {"replicas": 4}, timeout=5)
        # Those that it can start have the slots that are prepared; nobody can say how far the others come.
        time.sleep(2)
        check(daemon.running(), f"the daemon has ended:\n{daemon.tail()}")
        check(os.path.exists(f"/proc/{first['pid']}"), "what ran was killed")
    wait_for(lambda: len(daemon.replicas("web", "ready")) == 4, "all that were asked for run when there is room", 180, 0.1)
    check(first["id"] in [row["id"] for row in daemon.replicas("web", "ready")], "what ran has ended")
    row = daemon.api("GET", f"/v1/checkpoints/{checkpoint['id']}")
    equal(row["status"], "available", f"the checkpoint (its reason is: {row['reason']})")
    pod.get()
    wait_for(lambda: len(common.shims(daemon)) == daemon.slots + 4, "slots are prepared again")
    with limit(daemon):
        daemon.api("POST", "/v1/pods/web/stop")
        time.sleep(2)
        check(daemon.running(), f"the daemon has ended at a stop:\n{daemon.tail()}")
    wait_for(lambda: not daemon.replicas(), "all have ended", 120)
    bad = [row for row in daemon.replicas(ended=True) if row["intent"] == "stop" and row["state"] != "stopped"]
    equal(bad, [], "those that were to stop and count as something else")


def test_few_descriptors(daemon):
    under(few_descriptors, daemon)


def test_few_descriptors_for_criu(daemon):
    """CRIU can restore nothing with fewer than 128. A limit of the daemon's that is low for a while is not its processes'; one that cannot be
    raised is the host's matter, and is told."""
    pod = Pod(daemon, when=GO)
    pod.warm()
    checkpoint = pod.wait_checkpoint()
    daemon.scale("web", 0)
    before = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
    for shim in common.shims(daemon).values():
        os.kill(shim, signal.SIGKILL)
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (120, before[1]))
    daemon.wait_idle()
    row = daemon.scale("web", 1)[0]
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, before)
    equal(row["outcome"], "Restored", f"the first, from a slot made with a low limit ({row['reason']})")
    daemon.scale("web", 0)
    daemon.stop()
    daemon.launch(before=["prlimit", "--nofile=120:120"])
    wait_for(lambda: answers(daemon), "the daemon answers")
    row = daemon.scale("web", 1)[0]
    equal((row["started_from"], row["outcome"]), ("cold", "Unavailable"), f"the replica ({row['reason']})")
    check("120 files" in row["reason"] and "LimitNOFILE" in row["reason"], f"the reason: {row['reason']}")
    pod.get()
    equal(daemon.scale("web", 2)[1]["started_from"], "cold", "the next one, for which it is not tried")
    daemon.scale("web", 0)
    equal(daemon.api("GET", f"/v1/checkpoints/{checkpoint['id']}")["status"], "available", "the checkpoint")
    daemon.restart()
    daemon.cli("checkpoint", "retry", "web")
    equal(daemon.scale("web", 1)[0]["outcome"], "Restored", "with enough of them, when told so")


def test_few_processes(daemon):
    under(few_processes, daemon)


def test_little_memory(daemon):
    under(little_memory, daemon)


def lives(pid):
    return os.path.exists(f"/proc/{pid}/ns")  # and is no zombie: that has none


def answers(daemon):
    """Whether a daemon with a low limit says who it is; one that has ended does not."""
    try:
        return daemon.api("GET", "/v1/version", timeout=1)["pid"] == daemon.pid
    except (OSError, http.client.HTTPException, thawtest.ApiError, thawtest.Failure):
        return False


def test_restarted_with_few_descriptors(daemon):
    """Every limit from one that is too low for it to start to one that is enough: what serves is taken back or left alone."""
    pod = Pod(daemon, when=GO)
    pod.warm()
    pod.wait_checkpoint()
    rows = daemon.scale("web", 3)
    since = daemon.last_event()
    daemon.stop()
    enough, started = 0, []
    for limit in range(40, 100):
        daemon.launch(before=["prlimit", f"--nofile={limit}:{limit}"])
        # One with a few descriptors too few for its API runs all the same.
        end = time.monotonic() + 5
        wait_for(lambda end=end: not daemon.running() or answers(daemon) or time.monotonic() > end, "it starts or ends")
        if daemon.running():
            started.append(limit)
            time.sleep(0.5)
            with contextlib.suppress(OSError, http.client.HTTPException, thawtest.Failure):
                pod.get(timeout=1)
                enough += 1
            daemon.stop()
        dead = [row["id"] for row in rows if not lives(row["pid"])]
        equal(dead, [], f"replicas that a daemon with {limit} descriptors has ended:\n{daemon.tail(60)}")
        if enough == 3:
            break
    print(f"it starts with {started[:1]} descriptors, the first of which serves has {limit - 2}", flush=True)
    check(enough == 3, f"none of those that started serves: {started}")
    daemon.start()
    wait_for(lambda: {row["id"] for row in daemon.replicas("web", "ready")} == {row["id"] for row in rows}, "all are taken back", 20)
    pod.get()
    told = [event["message"] for event in daemon.events(since) if event["type"] == "replica.delayed"]
    check(told and all("LimitNOFILE" in text for text in told), f"what was told: {told}")


def test_without_controllers(daemon):
    """A host that cannot limit processes, and one that has nothing but v2 without controllers: a limit that a pod asks for is refused, all else
    runs, and is told what is not held."""
    root = pathlib.Path("/sys/fs/cgroup")
    check((root / "pids").is_dir(), "this test takes away v1 controllers, which this host does not have")
    for name, take_away in (("pids", f"umount {root}/pids"), ("all", f"umount -R {root} && mount -t cgroup2 none {root}")):
        daemon.stop()
        daemon.launch(before=["unshare", "--mount", "sh", "-c", f'{take_away} && exec "$@"', "sh"])
        wait_for(lambda: answers(daemon), "the daemon answers")
        pod = Pod(daemon, f"without-{name}", when=GO)
        pod.since = max(1, daemon.last_event())
        told = [text for text in pod.deploy()["warnings"] if "resources.pids" in text]
        check(len(told) == 1 and "no pids cgroup controller" in told[0] and "thaw doctor" in told[0], f"the warnings: {told}")
        check("resources.pids (1024) is not held" in pod.wait_event("pod.unlimited")["message"], "the event")
        pod.wait_note("up")
        pod.go()
        pod.wait_checkpoint()
        equal([row["outcome"] for row in daemon.scale(pod.name, 2)][1:], ["Restored"], "how the second started")
        pod.get()
        asks = Pod(daemon, "asks", resources={"pids": 64})
        done = daemon.cli("deploy", "-", input=json.dumps(asks.spec), check_exit=False)
        check(done.returncode != 0 and "no pids cgroup controller" in done.stderr and "leave it out" in done.stderr, f"`thaw deploy`: {done.returncode}, {done.stderr}")
        daemon.remove(pod.name)
    daemon.restart()


def test_criu_hangs(daemon):
    """CRIU answers nothing: after the deadline the replica starts cold, and the checkpoint stays."""
    pod = Pod(daemon, when=GO)
    pod.warm()
    checkpoint = pod.wait_checkpoint()
    daemon.scale("web", 0)
    daemon.wait_idle()
    stopped = [wait_for(lambda shim=shim: common.criu_below(shim), "the slot's CRIU waits") for shim in common.shims(daemon).values()]
    handles = [os.pidfd_open(pid) for pid in stopped]
    try:
        for handle in handles:
            signal.pidfd_send_signal(handle, signal.SIGSTOP)
        row = daemon.scale("web", 1)[0]
    finally:  # another test may get the slot that is left
        for handle in handles:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGCONT)
            os.close(handle)
    equal((row["started_from"], row["outcome"]), ("cold", "Unavailable"), f"the replica ({row['reason']})")
    check("in time" in row["reason"], f"the reason: {row['reason']}")
    equal(daemon.api("GET", f"/v1/checkpoints/{checkpoint['id']}")["status"], "available", "the checkpoint")


if __name__ == "__main__":
    thawtest.main(globals())
