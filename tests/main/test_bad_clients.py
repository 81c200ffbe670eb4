"""Clients that behave badly, all at once, beside one that does not: it is served, and what the daemon uses stays bounded and comes back."""

import contextlib
import os
import pathlib
import re
import socket
import struct
import subprocess
import sys
import threading
import time

import thawtest
import traffic
from thawtest import check, equal, wait_equal, wait_for

PORT = thawtest.free_port()
IDLE = {"shared": 6000, "published": 3600, "raw": 400}  # 10,000 that say nothing

# A process of their own: they need as many descriptors as the daemon.
SILENT = """
import resource, socket, sys
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
clients = [socket.create_connection(("127.0.0.1", int(port)), 120) for port, count in zip(*[iter(sys.argv[1:])] * 2) for _ in range(int(count))]
print("connected", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def silent_clients(*ports_and_counts):
    words = [sys.executable, "-S", "-E", "-c", SILENT, *map(str, ports_and_counts)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            equal(process.stdout.readline(), "connected\n", "what those that say nothing tell")
            yield
        finally:
            process.stdin.close()


def rss_mib(daemon):
    return int(re.search(r"VmRSS:\s+(\d+)", pathlib.Path(f"/proc/{daemon.pid}/status").read_text(encoding="utf-8"))[1]) / 1024


def descriptors(daemon):
    return len(os.listdir(f"/proc/{daemon.pid}/fd"))


def reset(client):
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def fill(client):
    """Sends, and reads nothing, until nothing more is taken."""
    client.settimeout(0.5)
    with contextlib.suppress(OSError):
        while True:
            client.sendall(b"x" * 65536)


def test_all_at_once(daemon):
    """Slow and silent clients, resets, half-closed ends, garbage: memory and descriptors stay bounded, and a good client notices nothing."""
    traffic.deploy(daemon, "a", routes=[{}], replicas={"min": 1, "max": 1})  # others would need descriptors, too
    published, echo = daemon.port("a", 8000), daemon.port("a", 9000)
    good = traffic.Front(PORT)
    good.seen()
    before = rss_mib(daemon), descriptors(daemon)
    with contextlib.ExitStack() as stack:
        # A header that never ends: a byte at a time.
        slow = traffic.Front(PORT).connect()
        stack.enter_context(contextlib.closing(slow))
        cut_off = []

        def dribble():
            try:
                for byte in b"GET / HTTP/1.1\r\nX: " + b"x" * 200:
                    slow.sendall(bytes([byte]))
                    time.sleep(0.5)
            except OSError as error:
                cut_off.append(error)

        dribbler = threading.Thread(target=dribble)
        dribbler.start()
        # Many that say nothing. Where the client speaks first, such a one is of no replica yet.
        stack.enter_context(silent_clients(PORT, IDLE["shared"], published, IDLE["published"], echo, IDLE["raw"]))
        # What else it had may be gone meanwhile: a few.
        wait_for(lambda: descriptors(daemon) > before[1] + sum(IDLE.values()) + IDLE["raw"] - 50, "all of them are connected")
        wait_equal(lambda: daemon.api("GET", "/v1/pods/a")["connections"]["active"], IDLE["raw"], "connections with the replica")
        # Writers that read nothing, and are reset with both directions full.
        full = [traffic.Front(echo).connect() for _ in range(20)]
        fillers = [threading.Thread(target=fill, args=(client,)) for client in full]
        for thread in fillers:
            thread.start()
        for thread in fillers:
            thread.join(60)
        good.seen()
        for client in full:
            reset(client)
        # Readers that take little, of much; ends that are closed half; what is no HTTP.
        for _ in range(20):
            reader = stack.enter_context(contextlib.closing(traffic.Front(PORT).connect()))
            reader.sendall(b"GET /length/50000000 HTTP/1.1\r\nHost: x\r\n\r\n")
            reader.recv(10)
            half = stack.enter_context(contextlib.closing(traffic.Front(published).connect()))
            half.shutdown(socket.SHUT_WR)
            for port in (PORT, published):
                junk = stack.enter_context(contextlib.closing(traffic.Front(port).connect()))
                junk.sendall(os.urandom(3000))
        during = rss_mib(daemon), descriptors(daemon)
        check(during[0] < before[0] + 200, f"MiB of the daemon: {before[0]:.0f}, then {during[0]:.0f}")
        for _ in range(20):
            good.seen()
            equal(traffic.Front(published).ask()[0], 200, "status at the published port")
        dribbler.join(120)
        check(cut_off, "a header may take for ever, a byte at a time")
    wait_for(lambda: descriptors(daemon) <= before[1] + 10, f"the {during[1]} descriptors are {before[1]} again", timeout=120)
    wait_for(lambda: daemon.api("GET", "/v1/pods/a")["connections"] == {"held": 0, "active": 0}, "nothing is in flight")
    good.seen()


if __name__ == "__main__":
    thawtest.main(globals(), daemon_arguments=("--front", f"127.0.0.1:{PORT}", "--front-header-time", "5s"))
