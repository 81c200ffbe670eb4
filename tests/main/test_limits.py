"""The host has no descriptors, processes or memory left for the daemon, or CRIU hangs: what runs runs on, what is asked for is refused or tried
again, and when there is room again nothing is lost and nothing is left."""

import contextlib
import http.client
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


def test_few_processes(daemon):
    under(few_processes, daemon)


def test_little_memory(daemon):
    under(little_memory, daemon)


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
