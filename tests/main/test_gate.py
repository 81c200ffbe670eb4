"""The gate: nothing from outside reaches a replica before it is ready, and it opens once, whatever the way there."""

import common
import thawtest
from common import Client, HeldDump, Knocker, Pod
from thawtest import check, equal, wait_for

GO = {"file": "/ctl/go"}


def test_dump_proof_and_restore(daemon):
    """A client that is there from before the deploy is answered when the dump is done, not earlier; the same at a restore."""
    pod = Pod(daemon, when=GO)
    client = Client(pod.port)
    with Knocker(daemon):
        pod.deploy()
        client.wait_connected()
        first = pod.wait_note("up")[0]["replica"]  # it listens: only the gate is in the way
        pod.wait_event("replica.warming", replica=first)  # its program may run before the daemon has heard of it
        equal(pod.only_replica()["state"], "warming", "state before the condition holds")
        client.check_waits("while it warms up")
        check(not daemon.replica(first)["gate_open"], "the gate is shown as open while it warms up")

        with HeldDump(pod) as dump:
            client.check_waits("during the dump")
            equal(common.connections_inside(daemon, dump.replica), [], "connections at the dump")
            check(not daemon.replica(first)["gate_open"], "the gate is shown as open during the dump")
            pod.halt()  # the proof's probe does not pass until it is there again
        equal(client.wait_answer()["identity"]["replica"], first, "who answers")
        check(client.answered_us >= pod.check_gate(first)["time_us"], "the client was answered before `ready`")

        # The proof: a replica of its own, running, and reached by nobody, while there is traffic for the pod.
        pod.wait_event("checkpoint.verifying")
        wait_for(lambda: len(servers(daemon)) == 2, "the proof's replica runs", step=0.02)
        for _ in range(10):
            equal(pod.get()["identity"]["replica"], first, "who answers during the proof")
        equal(len(daemon.replicas(pod.name)), 1, "replicas shown during the proof")
        pod.go()
        checkpoint = pod.wait_checkpoint()
        equal({n["replica"] for n in pod.notes("accepted")}, {first}, "who was connected to until the proof was over")

        # A restore, as the only replica: its gate opens when it has answered its probe.
        daemon.scale(pod.name, 0)
        pod.halt()
        asked = daemon.last_event()
        client = Client(pod.port)
        client.wait_connected()
        daemon.scale(pod.name, 1, wait=False)
        second = pod.wait_event("replica.validating", asked)["replica"]
        client.check_waits("while it is validated")
        equal(pod.notes("accepted", second), [], "connections while it is validated")
        check(not daemon.replica(second)["gate_open"], "the gate is shown as open while it is validated")
        pod.go()
        equal(client.wait_answer()["identity"]["replica"], second, "who answers")
        opened = pod.check_gate(second)
        check(client.answered_us >= opened["time_us"], "the client was answered before `ready`")
        row = daemon.replica(second)
        equal((row["state"], row["started_from"], row["outcome"], row["gate_open"]), ("ready", checkpoint["id"], "Restored", True), "the replica")
        equal(pod.states(second), ["restoring", "validating", "ready"], "states of a restore")
        equal(pod.states(first), ["starting", "warming", "checkpointing", "ready", "draining", "stopping", "stopped"], "states of a first replica")


def servers(daemon):
    """The cgroups of this daemon in which a program runs: the proof's is not shown by the API."""
    found = set()
    for pid in thawtest._pids():
        group = thawtest._read(f"/proc/{pid}/cgroup").decode()
        # By its name: the command line of a restored program may lie in memory that was not read yet.
        if thawtest._read(f"/proc/{pid}/comm") == b"python3\n" and any(f":/thaw/{instance}/" in group for instance in daemon.instances):
            found.add(group.partition("/thaw/")[2].split()[0])
    return found


def test_probes_are_gone_at_the_dump(daemon):
    """Neither a connection nor a process of any probe is in the dumped tree."""
    pod = Pod(daemon, when={"all": [{"exec": ["test", "-e", "/ctl/go"]}, {"http": {"path": "/"}}, {"tcp": 8000}]})
    pod.deploy()
    pod.wait_note("up")
    with HeldDump(pod) as dump:
        equal(common.connections_inside(daemon, dump.replica), [], "connections at the dump")
        group = thawtest._read(f"/proc/{dump.replica['pid']}/cgroup")
        tree = [pid for pid in thawtest._pids() if thawtest._read(f"/proc/{pid}/cgroup") == group]
        equal(tree, [dump.replica["pid"]], "processes at the dump")
    pod.wait_checkpoint()


