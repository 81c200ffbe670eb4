"""What a daemon takes back from the one before it, when the pod is not as it was for that replica any more."""

import contextlib
import pathlib
import socket
import tempfile

import thawtest
from common import Pod
from thawtest import check, equal, wait_for

GO = {"file": "/ctl/go"}


def test_an_earlier_version(daemon):
    """One that warms up still while its pod has another version: it may serve, and is never the checkpoint of that other version."""
    pod = Pod(daemon, when=GO)
    pod.deploy()
    pod.wait_note("up")
    first = pod.only_replica()["id"]
    command, pod.spec["command"] = pod.spec["command"], ["python3", "-S", "-c", "raise SystemExit(5)"]
    since = daemon.last_event()
    pod.deploy()
    pod.wait_event("replica.failed", since)
    daemon.restart(kill=True)
    pod.go()
    equal(pod.get()["identity"]["replica"], first, "who serves while the new version does not start")
    equal([row["status"] for row in daemon.api("GET", "/v1/checkpoints") if row["replica"] == first], [], "its checkpoints")
    pod.spec["command"] = command
    pod.deploy()
    made = pod.wait_event("checkpoint.available")
    check(made["replica"] != first, "the earlier version was dumped")
    wait_for(lambda: first not in [row["id"] for row in daemon.replicas()], "the earlier version ends")


def test_a_pod_that_cannot_start_any_more(daemon):
    """What a mount needs is gone: no replica could start, the one that lives serves on, also for a daemon that starts then."""
    with tempfile.TemporaryDirectory(prefix="thaw-mount-", dir="/var/tmp") as beside:
        source = pathlib.Path(beside) / "source"
        source.mkdir()
        pod = Pod(daemon)
        pod.spec["mounts"].append({"source": str(source), "target": "/more"})
        pod.deploy(wait=True)
        first = pod.only_replica()
        source.rename(source.with_name("elsewhere"))
        daemon.restart(kill=True)
        equal(pod.get()["identity"]["replica"], first["id"], "who serves")
        row = daemon.replica(first["id"])
        equal((row["state"], row["pid"]), ("ready", first["pid"]), "the replica")
        told = daemon.api("GET", "/v1/pods/web")["checkpoint"]["reason"]
        check(str(source) in told, f"the pod does not tell what is missing: {told}")
        daemon.api("POST", "/v1/pods/web/stop")
        wait_for(lambda: not daemon.replicas(), "it is stopped")
        equal(daemon.replica(first["id"])["state"], "stopped", "how it ended")
        check("cannot mount" in daemon.cli("ls").stdout, "`thaw ls` does not tell of it")
        # It is tried again: nobody has to deploy it anew.
        since = daemon.last_event()
        source.mkdir()
        pod.wait_event("pod.mended", since)
        daemon.scale("web", 1)
        check(pod.get()["identity"]["replica"] != first["id"], "the stopped one answers")


def test_a_port_that_is_taken(daemon):
    """Another program has its port when the daemon starts: everybody is told, and the pod is reached again when the port is free."""
    pod = Pod(daemon)
    pod.deploy(wait=True)
    first = pod.only_replica()["id"]
    daemon.stop()
    with socket.create_server(("127.0.0.1", pod.port)):
        daemon.start()
        told = pod.wait_event("pod.problem")
        check(str(pod.port) in told["message"] and "another program" in told["message"], f"the event: {told['message']}")
        check(str(pod.port) in daemon.api("GET", "/v1/pods/web")["problem"], "the pod does not tell of it")
        check("PROBLEM" in daemon.cli("ls").stdout, "`thaw ls` does not tell of it")
    pod.wait_event("pod.mended")
    equal(pod.get()["identity"]["replica"], first, "who serves")
    equal(daemon.api("GET", "/v1/pods/web")["problem"], None, "what the pod tells then")
    check("PROBLEM" not in daemon.cli("ls").stdout, "`thaw ls` tells of a problem that is over")


def test_a_stop_under_way():
    """A replica that was to stop when its daemon died is no demand for another."""
    with thawtest.Daemon() as daemon:
        pod = Pod(daemon, replicas={"min": 0, "max": 2})
        pod.deploy()
        daemon.scale("web", 1)
        pod.wait_note("up")
        daemon.stop()
        daemon.env |= {"THAW_FAULT": "stop.draining:self", "THAW_FAULT_MARK": str(daemon.data / "killed")}
        daemon.start()
        with contextlib.suppress(OSError):
            daemon.scale("web", 0, wait=False)
        daemon.process.wait(120)
        daemon.start()
        wait_for(lambda: not daemon.replicas(), "it has ended")
        equal(daemon.api("GET", "/v1/pods/web")["desired"], 0, "the replicas that are called for")
        equal(len(daemon.replicas(ended=True)), 1, "replicas that ever were")


if __name__ == "__main__":
    thawtest.main(globals())
