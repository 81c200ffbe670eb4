"""Pods at zero under load, what a replica is waited for before it gets traffic, and what becomes of one that hangs."""

import contextlib
import json
import os
import signal

import thawtest
import traffic
from thawtest import check, equal, wait_for

PORT = thawtest.free_port()


def burst(daemon, pod):
    """By the published port and by the shared one; how the clients were served."""
    answers = traffic.burst([daemon.port(pod, 8000), PORT], f"{pod}.example.com")
    return {start for _, start in answers}


def test_burst(daemon):
    """200 clients at once to a pod at zero are all answered: cold, restored and from a standby, by a program with a short backlog and a long one."""
    for backlog in (5, 1024):
        name = f"b{backlog}"
        more = {"routes": [{"host": f"{name}.example.com"}], "env": {"BACKLOG": str(backlog)}, "replicas": {"min": 0, "max": 2, "concurrency": 150}}
        traffic.deploy(daemon, name, wait=False, **more)
        starts = burst(daemon, name)
        check('"cold"' in starts, f"how they were served: {starts}")
        traffic.deploy(daemon, name, **more, checkpoint={"when": {"all": [{"tcp": 8000}, {"tcp": 9000}]}})
        burst(daemon, name)
        daemon.wait_checkpoint(name)
        daemon.scale(name, 0)
        starts = burst(daemon, name)
        check('"restored"' in starts, f"how they were served: {starts}")
        more["replicas"]["standby"] = 1
        traffic.deploy(daemon, name, **more, checkpoint={"when": {"all": [{"tcp": 8000}, {"tcp": 9000}]}})
        daemon.scale(name, 0)
        wait_for(lambda name=name: daemon.api("GET", f"/v1/pods/{name}")["standby"], "a standby rests")
        since = daemon.last_event()
        burst(daemon, name)
        taken = [e for e in daemon.events(since, name) if e["type"] == "replica.ready" and "standbys" in e["message"]]
        check(taken, "the standby was not taken")
        daemon.remove(name)


def test_slow_start(daemon):
    """A pod that says nothing of when it is ready is ready when a port of it listens; so the first request waits as long as it takes."""
    traffic.deploy(daemon, "a", wait=False, checkpoint={}, env={"STARTS_IN": "4"}, replicas={"min": 0, "max": 1})
    with contextlib.closing(traffic.Front(daemon.port("a", 8000)).connect()) as client:
        client.sendall(b"GET /seen HTTP/1.1\r\nHost: x\r\n\r\n")
        equal(client.recv(15), b"HTTP/1.1 200 OK", "answer of a program that takes its time")


def test_ready(daemon):
    """Before its gate opens a replica is ready as the pod declares it."""
    traffic.deploy(daemon, "a", wait=False, ready={"exec": ["test", "-e", "/tmp/open"]})
    replica = wait_for(lambda: daemon.replicas("a", "warming"), "a replica warms up")[0]
    wait_for(lambda: not refused(daemon, replica["id"]), "its program listens")
    equal(daemon.replicas("a")[0]["gate_open"], False, "whether its gate is open before it is ready")
    daemon.exec(replica["id"], "touch", "/tmp/open")
    daemon.wait_ready("a", 1)


def refused(daemon, replica):
    return daemon.exec(replica, "python3", "-S", "-c", "import socket; print(socket.socket().connect_ex(('127.0.0.1', 8000)))").strip() != "0"


def test_alive(daemon):
    """A program that hangs is killed, and another takes its place."""
    traffic.deploy(daemon, "a", alive={"probe": {"http": {"path": "/seen"}}, "every": "200ms", "timeout": "2s", "failures": 2})
    first = daemon.replicas("a")[0]
    since = daemon.last_event()
    os.kill(first["pid"], signal.SIGSTOP)
    event = daemon.wait_event(lambda e: e["type"] == "replica.failed" and e["replica"] == first["id"], "the one that hangs is killed", since, "a")
    check("it hangs: 2 probes in a row failed" in event["message"], event["message"])
    daemon.wait_event(lambda e: e["type"] == "replica.ready" and e["replica"] != first["id"], "another serves", since, "a")
    equal(json.loads(daemon.http_published("a", "/seen", container=8000))["method"], "GET", "its answer")


def test_crash_loop(daemon):
    """A program that ends at once is started again each time later; `thaw ps`, the API and a client's 503 say so, and why. A new version begins anew."""
    broken = traffic.spec("a", command=["sh", "-c", "exit 7"])
    daemon.deploy(broken, wait=False)
    since = 0
    pauses = []
    for _ in range(3):
        event = daemon.wait_event(lambda e: e["type"] == "pod.crash_loop", "it says that it crashes", since, "a")
        since = event["id"]
        pauses.append(event["data"]["pause_ms"])
    check(pauses[0] < pauses[1] < pauses[2], f"the pauses do not grow: {pauses}")
    loop = daemon.api("GET", "/v1/pods/a")["crash_loop"]
    check(loop["failures"] >= 3 and "7" in loop["reason"] and loop["until_us"], f"crash_loop of the API: {loop}")
    check("crash loop" in daemon.cli("ps").stdout, daemon.cli("ps").stdout)
    traffic.deploy(daemon, "a")
    equal(daemon.api("GET", "/v1/pods/a")["crash_loop"], None, "crash_loop of a version that runs")


if __name__ == "__main__":
    thawtest.main(globals(), daemon_arguments=("--front", f"127.0.0.1:{PORT}"))
