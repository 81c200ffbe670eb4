"""Thaw: a pod's replica from nothing to its first answer through the published port."""

import http.client
import json
import os
import signal
import socket
import subprocess
import time

from . import host, http_probe
from .host import BenchError
from .system import System


READY_SECONDS = 300


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path, timeout):
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Daemon:
    """A daemon on a data directory of its own, and one kept connection to its API."""

    def __init__(self, binary, folder, seconds=60, arguments=()):
        self.data = folder / "-".join(["thaw", *arguments])
        self.data.mkdir()
        self.log = self.data / "thaw.log"
        self.path = str(self.data / "thaw.sock")
        self.address = f"unix:{self.path}"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [str(binary), "daemon", "--data-dir", str(self.data), "--listen", self.address, "--stop-replicas-on-exit", *arguments],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,  # Ctrl-C is for this program
            )  # fmt: skip
        self.api, self.asked = _UnixConnection(self.path, READY_SECONDS + 30), 0
        try:
            host.wait_for(self.answers, "the daemon's first answer", seconds)
        except BaseException:
            self.close()
            raise

    def answers(self):
        if self.process.poll() is not None:
            raise BenchError(f"the daemon ended ({self.process.returncode}): {self.log_tail()}")
        try:
            return self.call("GET", "/v1/version")
        except (FileNotFoundError, ConnectionError):
            self.api.close()
            return None

    def log_tail(self):
        return " / ".join(self.log.read_text(errors="replace").strip().splitlines()[-5:])

    def send(self, method, path, body=None):
        # The daemon ends a connection that nothing is asked on, as while a cold start takes minutes.
        if time.monotonic() - self.asked > 20:
            self.api.close()
        self.asked = time.monotonic()
        text = json.dumps(body) if body is not None else None
        self.api.request(method, path, text, {"Content-Type": "application/json"} if text else {})

    def receive(self):
        response = self.api.getresponse()
        value = json.loads(response.read() or b"null")
        if response.status >= 400:
            raise BenchError(f"thaw: {value['error']['message']}")
        return value

    def call(self, method, path, body=None):
        self.send(method, path, body)
        return self.receive()

    def events(self, pod):
        """What happens to a pod from now on, as it happens."""
        stream = _UnixConnection(self.path, READY_SECONDS)
        stream.request("GET", f"/v1/events?follow=true&pod={pod}&after={self.call('GET', '/v1/version')['last_event']}")
        try:
            for line in stream.getresponse():
                if line.startswith(b"data:"):
                    yield json.loads(line[5:])
        finally:
            stream.close()

    def close(self):
        self.api.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        host.reap_orphans()


class DaemonBench:
    """What a ThawSystem asks of its run, where all of them share one daemon."""

    def __init__(self, folder, binary, rootfs="example"):
        self.folder, self.path, self.later_requests, self.cold_cache = folder, "/", 0, False
        self.app = host.REPOSITORY / "examples/model-server/app"
        self.rootfs = host.run([host.REPOSITORY / "scripts/rootfs", rootfs], timeout=1800).strip()
        self.daemon = Daemon(binary, folder)

    def thaw_daemon(self, *_):
        return self.daemon


