"""Standbys: restored ahead of time, frozen, taken by the request that needs one. And demand: connections start and end replicas."""

import os
import signal
import socket
import tempfile
import time

import thawtest
from common import Client, Pod, ask, freezer_state, process_state, shim_of, shims
from thawtest import check, equal, wait_for

GO = {"file": "/ctl/go"}


def standbys(daemon, pod, count, gone=()):
    """Waits for so many standbys that are none of `gone`; their rows."""

    def found():
        rows = [row for row in daemon.replicas(pod.name) if row["state"] == "standby" and row["id"] not in gone]
        return rows if len(rows) == count else None

    return wait_for(found, f"{count} standbys of {pod.name}")


def test_a_request_takes_a_standby(daemon):
    """A pod at zero: the first request takes a standby, another is made, and the replica goes when nobody uses it any more."""
    pod = Pod(daemon, when=GO, replicas={"min": 0, "max": 4, "standby": 2, "keep_warm": "3s"})
    pod.deploy()
    client = Client(pod.port)
    pod.wait_note("up")
    pod.go()
    first = client.wait_answer()["identity"]
    equal(first["started_from"], "cold", "how the first one was started, by a request alone")
    checkpoint = pod.wait_checkpoint()
    waiting = standbys(daemon, pod, 2)
    for row in waiting:
        equal((row["gate_open"], row["outcome"], row["started_from"]), (False, "Restored", checkpoint["id"]), "a standby")
        equal(freezer_state(row), "FROZEN", "its processes")
    view = next(p for p in daemon.cli_json("ls") if p["name"] == pod.name)
    equal(view["standby"], 2, "standbys that `thaw ls` counts")
    pod.wait_event("replica.stopped", replica=first["replica"])  # nobody used it for a while
    equal({row["state"] for row in daemon.replicas(pod.name)}, {"standby"}, "who is left")

    asked = daemon.last_event()
    who = pod.get()
    taken = who["identity"]["replica"]
    check(taken in {row["id"] for row in waiting}, "the request was answered by another replica than a standby")
    row = daemon.replica(taken)
    equal((row["state"], row["gate_open"], freezer_state(row)), ("ready", True, "THAWED"), "the standby that was taken")
    equal(who["identity"], {"pod": "web", "replica": taken, "hostname": row["hostname"], "generation": taken, "started_from": checkpoint["id"]}, "identity.json")
    equal((who["hostname"], who["etc_hostname"]), (row["hostname"], row["hostname"]), "hostname and /etc/hostname")
    check(f"10.77.0.2 {row['hostname']}" in who["hosts"], f"/etc/hosts does not name {row['hostname']}: {who['hosts']}")
    equal(pod.states(taken), ["restoring", "validating", "standby", "ready"], "states of a standby that was taken")
    equal(pod.events("replica.fallback", after=asked), [], "fallbacks")
    refilled = standbys(daemon, pod, 2)
    check(taken not in {row["id"] for row in refilled}, "the taken one is counted as a standby still")
    pod.wait_event("replica.stopped", asked, taken)
    # Scaling takes them, too, and makes what is missing.
    rows = daemon.scale(pod.name, 3)
    equal(len(rows), 3, "replicas after scaling")
    check({row["id"] for row in refilled} < {row["id"] for row in rows}, "scaling up did not take the standbys")
    equal({ask(daemon, row, "who")["identity"]["replica"] for row in rows}, {row["id"] for row in rows}, "who they say they are")


def test_stopped_before_the_first_instruction(daemon):
    """standby_warm: false. It has not run at all until it is taken, and is validated then."""
    pod = Pod(daemon, when=GO, replicas={"min": 0, "max": 2, "standby": 1, "standby_warm": False, "keep_warm": "0s"})
    client = Client(pod.port, "who")
    pod.deploy()
    pod.wait_note("up")
    pod.go()
    client.wait_answer()
    pod.wait_checkpoint()
    row = standbys(daemon, pod, 1)[0]
    equal(process_state(row["pid"]), "T", "state of its process")
    wait_for(lambda: {r["state"] for r in daemon.replicas(pod.name)} == {"standby"}, "the first replica is gone")
    who = pod.get()
    equal(who["identity"]["replica"], row["id"], "who answers")
    equal(who["hostname"], row["hostname"], "its hostname")
    equal(pod.states(row["id"])[:4], ["restoring", "standby", "validating", "ready"], "its states")


