"""Replicas that nobody uses: frozen where they are, in a checkpoint of their own, or stopped. And connections at rest, which keep none awake."""

import contextlib
import http.client
import os
import socket
import threading
import time

import thawtest
import traffic
from common import Pod, freezer_state, process_state, shims
from thawtest import check, equal, wait_for

PORT = thawtest.free_port()


def idle_pod(daemon, how, name, deploy=True, **more):
    """A pod at zero, of which a replica pauses as soon as nobody uses it."""
    replicas = {"min": 0, "max": 1, "keep_warm": "0s", **more.pop("replicas", {})}
    pod = Pod(daemon, name=name, replicas=replicas, idle=how, **more)
    pod.go()  # its program waits for nothing
    if deploy:
        pod.deploy()
    return pod


def counted(pod, wanted):
    """The next number that the program counts to, in memory and in a file. Its identity.json."""
    found = pod.get("count")
    equal((found["count"], found["file"]), (wanted, wanted), f"what {pod.name} has counted, in memory and in its file")
    return found["identity"]


def count(pod, wanted):
    """The replica's id."""
    return counted(pod, wanted)["replica"]


def wait_paused(daemon, pod):
    """Its only replica, when that is paused."""

    def paused():
        rows = daemon.replicas(pod.name)
        return rows[0] if [row["state"] for row in rows] == ["paused"] else None

    return wait_for(paused, f"the replica of {pod.name} is paused")


def view(daemon, pod):
    return daemon.api("GET", f"/v1/pods/{pod.name}")


def cpu_used(row):
    """Of its cgroup, in nanoseconds or microseconds, as the kernel counts."""
    for top, _, files in os.walk("/sys/fs/cgroup"):
        if not top.endswith("/" + row["slot"]):
            continue
        if "cpuacct.usage" in files:
            return int(thawtest._read(top + "/cpuacct.usage"))
        if "cpu.stat" in files and b"usage_usec" in thawtest._read(top + "/cpu.stat"):
            return int(thawtest._read(top + "/cpu.stat").split()[1])
    raise thawtest.Failure(f"no cgroup of {row['slot']} counts its CPU time")


def test_freeze(daemon):
    """It is frozen, uses no CPU, and goes on where it was: for a request, for an exec, and after the daemon was killed."""
    pod = idle_pod(daemon, "freeze", "ice")
    first = count(pod, 1)
    row = wait_paused(daemon, pod)
    equal((row["id"], row["gate_open"], freezer_state(row)), (first, False, "FROZEN"), "the replica that nobody uses")
    check("frozen until it is needed" in row["reason"], row["reason"])
    lines = daemon.cli("ps").stdout.splitlines()
    check(any("paused" in line and "frozen until" in line for line in lines), f"thaw ps: {lines}")
    equal((view(daemon, pod)["paused"], view(daemon, pod)["total"]), (1, 0), "paused replicas of the pod, and others")
    used = cpu_used(row)
    asked = daemon.last_event()
    time.sleep(0.3)
    equal(cpu_used(row) - used, 0, "CPU time that it used while it was frozen")
    equal(count(pod, 2), first, "the replica that goes on")
    equal(pod.states(first)[:6], ["starting", "warming", "ready", "pausing", "paused", "ready"], "its states")
    wait_paused(daemon, pod)
    check('thaw_start_seconds_count{started_from="frozen"} 1' in daemon.api("GET", "/metrics", raw=True)[1], "the metrics know nothing of a thawed replica")
    equal([e["type"] for e in pod.events(after=asked) if e["type"] in ("replica.failed", "replica.starting")], [], "starts and failures")
    # A program that a user starts in it finds it awake, and it stays so for the program.
    equal(daemon.exec(first, "cat", "/counted"), "1\n2\n", "what an exec in a paused replica finds")
    equal(daemon.replica(first)["state"], "ready", "its state after an exec")
    daemon.restart(kill=True)
    equal(count(pod, 3), first, "the replica that goes on after the daemon was killed")
    row = wait_paused(daemon, pod)
    daemon.restart(kill=True)
    again = wait_paused(daemon, pod)
    equal((again["id"], again["pid"], freezer_state(again)), (row["id"], row["pid"], "FROZEN"), "the frozen replica after the daemon was killed")
    equal(count(pod, 4), first, "the replica that goes on")
    wait_paused(daemon, pod)
    daemon.restart()
    equal(wait_paused(daemon, pod)["pid"], row["pid"], "the frozen replica after the daemon was started anew")
    daemon.cli("stop", first)
    wait_for(lambda: daemon.replica(first)["ended_us"], "the frozen replica ends")
    ended = daemon.replica(first)
    equal((ended["state"], ended["intent"]), ("stopped", "stop"), "the end of a frozen replica")
    equal(len(pod.notes("terminated", first)), 1, "how often it heard of it")
    # The user's number is the user's word: nothing is kept for later.
    daemon.scale(pod.name, 1)
    daemon.scale(pod.name, 0)
    equal(daemon.replicas(pod.name), [], "replicas after scaling to none")
    count(pod, 1)
    wait_paused(daemon, pod)
    daemon.scale(pod.name, 1)
    count(pod, 2)
    daemon.scale(pod.name, 0)
    count(pod, 1)
    wait_paused(daemon, pod)
    daemon.scale(pod.name, 0)
    wait_for(lambda: not daemon.replicas(pod.name), "scaling to none ends a frozen one")


