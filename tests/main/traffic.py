"""Pods and clients of the traffic tests."""

import contextlib
import http.client
import json
import socket
import ssl
import threading
import time

import common
import thawtest
from thawtest import check, equal, wait_for


def spec(name, **more):
    """A pod of inside/traffic.py."""
    return {
        "name": name,
        "rootfs": thawtest.rootfs("programs"),
        "command": ["python3", "-S", "-E", "/app/traffic.py"],
        "mounts": [{"source": str(common.HERE / "inside"), "target": "/app", "readonly": True}],
        "ports": [{"container": 8000, "protocol": "http"}, {"container": 9000}],
        "replicas": {"min": 1, "max": 4},
        "stop_grace": "3s",
        **more,
    }


def deploy(daemon, name, wait=True, **more):
    """Ready means that it listens: it has a condition, but makes no checkpoint."""
    checkpoint = {"enabled": False, "when": {"all": [{"tcp": 8000}, {"tcp": 9000}]}}
    return daemon.deploy(spec(name, **{"checkpoint": checkpoint, **more}), wait=wait)


class Front:
    """A client of the shared port."""

    def __init__(self, port, tls=None):
        self.port, self.tls = port, tls

    def connect(self, timeout=90):
        connection = socket.create_connection(("127.0.0.1", self.port), timeout)
        return self.tls.wrap_socket(connection, server_hostname="a.example.com") if self.tls else connection

    def connection(self, timeout=90):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        connection.sock = self.connect(timeout)
        return connection

    def ask(self, path="/seen", method="GET", body=None, host="a.example.com", headers=None, timeout=90):
        """status, headers, body"""
        with contextlib.closing(self.connection(timeout)) as connection:
            connection.request(method, path, body, {"Host": host, **(headers or {})}, encode_chunked="Transfer-Encoding" in (headers or {}))
            response = connection.getresponse()
            return response.status, response.headers, response.read()

    def seen(self, path="/seen", **more):
        status, headers, body = self.ask(path, **more)
        equal(status, 200, f"status of {path}: {body[:200]!r}")
        return json.loads(body), headers


class Load:
    """Clients that ask all the time, shared out among these ports, with a connection for each request. None may fail."""

    def __init__(self, *ports, clients=6, pause=0):
        self.ports, self.pause = ports, pause
        self.over = threading.Event()
        self.errors, self.took, self.replicas = [], [], set()
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self.ask, args=(number,)) for number in range(clients)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def end(self):
        self.over.set()
        for thread in self.threads:
            thread.join(60)

    def __exit__(self, kind, *_):
        self.end()
        if kind is None:
            equal(self.errors[:3], [], f"errors among {len(self.took)} answers")
            check(len(self.took) > 20, f"only {len(self.took)} requests were made")

    def ask(self, number):
        front = Front(self.ports[number % len(self.ports)])
        while not self.over.wait(self.pause):
            begin = time.monotonic()
            try:
                seen, _ = front.seen(timeout=60)
                with self.lock:
                    self.took.append(time.monotonic() - begin)
                    self.replicas.add(seen["identity"]["replica"])
            except Exception as error:  # whatever it is, it is a failed request
                self.errors.append(f"{time.time():.3f} after {time.monotonic() - begin:.3f} s: {error!r}")


def burst(ports, host, clients=200):
    """All clients at once, shared out among the ports; each must get its answer. Of each the seconds that it took, and what it was told of its start."""
    together = threading.Barrier(clients)
    answers, errors = [], []

    def client(number):
        try:
            together.wait()
            begin = time.monotonic()
            _, headers = Front(ports[number % len(ports)]).seen(host=host, timeout=120)
            answers.append((time.monotonic() - begin, headers.get("Server-Timing", "").rpartition("desc=")[2]))
        except (OSError, AssertionError, http.client.HTTPException) as error:
            errors.append(repr(error))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(150)
    equal((len(answers), sorted(set(errors))[:3]), (clients, []), f"answers of {host}, and errors")
    return answers


def settle(daemon, pod, version):
    """Until only replicas of this version are left."""
    wait_for(lambda: {row["version"] for row in daemon.replicas(pod)} == {version}, f"version {version} of {pod} is alone", timeout=180)


def trusting(certificate):
    context = ssl.create_default_context(cafile=str(certificate))
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


def hold(daemon, name):
    """Until the pod holds a connection."""
    return wait_for(lambda: daemon.api("GET", f"/v1/pods/{name}")["connections"]["held"], f"{name} holds a connection", step=0.01)


def raw(connection, text, size=1 << 20):
    """What comes back until the end; a reset is told."""
    found = b""
    try:
        connection.sendall(text)
        while len(found) < size and (piece := connection.recv(65536)):
            found += piece
    except (ConnectionResetError, BrokenPipeError):
        found += b"<reset>"
    return found


__all__ = ["Front", "Load", "burst", "check", "deploy", "hold", "raw", "settle", "spec", "trusting"]
