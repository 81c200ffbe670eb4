"""Connections to the outside: reset in the restored replica, which makes new ones; kept by the original; untouched by the proof."""

import contextlib
import os
import socket
import subprocess
import threading

import thawtest
from roundtrip import Program, app, http_live, round_trip
from thawtest import check, equal, in_netns, wait_for

# Addresses for documentation: nobody's.
HERE, THERE, HERE6, THERE6 = "198.51.100.1", "198.51.100.2", "2001:db8:77::1", "2001:db8:77::2"
PORT = 7007


class Outside:
    """A network namespace behind a veth, with servers that greet each connection by its number and echo lines."""

    def __init__(self):
        opened = []

        def unshare():
            if thawtest.LIBC.unshare(thawtest.CLONE_NEWNET) != 0:
                raise OSError("unshare")
            opened.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY))

        thread = threading.Thread(target=unshare)
        thread.start()
        thread.join()
        self.namespace = opened[0]
        self.link = f"out-{os.getpid()}"  # not thaw…: those are replicas, which may not reach each other
        thawtest.at_end(self.close)
        inside = f"/proc/{os.getpid()}/fd/{self.namespace}"
        self.ip("link", "add", self.link, "type", "veth", "peer", "name", "eth0", "netns", inside)
        for where, link, address, address6 in ((None, self.link, HERE, HERE6), (inside, "eth0", THERE, THERE6)):
            self.ip("address", "add", f"{address}/30", "dev", link, where=where)
            self.ip("address", "add", f"{address6}/64", "dev", link, "nodad", where=where)
            self.ip("link", "set", link, "up", where=where)
        self.lock = threading.Lock()
        self.accepted = {THERE: 0, THERE6: 0}
        self.listeners = []
        for address, family in ((THERE, socket.AF_INET), (THERE6, socket.AF_INET6)):
            listener = in_netns(self.namespace, lambda family=family: socket.socket(family))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            wait_for(lambda: self.bind(listener, address), f"{address} can be bound")
            listener.listen()
            self.listeners.append(listener)
            threading.Thread(target=self.serve, args=(listener, address), daemon=True).start()

    @staticmethod
    def bind(listener, address):
        with contextlib.suppress(OSError):  # a new IPv6 address takes a moment
            listener.bind((address, PORT))
            return True

    @staticmethod
    def ip(*words, where=None):
        enter = ["nsenter", f"--net={where}"] if where else []
        subprocess.run([*enter, "ip", *words], check=True, timeout=30)

    def serve(self, listener, address):
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with self.lock:
                self.accepted[address] += 1
                number = self.accepted[address]
            threading.Thread(target=self.echo, args=(connection, number), daemon=True).start()

    @staticmethod
    def echo(connection, number):
        with contextlib.suppress(OSError), connection, connection.makefile("rwb") as stream:
            stream.write(b"%d\n" % number)
            stream.flush()
            for line in stream:
                stream.write(line)
                stream.flush()

    def close(self):
        subprocess.run(["ip", "link", "del", self.link], capture_output=True, timeout=30, check=False)
        for listener in self.listeners:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self.listeners = []
        if self.namespace is not None:
            os.close(self.namespace)
            self.namespace = None


def test_connection_to_the_outside(daemon):
    outside = Outside()
    try:

        def state(replica):
            # The first call comes after the proof: it must not have got out.
            if state.calls == 0:
                equal(outside.accepted, {THERE: 1, THERE6: 1}, "connections that the outside has seen after the proof")
            state.calls += 1
            return replica.json("/state")

        def reset_and_made_anew(original, restored):
            for address, facts in original.json("/facts").items():
                equal(facts, {"lost": [], "failed": 0, "greeting": "1"}, f"the original's connection to {address}")
            for address, facts in restored.json("/facts").items():
                equal(len(facts["lost"]), 1, f"how often the restored replica lost its connection to {address}: {facts}")
                check(facts["lost"][0].startswith(("ConnectionResetError", "ConnectionAbortedError")), f"{address}: {facts}")
                equal(facts["greeting"], "2", f"the restored replica's connection to {address}")
            equal(outside.accepted, {THERE: 2, THERE6: 2}, "connections that the outside has seen")

        state.calls = 0
        round_trip(daemon, Program("outside", app("outside.py", f"{THERE},{PORT}", f"{THERE6},{PORT}"), state=state, change=None,
                                   live=http_live, more=reset_and_made_anew))  # fmt: skip
    finally:
        outside.close()


if __name__ == "__main__":
    thawtest.main(globals())