def own(daemon, pod):
    """Checkpoints of the pod that are there."""
    return [row for row in daemon.api("GET", f"/v1/checkpoints?pod={pod.name}") if row["status"] == "available"]


def test_checkpoint(daemon):
    """It is dumped and ended, and goes on from that: memory and files, again and again, over a killed daemon. Only it starts from there."""
    pod = idle_pod(daemon, "checkpoint", "box")
    first = count(pod, 1)
    row = wait_paused(daemon, pod)
    equal((row["id"], row["pid"], row["slot"], row["gate_open"]), (first, None, None, False), "the replica that nobody uses")
    wait_for(lambda: len(shims(daemon)) == daemon.slots, "nothing of it runs")
    (mine,) = own(daemon, pod)
    equal((row["started_from"], mine["replica"]), (mine["id"], first), "the checkpoint that it is paused in")
    equal([e["type"] for e in daemon.events() if e["checkpoint"] == mine["id"]], [f"checkpoint.{x}" for x in ("creating", "sealed", "own")], "what is told of it")
    check(mine["id"] in row["reason"] and first in mine["reason"], f"{row['reason']}; {mine['reason']}")
    equal((view(daemon, pod)["checkpoint"]["id"], view(daemon, pod)["paused"]), (None, 1), "the checkpoint that others start from, and paused replicas")
    for number in (2, 3):
        equal(count(pod, number), first, "the replica that goes on")
        wait_paused(daemon, pod)
    wait_for(lambda: len(own(daemon, pod)) == 1 and os.listdir(daemon.data / "checkpoints") == [own(daemon, pod)[0]["id"]], "the checkpoints before are gone")
    equal(pod.states(first)[2:9], ["ready", "pausing", "checkpointing", "paused", "restoring", "validating", "ready"], "its states")
    daemon.restart(kill=True)
    wait_paused(daemon, pod)
    equal(count(pod, 4), first, "the replica that goes on after the daemon was killed")
    wait_paused(daemon, pod)
    daemon.restart()
    equal(count(pod, 5), first, "the replica that goes on after the daemon was started anew")
    who = pod.get()
    check(who["restored"] and who["identity"]["replica"] == first, f"who it says it is: {who['identity']}")
    # Without its state it starts anew, and says so.
    wait_paused(daemon, pod)
    daemon.cli("checkpoint", "rm", own(daemon, pod)[0]["id"])
    since = daemon.last_event()
    equal(count(pod, 1), first, "the replica that begins anew")
    told = pod.wait_event("replica.preparing", since, first)
    check("the state that it was paused with is lost" in told["message"], told["message"])
    wait_paused(daemon, pod)
    daemon.remove(pod.name)
    wait_for(lambda: not os.listdir(daemon.data / "checkpoints"), "its checkpoint goes with the pod")