def test_standbys_and_crashes(daemon):
    """They outlive the daemon, die with their shim although they are frozen, and never count as a crash of the pod."""
    pod = Pod(daemon, when=GO, replicas={"min": 1, "max": 3, "standby": 2})
    pod.warm()
    pod.wait_checkpoint()
    before = standbys(daemon, pod, 2)
    daemon.restart(kill=True)
    after = standbys(daemon, pod, 2)
    equal({row["id"] for row in after}, {row["id"] for row in before}, "standbys after the daemon was killed and started again")
    equal([freezer_state(row) for row in after], ["FROZEN", "FROZEN"], "their processes")

    victim = after[0]
    os.kill(shim_of(daemon, victim), signal.SIGKILL)
    # What nobody reaps yet is dead, too.
    wait_for(lambda: process_state(victim["pid"]) in ("", "Z"), "the frozen standby dies with its shim")
    fresh = standbys(daemon, pod, 2, gone=[victim["id"]])
    check(after[1]["id"] in {row["id"] for row in fresh}, "the other standby is gone, too")
    equal(next(p for p in daemon.cli_json("ls") if p["name"] == pod.name)["ready"], 1, "replicas that serve")

    rows = daemon.scale(pod.name, 3)
    check({row["id"] for row in fresh} < {row["id"] for row in rows}, "scaling up did not take the standbys")
    # A new version: its checkpoint is another, so the old standbys go.
    old = standbys(daemon, pod, 2)
    pod.spec["env"] = {"VERSION": "2"}
    pod.deploy()
    wait_for(lambda: not {row["id"] for row in old} & {row["id"] for row in daemon.replicas(pod.name)}, "standbys of the old version go")
    # Stopping ends them all.
    daemon.cli("stop", pod.name)
    wait_for(lambda: not daemon.replicas(pod.name), "a stopped pod has no standbys")


def test_demand(daemon):
    """Connections start as many replicas as they call for, at once, and fewer of them later end some; the user's number is the least."""
    pod = Pod(daemon, when=GO, max=3, replicas={"min": 0, "max": 3, "concurrency": 2, "keep_warm": "3s", "scale_down_delay": "500ms"})
    pod.deploy()
    clients = [socket.create_connection(("127.0.0.1", pod.port)) for _ in range(5)]
    for client in clients:
        client.sendall(b"GET /")  # something is asked of it
    pod.wait_note("up")
    pod.go()
    wait_for(lambda: len(daemon.replicas(pod.name, "ready")) == 3, "three replicas for five connections")
    for client in clients[1:]:
        client.close()
    wait_for(lambda: len(daemon.replicas(pod.name)) == 1, "one replica for one connection")
    clients[0].close()
    wait_for(lambda: not daemon.replicas(pod.name), "none for none")
    served = pod.get()["identity"]["replica"]
    daemon.restart(kill=True)
    equal(pod.get()["identity"]["replica"], served, "who answers after the daemon was killed and started again")
    wait_for(lambda: not daemon.replicas(pod.name), "it goes when it is not used")
    rows = daemon.scale(pod.name, 2)
    equal(len(rows), 2, "replicas that the user asked for")
    pod.get()
    time.sleep(4)  # longer than keep_warm
    equal(len(daemon.replicas(pod.name, "ready")), 2, "replicas when the connection is over")
    daemon.scale(pod.name, 0)
    pod.get()  # a request brings it back


def test_memory_is_short():
    """Standbys are given up, then the prepared slots; who serves stays, and all comes back with the memory."""
    meminfo = "MemTotal: 1000000 kB\nMemAvailable: {} kB\n"
    with tempfile.NamedTemporaryFile("w") as file, thawtest.Daemon(env={"THAW_MEMINFO": file.name}) as daemon:

        def available(kib):
            file.seek(0)
            file.write(meminfo.format(kib))
            file.flush()

        available(900000)
        pod = Pod(daemon, when=GO, replicas={"min": 1, "max": 3, "standby": 1})
        pod.warm()
        pod.wait_checkpoint()
        given_up = standbys(daemon, pod, 1)[0]
        ice = Pod(daemon, name="ice", idle="freeze", replicas={"min": 0, "max": 1, "keep_warm": "0s"})
        ice.deploy()
        frozen = ice.get()["identity"]["replica"]
        ice.wait_event("replica.paused")
        wait_for(lambda: len(shims(daemon)) == 3 + daemon.slots, "a replica, a standby, a frozen one and the slots")
        available(100)
        daemon.scale(pod.name, 1)  # the controller looks around
        check("memory is short" in ice.wait_event("replica.stopped", replica=frozen)["message"], "why a frozen replica was given up")
        stopped = pod.wait_event("replica.stopped", replica=given_up["id"])
        check("memory is short" in stopped["message"], stopped["message"])
        serves = pod.only_replica()
        wait_for(lambda: list(shims(daemon)) == [serves["slot"]], "only the replica that serves is left")
        equal(pod.get()["identity"]["replica"], serves["id"], "who serves")
        available(900000)
        wait_for(lambda: len(shims(daemon)) == 2 + daemon.slots, "a standby and the slots come back")


if __name__ == "__main__":
    thawtest.main(globals())