class ThawSystem(System):
    """0 to 1 replicas, asked for over a kept API connection, while a client already waits at the published port."""

    ready_seconds = READY_SECONDS
    checkpoint = {"enabled": True}
    replicas = {"min": 0, "max": 4}
    daemon_arguments = ()

    def __init__(self, bench, heap_mib):
        super().__init__(bench, heap_mib)
        self.pod = f"{self.name}-{heap_mib}"
        self.port = host.free_port()
        self.daemon = None
        self.checkpoint_id = None
        self.replica = None

    def spec(self):
        when = {"http": {"port": 8000, "path": "/health", "status": 200}}
        return {
            "name": self.pod,
            "rootfs": str(self.bench.rootfs),
            "command": ["python3", "/app/server.py"],
            "env": {"HEAP_MIB": str(self.heap_mib)},
            "mounts": [{"source": str(self.bench.app), "target": "/app", "readonly": True}],
            "ports": [{"container": 8000, "host": self.port}],
            "replicas": self.replicas,
            "checkpoint": {"when": when, "timeout": "5m", **self.checkpoint},
        }

    def prepare(self):
        self.daemon = self.bench.thaw_daemon(*self.daemon_arguments)
        self.daemon.call("POST", "/v1/pods", self.spec())
        if not self.checkpoint["enabled"]:
            return
        self.scale(1, wait=f"{READY_SECONDS}s")
        host.wait_for(self.offered, "the checkpoint's proof", READY_SECONDS, 0.05)
        self.scale(0)
        self.wait_gone()

    def offered(self):
        for checkpoint in self.daemon.call("GET", f"/v1/checkpoints?pod={self.pod}"):
            if checkpoint["status"] in ("failed", "restore_failed"):
                raise BenchError(f"thaw: no checkpoint: {checkpoint['reason']}")
        for replica in self.daemon.call("GET", f"/v1/replicas?pod={self.pod}&all=true"):
            if replica["state"] == "failed" and not replica["proof"]:
                raise BenchError(f"thaw: the replica failed: {replica['reason']}")
        pod = self.daemon.call("GET", f"/v1/pods/{self.pod}")
        if not pod["checkpoint"]["effective"]:
            raise BenchError(f"thaw: no checkpoint: {pod['checkpoint']['reason']}")
        self.checkpoint_id = pod["checkpoint"]["id"]
        return self.checkpoint_id

    def image(self):
        return self.checkpoint_id and self.daemon.data / "checkpoints" / self.checkpoint_id

    def scale(self, replicas, **options):
        return self.daemon.call("POST", f"/v1/pods/{self.pod}/scale", {"replicas": replicas, **options})

    def running(self):
        return [r for r in self.daemon.call("GET", f"/v1/replicas?pod={self.pod}") if r["state"] != "standby" and not r["proof"]]

    def wait_gone(self):
        host.wait_for(lambda: not self.running(), f"the end of {self.pod}'s replicas", 60)

    def start(self):
        begun = time.monotonic()
        self.daemon.send("POST", f"/v1/pods/{self.pod}/scale", {"replicas": 1})
        try:
            answer = http_probe.first_200(self.port, self.bench.path, self.ready_seconds)
        finally:
            self.daemon.receive()
        return begun, self.checked(answer)

    def checked(self, answer):
        """That the one replica there is was started as the row says."""
        replicas = [r for r in self.running() if r["state"] == "ready"]
        wanted = self.checkpoint_id or "cold"
        reason = None
        if len(replicas) != 1:
            reason = f"{len(replicas)} replicas run in place of one"
        elif replicas[0]["started_from"] != wanted:
            reason = f"it started from {replicas[0]['started_from']}, not {wanted}: {replicas[0]['reason']}"
        if reason:
            answer.connection.close()
            raise BenchError(f"thaw: {reason}")
        self.replica = replicas[0]
        return answer

    def processes(self):
        # The shim with everything below it: the replica, and whatever serves its pages.
        shim = host.parent_of(self.replica["pid"])
        supervised = shim not in (None, 1, os.getpid(), self.daemon.process.pid)
        return host.tree(shim if supervised else self.replica["pid"])

    def phases(self):
        phases = self.daemon.call("GET", f"/v1/replicas/{self.replica['id']}")["phases"]
        return {p["name"]: (p["end_us"] - p["start_us"]) / 1000 for p in phases if p["end_us"]}

    def stop(self):
        self.scale(0)
        self.wait_gone()

    def close(self):
        if self.daemon and self.daemon.process.poll() is None:
            try:
                self.daemon.call("DELETE", f"/v1/pods/{self.pod}?force=true")
            except (BenchError, OSError, http.client.HTTPException):
                pass  # the daemon's own end removes what it can


class ThawCold(ThawSystem):
    name = "cold"
    note = "Thaw, no checkpoint; the client waits at the published port until the pod's condition holds"
    checkpoint = {"enabled": False}


class ThawEager(ThawSystem):
    name = "thaw-eager"
    note = "Thaw, checkpoint.memory: eager; through the published port"
    checkpoint = {"enabled": True, "memory": "eager"}


class ThawLazy(ThawSystem):
    name = "thaw-lazy"
    note = "Thaw, checkpoint.memory: lazy; through the published port"
    checkpoint = {"enabled": True, "memory": "lazy"}


class ThawCli(ThawLazy):
    name = "thaw-cli"
    note = "the same, asked for with the command `thaw scale` instead of the API"

    def start(self):
        begun = time.monotonic()
        command = subprocess.Popen(
            [self.bench.thaw, "--host", self.daemon.address, "scale", self.pod, "1"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        answer = http_probe.first_200(self.port, self.bench.path, self.ready_seconds)
        said = command.communicate(timeout=60)[1]
        if command.returncode != 0:
            raise BenchError(f"`thaw scale`: {said.strip()}")
        return begun, self.checked(answer)


class ThawRequest(ThawSystem):
    """Nobody scales: a request at the published port of a pod at zero is the start."""

    asked_for_by_request = True

    def start(self):
        begun = time.monotonic()
        answer = http_probe.first_200(self.port, self.bench.path, self.ready_seconds)
        return begun, self.checked(answer)


class ThawSlot(ThawRequest):
    name = "thaw-slot"
    note = "Thaw, lazy, from a prepared slot; a request to a pod at zero, through the published port"

    def settle(self):
        slots = self.daemon.data / "slots"
        # Each prepared slot has a shim that listens, and none runs a replica now.
        host.wait_for(lambda: len([s for s in slots.iterdir() if (s / "shim.sock").exists()]) >= 2, "prepared slots", 30)
        time.sleep(0.1)  # its CRIU is being started


class ThawNoSlot(ThawRequest):
    name = "thaw-no-slot"
    note = "the same from a daemon that prepares no slots"
    daemon_arguments = ("--slots", "0")


class ThawStandby(ThawRequest):
    name = "thaw-standby"
    note = "Thaw, from a standby that was warmed by its probe and frozen; a request to a pod at zero, through the published port"
    replicas = {"min": 0, "max": 4, "standby": 1}

    def settle(self):
        host.wait_for(
            lambda: self.daemon.call("GET", f"/v1/pods/{self.pod}")["standby"] == 1, f"a standby of {self.pod}", READY_SECONDS, 0.05
        )
        time.sleep(0.1)

    def checked(self, answer):
        super().checked(answer)
        if not any(phase["name"] == "standby/thaw" for phase in self.replica["phases"]):
            answer.connection.close()
            raise BenchError("thaw: the replica was none of the standbys")
        return answer