def test_checkpoint_of_a_restored_one(daemon):
    """What was restored from the pod's checkpoint has unread memory and a layer below its own: both come along, and the pod's checkpoint stays the pod's."""
    pod = idle_pod(daemon, "checkpoint", "warm", when={"file": "/ctl/go"}, env={"ON_GO": "busy:20"})
    count(pod, 1)
    wait_paused(daemon, pod)
    # The pod's: the replica's own may be there before it.
    shared = wait_for(lambda: view(daemon, pod)["checkpoint"]["id"], "the pod has a checkpoint")
    daemon.scale(pod.name, 0)
    wait_for(lambda: not daemon.replicas(pod.name), "the user's word ends the paused one")
    wait_for(lambda: [row["id"] for row in own(daemon, pod)] == [shared], "its checkpoint goes with it")
    who = counted(pod, 1)
    first = who["replica"]
    equal(who["started_from"], shared, "what the second one was started from")  # its row tells of its own checkpoint as soon as it is paused
    for number in (2, 3):
        wait_paused(daemon, pod)
        equal(count(pod, number), first, "the replica that goes on")
    equal(view(daemon, pod)["checkpoint"]["id"], shared, "the checkpoint that others start from")
    layers = daemon.api("GET", f"/v1/checkpoints/{daemon.replica(first)['started_from']}")["manifest"]["layers"]
    equal(len(layers), 2, "layers after several pauses")
    daemon.remove(pod.name)


@contextlib.contextmanager
def fault(daemon, step, victim):
    """The daemon started again with it."""
    usual = daemon.env
    daemon.env = {**usual, "THAW_FAULT": f"{step}:{victim}", "THAW_FAULT_MARK": str(daemon.data / f"mark-{step}")}
    daemon.restart()
    yield
    wait_for((daemon.data / f"mark-{step}").exists, f"{step} is reached")
    daemon.env = usual


def dies_at(daemon, step, work):
    """The daemon dies at this step, to which `work` leads, and is started again."""
    with fault(daemon, step, "self"), contextlib.suppress(OSError, http.client.HTTPException):
        work()
    wait_for(lambda: daemon.process.poll() is not None, f"the daemon dies at {step}")
    daemon.start()


def test_what_dies(daemon):
    """The daemon in the middle of a pause, and while a replica goes on from one; CRIU, once: nothing of its state is lost."""
    pod = idle_pod(daemon, "checkpoint", "lives")
    first = count(pod, 1)
    wait_paused(daemon, pod)
    # Its processes are stopped, and what they were dumped into is not whole.
    dies_at(daemon, "seal.begun", lambda: count(pod, 2))
    equal(count(pod, 3), first, "the replica that goes on after a pause that came to nothing")
    wait_paused(daemon, pod)
    # It runs behind its gate. Nobody has reached it, and its state is that of the pause.
    dies_at(daemon, "restore.resumed", pod.get)
    equal((wait_paused(daemon, pod)["id"], daemon.replicas(pod.name)[0]["pid"]), (first, None), "the replica that was being restored")
    equal(count(pod, 4), first, "the replica that goes on")
    wait_paused(daemon, pod)
    with fault(daemon, "shim.restore.asked", "criu"):
        equal(count(pod, 5), first, "the replica that goes on")
    told = [e["message"] for e in pod.events("replica.preparing", first)]
    check(len(told) == 1 and told[0].startswith("restored once more"), f"falling back: {told}")
    daemon.remove(pod.name)


def test_killed_in_a_pause(daemon):
    """The daemon dies while the dump of a pause goes on. For the next one, which has nobody to start a replica for, it is no less paused."""
    daemon.restart()  # its slots may be of a test with faults of its own
    pod = idle_pod(daemon, "checkpoint", "half")
    first = count(pod, 1)
    wait_paused(daemon, pod)
    mark = daemon.hold_next()
    equal(count(pod, 2), first, "the replica that goes on")
    wait_for(mark.exists, "its dump has begun")
    daemon.kill9()
    daemon.start()
    equal(daemon.replica(first)["intent"], None, "what it was asked for")
    daemon.let_go()
    equal(count(pod, 3), first, "the replica that goes on after a pause that came to nothing")
    wait_paused(daemon, pod)
    daemon.remove(pod.name)