def test_dump_failed(daemon):
    """A program that cannot be dumped serves all the same; the next one starts cold, and says why there is no checkpoint."""
    pod = Pod(daemon, when=GO, env={"AT_START": "landlock"})
    client = Client(pod.port)
    with Knocker(daemon):
        pod.deploy()
        note = pod.wait_note("landlock")[0]
        check(note["descriptor"] >= 0, f"this kernel has no landlock (errno {note['error']}): the test needs something that cannot be dumped")
        client.check_waits("before the condition holds")
        pod.go()
        row = pod.wait_checkpoint("failed")
        first = client.wait_answer()["identity"]["replica"]
        opened = pod.check_gate(first)
        check(client.answered_us >= opened["time_us"], "the client was answered before `ready`")
        equal(pod.states(first), ["starting", "warming", "checkpointing", "ready"], "states")
        check("landlock" in row["reason"], f"the reason does not name what could not be dumped: {row['reason']}")
        check("landlock" in opened["message"], f"the event does not say why there is no checkpoint: {opened['message']}")
        check("landlock" in daemon.cli("checkpoint", "ls").stdout, "`thaw checkpoint ls` does not say why")
        wait_for(lambda: not (daemon.data / "checkpoints" / row["id"]).exists(), "the files of the failed dump are gone")
        rows = daemon.scale(pod.name, 2)
        equal([r["started_from"] for r in rows], ["cold", "cold"], "how they started")
        second = rows[1]["id"]
        equal(pod.states(second), ["starting", "warming", "ready"], "states of the second: the dump is not tried again at once")
        pod.check_gate(second)
        equal(len(daemon.api("GET", f"/v1/checkpoints?pod={pod.name}")), 1, "checkpoints")


def test_no_checkpoint_wanted(daemon):
    """With a condition the gate opens when it holds, without one at the start."""
    pod = Pod(daemon, when=GO, checkpoint={"enabled": False})
    client = Client(pod.port)
    pod.deploy()
    replica = pod.wait_note("up")[0]["replica"]
    client.wait_connected()
    client.check_waits("before the condition holds")
    pod.go()
    equal(client.wait_answer()["identity"]["replica"], replica, "who answers")
    check(client.answered_us >= pod.check_gate(replica)["time_us"], "the client was answered before `ready`")
    equal(pod.states(replica), ["starting", "warming", "ready"], "states")

    plain = Pod(daemon, "plain")
    client = Client(plain.port)
    plain.deploy()
    replica = client.wait_answer()["identity"]["replica"]
    plain.check_gate(replica)
    equal(plain.states(replica), ["starting", "warming", "ready"], "states without a condition")
    equal(daemon.api("GET", "/v1/checkpoints"), [], "checkpoints")


def test_condition_timed_out(daemon):
    """on_timeout: serve opens the gate without a checkpoint; fail never opens it, and the next replica tries again."""
    pod = Pod(daemon, when=GO, checkpoint={"timeout": "3s", "on_timeout": "serve"})
    client = Client(pod.port)
    pod.deploy()
    replica = client.wait_answer()["identity"]["replica"]
    opened = pod.check_gate(replica)
    check(client.answered_us >= opened["time_us"], "the client was answered before `ready`")
    check("/ctl/go" in opened["message"] and "did not hold" in opened["message"], f"the event does not say what was waited for: {opened['message']}")
    equal(pod.states(replica), ["starting", "warming", "ready"], "states with serve")
    equal(daemon.api("GET", "/v1/checkpoints"), [], "checkpoints")
    daemon.remove(pod.name)

    pod = Pod(daemon, "strict", when=GO, checkpoint={"timeout": "3s", "on_timeout": "fail"})
    client = Client(pod.port)
    pod.deploy()
    failed = pod.wait_event("replica.failed")
    check("/ctl/go" in failed["message"], f"the event does not say what was waited for: {failed['message']}")
    equal(pod.states(failed["replica"]), ["starting", "warming", "failed"], "states with fail")
    equal([n for n in pod.notes("accepted", failed["replica"]) if n["peer"] == common.GATEWAY], [], "connections to a replica that was never ready")
    client.check_waits("after the first replica has failed")
    check("/ctl/go" in daemon.cli("ps", "-a").stdout, "`thaw ps -a` does not say why it failed")
    pod.go()
    replica = client.wait_answer()["identity"]["replica"]
    check(replica != failed["replica"], "the failed replica answers")
    pod.check_gate(replica)


