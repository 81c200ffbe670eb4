"""New versions and scaling under load: no request fails, and what was begun is finished."""

import contextlib
import os
import signal
import threading
import time

import thawtest
import traffic
from thawtest import check, equal, wait_for

PORT = thawtest.free_port()


def test_versions(daemon):
    """A version with another port, one that takes its time, one that cannot run: clients notice none of it."""
    host, side = thawtest.free_port(), thawtest.free_port()
    base = {"routes": [{}], "replicas": {"min": 1, "max": 4, "drain": "30s"}}

    def ports(container, *more):
        return [{"container": container, "host": host, "protocol": "http"}, *more]

    traffic.deploy(daemon, "a", **base, ports=ports(8000, {"container": 9000, "host": side}), checkpoint={})
    with traffic.Load(host, PORT) as load:
        version = daemon.api("GET", "/v1/pods/a")["version"]
        slow = {"STARTS_IN": "3"}
        traffic.deploy(daemon, "a", **base, wait=False, ports=ports(8001), checkpoint={}, command=["python3", "-S", "-E", "/app/traffic.py", "8001"], env=slow)
        # What the new version does not have is there as long as the old one serves.
        with contextlib.closing(traffic.Front(side).connect()) as client:
            equal(client.makefile("rb").readline(), b"10.77.0.1\n", "answer at a port of the old version")
        traffic.settle(daemon, "a", version + 1)
        wait_for(lambda: refused(side), "the old version's port is closed")
        check(len(load.replicas) > 1, f"only {load.replicas} answered")
        # One that cannot run leaves the old one serving; the next takes over from there.
        traffic.deploy(daemon, "a", **base, wait=False, ports=ports(8000), checkpoint={}, command=["sh", "-c", "exit 3"])
        daemon.wait_event(lambda e: e["type"] == "pod.crash_loop", "the broken version crashes", 0, "a")
        equal({row["version"] for row in daemon.replicas("a", "ready")}, {version + 1}, "versions that serve")
        traffic.deploy(daemon, "a", **base, wait=False, ports=ports(8000))
        traffic.settle(daemon, "a", version + 3)


def test_the_old_version_keeps_its_strength(daemon):
    """One of its replicas that dies while the new version is not ready is replaced by another of its own."""
    traffic.deploy(daemon, "b", replicas={"min": 2, "max": 2})
    version = daemon.api("GET", "/v1/pods/b")["version"]
    traffic.deploy(daemon, "b", wait=False, replicas={"min": 2, "max": 2}, ready={"exec": ["test", "-e", "/tmp/open"]})
    wait_for(lambda: len(daemon.replicas("b", "warming")) == 2, "the new version warms up")
    victim = daemon.replicas("b", "ready")[0]
    os.kill(victim["pid"], signal.SIGKILL)
    wait_for(lambda: daemon.replica(victim["id"])["ended_us"], "it has ended")
    wait_for(lambda: len(daemon.replicas("b", "ready")) == 2, "another of the old version is ready")
    equal({row["version"] for row in daemon.replicas("b", "ready")}, {version}, "versions that serve")
    equal(daemon.api("GET", "/v1/pods/b")["crash_loop"], None, "crashes of the new version")
    for row in daemon.replicas("b", "warming"):
        daemon.exec(row["id"], "touch", "/tmp/open")
    wait_for(lambda: {row["version"] for row in daemon.replicas("b")} == {version + 1}, "the new version is alone")
    daemon.remove("b")


def refused(port):
    try:
        traffic.Front(port).connect(5).close()
        return False
    except ConnectionRefusedError:
        return True


def test_scaling(daemon):
    """Up and down all the time under load: no request fails."""
    host = thawtest.free_port()
    traffic.deploy(daemon, "a", routes=[{}], ports=[{"container": 8000, "host": host, "protocol": "http"}], checkpoint={"when": {"tcp": 8000}})
    daemon.wait_checkpoint("a")
    with traffic.Load(host, PORT):
        for count in (3, 1, 4, 2, 0, 3, 0, 1):
            daemon.scale("a", count, wait=False)
            time.sleep(0.7)


def test_who_leaves(daemon):
    """Scaling down takes the replica that has the least to finish, though another is younger; a connection that is kept open keeps its replica."""
    traffic.deploy(daemon, "a", replicas={"min": 2, "max": 2})
    older, younger = (row["id"] for row in daemon.replicas("a", "ready"))
    front = traffic.Front(daemon.port("a", 8000))
    with contextlib.ExitStack() as stack:

        def who(connection):
            connection.request("GET", "/seen")
            return traffic.json.loads(connection.getresponse().read())["identity"]["replica"]

        clients = [stack.enter_context(contextlib.closing(front.connection())) for _ in range(2)]
        found = {who(client): client for client in clients}
        equal(set(found), {older, younger}, "who has one of two connections")
        found[older].close()
        wait_for(lambda: daemon.api("GET", "/v1/pods/a")["connections"]["active"] == 1, "one connection is left")
        daemon.scale("a", 1)
        equal([row["id"] for row in daemon.replicas("a", "ready")], [younger], "who is left")
        equal(who(found[younger]), younger, "who answers on the connection that was kept")


def test_drain(daemon):
    """A request that takes longer than stop_grace is finished when scaling takes its replica away; `thaw stop` waits stop_grace only."""
    traffic.deploy(daemon, "a", routes=[{}], stop_grace="1s", replicas={"min": 0, "max": 1, "keep_warm": "0s"})
    for ask in (traffic.Front(PORT).ask, traffic.Front(daemon.port("a", 8000)).ask):
        daemon.scale("a", 1)
        answers = []
        client = threading.Thread(target=lambda ask=ask: answers.append(ask("/slow/4")))
        client.start()
        wait_for(lambda: daemon.api("GET", "/v1/pods/a")["connections"]["active"], "the request is with the replica")
        daemon.scale("a", 0, wait=False)
        wait_for(lambda: daemon.replicas("a", "draining"), "the replica drains")
        client.join(90)
        equal([(status, body) for status, _, body in answers], [(200, b"slow\n")], "the answer of a replica that leaves")
        wait_for(lambda: not daemon.replicas("a"), "the replica has ended")
    daemon.scale("a", 1)
    with contextlib.closing(traffic.Front(daemon.port("a", 8000)).connect()) as client:
        client.sendall(b"GET /slow/600 HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_for(lambda: daemon.api("GET", "/v1/pods/a")["connections"]["active"], "the request is with the replica")
        daemon.scale("a", 0, wait=False)
        wait_for(lambda: daemon.replicas("a", "draining"), "the replica drains")
        daemon.cli("stop", "a")
        wait_for(lambda: not daemon.replicas("a"), "the replica has ended")


if __name__ == "__main__":
    thawtest.main(globals(), daemon_arguments=("--front", f"127.0.0.1:{PORT}"))