def test_cannot_be_dumped(daemon):
    """It is frozen instead, and says why."""
    pod = idle_pod(daemon, "checkpoint", "stuck", env={"AT_START": "landlock"})
    first = count(pod, 1)
    row = wait_paused(daemon, pod)
    equal((freezer_state(row), own(daemon, pod)), ("FROZEN", []), "a replica that cannot be dumped")
    check("could not be checkpointed" in row["reason"], row["reason"])
    told = pod.wait_event("replica.unpaused", replica=first)
    check("could not be checkpointed" in told["message"] and "frozen instead" in told["message"], told["message"])
    equal(count(pod, 2), first, "the replica that goes on")


def test_stop_and_bad_values(daemon):
    """The default, as before; and what is not known is said."""
    pod = idle_pod(daemon, "stop", "plain")
    first = count(pod, 1)
    pod.wait_event("replica.stopped", replica=first)
    check(count(pod, 1) != first, "a replica that was stopped serves")
    pod.spec["idle"] = "sleep"
    with contextlib.suppress(thawtest.ApiError):
        pod.deploy()
        raise thawtest.Failure("idle: sleep was taken")
    done = daemon.cli("deploy", "--name", "x", "--rootfs", pod.spec["rootfs"], "--idle", "sleep", "--", "true", check_exit=False)
    check(done.returncode != 0 and "give stop, freeze or checkpoint" in done.stderr, done.stderr)


def test_at_rest(daemon):
    """Connections on which nothing is asked and no byte moves keep no replica awake, and are ended with it; what is asked is waited for."""
    pod = idle_pod(daemon, "freeze", "rest", routes=[{"host": "rest.example.com"}], replicas={"concurrency": 1, "max": 2, "scale_down_delay": "500ms"})
    with contextlib.ExitStack() as open_:
        kept = open_.enter_context(contextlib.closing(http.client.HTTPConnection("127.0.0.1", PORT, timeout=90)))
        kept.request("GET", "/count", headers={"Host": "rest.example.com"})
        kept.getresponse().read()
        silent = open_.enter_context(socket.create_connection(("127.0.0.1", pod.port), 90))
        # Where the first request counts a moment longer, the two have called for a replica each.
        wait_for(lambda: {row["state"] for row in daemon.replicas(pod.name)} == {"paused"}, "all that serve are paused")
        equal(silent.recv(1), b"", "what a silent connection gets when its replica pauses")
        # Requests in flight at the shared port count: two of them call for two replicas.
        answers = []

        def ask(word):
            answers.append(traffic.Front(PORT).ask(f"/slow/{word}", host="rest.example.com")[0])

        threads = [threading.Thread(target=ask, args=(word,)) for word in ("a", "b")]
        for thread in threads:
            thread.start()
        wait_for(lambda: len(daemon.replicas(pod.name, "ready")) == 2, "two replicas for two requests in flight")
        rows = daemon.replicas(pod.name)
        time.sleep(1.2)  # longer than what is at rest may be
        equal({row["state"] for row in daemon.replicas(pod.name)}, {"ready"}, "states of replicas that are asked something")
        for word in ("a", "b"):
            (pod.ctl / word).touch()
        for thread in threads:
            thread.join(90)
        equal(answers, [200, 200], "answers")
        wait_for(lambda: {row["state"] for row in daemon.replicas(pod.name)} == {"paused"}, "they are paused afterwards")
        equal({row["id"] for row in daemon.replicas(pod.name)}, {row["id"] for row in rows}, "who is paused")
        check(all(process_state(row["pid"]) for row in rows), "their processes are there")


if __name__ == "__main__":
    thawtest.main(globals(), daemon_arguments=("--front", f"127.0.0.1:{PORT}"))