def test_stopped_on_the_way(daemon):
    """A replica that is to stop before it is ready never opens its gate, and its checkpoint is not blamed."""
    pod = Pod(daemon, when=GO)
    pod.deploy()
    replica = pod.wait_note("up")[0]["replica"]
    daemon.scale(pod.name, 0)
    equal(pod.states(replica)[-1], "stopped", "state of one that was stopped while it warmed up")
    check("ready" not in pod.states(replica), "it was ready on its way to the end")

    pod.go()
    daemon.scale(pod.name, 1)
    checkpoint = pod.wait_checkpoint()
    daemon.scale(pod.name, 0)
    pod.halt()
    asked = daemon.last_event()
    client = Client(pod.port)
    daemon.scale(pod.name, 1, wait=False)
    replica = pod.wait_event("replica.validating", asked)["replica"]
    daemon.cli("stop", pod.name)  # scaling would bring one back for the client that waits
    pod.wait_event("replica.stopped", asked, replica)
    row = daemon.replica(replica)
    equal((row["state"], row["outcome"]), ("stopped", "StoppedByUser"), "the replica")
    check("ready" not in pod.states(replica), "it was ready on its way to the end")
    client.check_waits("after the only replica was stopped")
    equal(daemon.api("GET", f"/v1/checkpoints/{checkpoint['id']}")["status"], "available", "the checkpoint")
    pod.go()
    daemon.scale(pod.name, 1)
    client.wait_answer()
    equal(pod.only_replica()["started_from"], checkpoint["id"], "the next one is restored")


def test_a_session_and_a_dump(daemon):
    """What is executed in a replica is in no dump: the one that comes second is refused, and says why. It is nobody's fault: the next
    replica dumps at once."""
    pod = Pod(daemon, "session", when=GO)
    pod.deploy()
    pod.wait_note("up")
    first = pod.only_replica()["id"]
    common.background(daemon, "exec", first, "--", "sleep", "600")
    wait_for(lambda: "sleep" in daemon.exec(first, "sh", "-c", "cat /proc/[0-9]*/comm"), "the session is open")
    pod.go()
    refused = pod.wait_event("checkpoint.failed")
    check("an exec session is open in it" in refused["message"], refused["message"])
    pod.wait_event("replica.ready")
    daemon.scale(pod.name, 0)
    pod.halt()
    asked = daemon.last_event()
    daemon.scale(pod.name, 1, wait=False)
    pod.wait_note("up", count=2)
    with HeldDump(pod) as dump:
        done = daemon.exec(dump.replica["id"], "true", check_exit=False)
        check(done.returncode != 0 and "it is being dumped" in done.stderr, f"exec during a dump: {done}")
    pod.wait_checkpoint(after=asked)


def test_a_proof_holds_up_nobody(daemon):
    """While one checkpoint is being proven for long, another pod's dump is collected from memory and sealed."""
    slow, quick = Pod(daemon, "slow", when=GO), Pod(daemon, "quick", when=GO)
    slow.deploy()
    slow.wait_note("up")
    with HeldDump(slow):
        slow.halt()  # its probe will not pass: the proof goes on
    slow.wait_event("checkpoint.verifying")
    quick.warm()
    sealed = quick.wait_event("checkpoint.sealed")
    check(not slow.events("checkpoint.available"), "the first proof was over too early to show anything")
    equal(set(sealed["data"]["freeze_parts"]), {"freezing_us", "memory_us", "write_us", "files_us"}, "parts of the freeze")
    slow.go()
    quick.wait_checkpoint()
    available = slow.wait_event("checkpoint.available")
    check(available["data"]["available_us"] > sealed["data"]["freeze_us"], f"how long it took: {available}")


if __name__ == "__main__":
    thawtest.main(globals())
