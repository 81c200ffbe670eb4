"""A checkpoint is whole, or it is not there: whatever dies in the middle of making it."""

import os
import signal

import common
import thawtest
from common import Client, HeldDump, Pod
from thawtest import check, equal, wait_equal, wait_for

GO = {"file": "/ctl/go"}


def dumping_pod(daemon, **more):
    """One that is warming up, with some memory to dump."""
    pod = Pod(daemon, when=GO, env={"AT_START": "busy:96 write:/var/tmp/layer"}, **more)
    pod.deploy()
    pod.wait_note("up")
    return pod


def check_nothing_made(pod, checkpoint, reason):
    """Its dump has failed with the reason, nothing of it can be seen, and the next one may be good."""
    daemon = pod.daemon
    wait_equal(lambda: daemon.api("GET", f"/v1/checkpoints/{checkpoint}")["status"], "failed", "the checkpoint")  # beside the gate that opens
    row = daemon.api("GET", f"/v1/checkpoints/{checkpoint}")
    check(reason in row["reason"], f"the checkpoint's reason does not tell of '{reason}': {row['reason']}")
    equal(daemon.api("GET", f"/v1/pods/{pod.name}")["checkpoint"]["id"], None, "what the pod offers")
    wait_for(lambda: not (daemon.data / "checkpoints" / checkpoint).exists(), "its files are gone")


def check_serves(pod, replica):
    """This replica answers, runs as before and can be dumped after all."""
    daemon = pod.daemon
    equal(pod.get()["identity"]["replica"], replica, "who serves")
    pod.check_gate(replica)
    since = daemon.last_event()
    daemon.cli("checkpoint", "create", pod.name)
    checkpoint = pod.wait_checkpoint(after=since)
    rows = daemon.scale(pod.name, 2)
    equal([row["started_from"] for row in rows], ["cold", checkpoint["id"]], "how they started")
    wait_for(lambda: pod.get()["identity"]["replica"] == rows[1]["id"], "the restored one gets its share")


def test_criu_killed(daemon):
    """SIGKILL for CRIU before it has done anything, and with the tree frozen and images half written: the replica runs on. Unless
    CRIU was making the program execute code of its own just then: that can end it, and another one serves."""
    for stage in ("begun", "frozen"):
        pod = dumping_pod(daemon, name=stage)
        client = Client(pod.port)
        with HeldDump(pod, stage) as dump:
            client.wait_connected()
            client.check_waits("during the dump")
            dump.kill()
        replica = client.wait_answer()["identity"]["replica"]
        if replica != dump.replica["id"] and stage == "frozen":
            reason = daemon.replica(dump.replica["id"])["reason"]
            check("SIGTRAP" in reason or "SIGSEGV" in reason, f"how the replica ended when its CRIU was killed: {reason}")
        else:
            equal(replica, dump.replica["id"], f"{stage}: who serves")
        check_nothing_made(pod, dump.checkpoint, "CRIU")
        check_serves(pod, replica)
        daemon.remove(pod.name)


def test_shim_killed(daemon):
    """SIGKILL for the shim: its container cannot live without it; another replica takes over, from nothing."""
    pod = dumping_pod(daemon)
    client = Client(pod.port)
    with HeldDump(pod) as dump:
        inside = dump.replica["pid"]
        os.kill(dump.shim, signal.SIGKILL)
        pod.wait_event("replica.failed")
    wait_for(lambda: not os.path.exists(f"/proc/{inside}/exe"), "its container is gone")
    wait_for(lambda: not os.path.exists(f"/proc/{dump.criu}/exe"), "its CRIU is gone")
    check_nothing_made(pod, dump.checkpoint, "")
    row = daemon.replica(dump.replica["id"])
    equal(row["state"], "failed", "the replica")
    check("shim" in row["reason"], f"the reason does not tell of the shim: {row['reason']}")
    second = client.wait_answer()["identity"]["replica"]
    check(second != row["id"], "the dead replica answers")
    pod.check_gate(second)
    equal([n for n in pod.notes("accepted", row["id"]) if n["peer"] == common.GATEWAY], [], "connections to the first")
    equal(daemon.replica(second)["started_from"], "cold", "how the second started")


def test_daemon_killed(daemon):
    """SIGKILL for the daemon during the dump: the next one throws the half dump away, and takes the replica back."""
    for stage, finish in (("begun", True), ("frozen", True), ("frozen", False)):
        pod = dumping_pod(daemon, name=f"{stage}-{finish}".lower())
        with HeldDump(pod, stage) as dump:
            daemon.kill9()
            client = Client(pod.port)
            if finish:
                # The shim finishes it while nobody is there to make a checkpoint of it.
                dump.resume()
                wait_for(lambda dump=dump: not os.path.exists(f"/proc/{dump.criu}/exe"), "the dump is over")
            daemon.start()
            if not finish:
                # The dump is still going on: as long as the tree is frozen, the gate stays closed.
                client.wait_connected()
                row = daemon.replica(dump.replica["id"])
                check(not row["gate_open"], f"the gate was opened in the middle of a dump (the replica is {row['state']})")
        replica = client.wait_answer()["identity"]["replica"]
        equal(replica, dump.replica["id"], f"{pod.name}: who serves")
        check_nothing_made(pod, dump.checkpoint, "daemon")
        check_serves(pod, replica)
        daemon.remove(pod.name)


def test_daemon_killed_later(daemon):
    """SIGKILL while the checkpoint is sealed or proven: the next daemon proves it anew before it offers it."""
    pod = dumping_pod(daemon)
    with HeldDump(pod) as dump:
        pod.halt()  # the proof waits
    pod.wait_event("checkpoint.verifying")
    first = pod.get()["identity"]["replica"]
    daemon.kill9()
    daemon.start()
    row = daemon.api("GET", f"/v1/checkpoints/{dump.checkpoint}")
    check(row["status"] in ("sealed", "verifying"), f"the checkpoint is {row['status']} before it is proven")
    equal(daemon.api("GET", f"/v1/pods/{pod.name}")["checkpoint"]["id"], None, "what the pod offers")
    equal(pod.get()["identity"]["replica"], first, "who serves")
    pod.go()
    pod.wait_event("checkpoint.available")
    rows = daemon.scale(pod.name, 2)
    equal([row["started_from"] for row in rows], ["cold", dump.checkpoint], "how they started")


def test_removed_on_the_way(daemon):
    """A checkpoint, or the whole pod, that is removed while it is made or proven stays removed."""
    pod = dumping_pod(daemon)
    with HeldDump(pod) as dump:
        daemon.cli("checkpoint", "rm", dump.checkpoint)
    pod.wait_event("replica.ready")
    wait_for(lambda: not (daemon.data / "checkpoints" / dump.checkpoint).exists(), "its files are gone")
    equal(daemon.api("GET", "/v1/checkpoints"), [], "checkpoints")
    equal([e["type"] for e in pod.events() if e["checkpoint"] == dump.checkpoint][-1], "checkpoint.deleted", "the last word on it")

    since = daemon.last_event()
    pod.halt()
    create = common.background(daemon, "checkpoint", "create", pod.name)
    checkpoint = pod.wait_event("checkpoint.verifying", since)["checkpoint"]
    daemon.cli("rm", "-f", pod.name)
    create.wait(120)
    pod.go()
    wait_for(lambda: not (daemon.data / "checkpoints" / checkpoint).exists(), "its files are gone", timeout=120)
    equal([e["type"] for e in pod.events() if e["checkpoint"] == checkpoint][-1], "checkpoint.deleted", "the last word on it")


if __name__ == "__main__":
    thawtest.main(globals())
