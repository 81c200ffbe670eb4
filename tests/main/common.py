"""What the tests of this folder share: pods that run inside/server.py, clients at their gates, and a hand on their CRIU."""

import contextlib
import hmac
import http.client
import json
import os
import pathlib
import signal
import socket
import sqlite3
import subprocess
import tempfile
import threading
import time

import thawtest
from thawtest import check, equal, wait_for

HERE = pathlib.Path(__file__).resolve().parent
GATEWAY = "10.77.0.1"  # the gateway's source address inside a replica; probes come from the replica's own


class Pod:
    """A pod of inside/server.py, with a folder of the host at /ctl where it leaves notes."""

    def __init__(self, daemon, name="web", when=None, env=None, max=4, checkpoint=None, folder=None, **more):  # noqa: A002: as in a specification
        self.daemon, self.name, self.since = daemon, name, 0
        self.ctl = pathlib.Path(tempfile.mkdtemp(prefix=f"ctl-{name}-", dir=folder or daemon.data))
        self.ctl.chmod(0o777)
        self.port = thawtest.free_port()
        self.spec = {
            "name": name,
            "rootfs": thawtest.rootfs("programs"),
            "command": ["python3", "-S", "-E", "/app/server.py"],
            "mounts": [{"source": str(HERE / "inside"), "target": "/app", "readonly": True}, {"source": str(self.ctl), "target": "/ctl"}],
            "ports": [{"container": 8000, "host": self.port}],
            "replicas": {"min": 1, "max": max},
            "env": env or {},
            "stop_grace": "3s",
            **more,
        }
        if when is not None or checkpoint:
            self.spec["checkpoint"] = {**({"when": when} if when is not None else {}), **(checkpoint or {})}

    def deploy(self, wait=False):
        """The answer of the API. `since` is the id of the last event before the first deploy."""
        result = self.daemon.deploy(self.spec, wait=wait)
        self.since = self.since or result["last_event"]
        if wait:
            self.wait_note("up")  # without a condition it is ready as soon as it is started
        return result

    def warm(self):
        """Deploys it, and lets its condition hold when the program is up."""
        self.deploy()
        self.wait_note("up")
        self.go()

    def wait_checkpoint(self, status="available", after=None):
        return self.daemon.wait_checkpoint(self.name, status, after or self.since)

    def go(self):
        (self.ctl / "go").touch()

    def halt(self):
        (self.ctl / "go").unlink(missing_ok=True)

    def notes(self, kind=None, replica=None):
        file = self.ctl / "notes"
        # The last line may be on its way still.
        lines = [json.loads(line) for line in file.read_text().split("\n")[:-1]] if file.exists() else []
        return [n for n in lines if kind in (None, n["kind"]) and replica in (None, n["replica"])]

    def wait_note(self, kind, replica=None, count=1):
        return wait_for(lambda: len(self.notes(kind, replica)) >= count and self.notes(kind, replica), f"{self.name} notes '{kind}'", step=0.01)

    def wait_event(self, kind, after=None, replica=None):
        """The first event of this type (and of this replica)."""
        return self.daemon.wait_event(lambda e: e["type"] == kind and replica in (None, e["replica"]), f"{self.name}: {kind}", after or self.since, self.name)

    def events(self, kind=None, replica=None, after=None):
        found = self.daemon.events(after or self.since, self.name)
        return [e for e in found if kind in (None, e["type"]) and replica in (None, e["replica"])]

    def states(self, replica):
        """Those a replica went through, in order."""
        return [e["type"].removeprefix("replica.") for e in self.events(replica=replica) if e["data"].get("to")]

    def get(self, path="who", timeout=90):
        return get(self.port, path, timeout)

    def only_replica(self):
        rows = self.daemon.replicas(self.name)
        equal(len(rows), 1, f"replicas of {self.name}")
        return rows[0]

    def check_gate(self, replica):
        """It went to ready exactly once, and no connection from outside came before."""
        states = self.states(replica)
        equal(states.count("ready"), 1, f"how often the gate of {replica} opened ({states})")
        opened = self.events("replica.ready", replica)[0]
        for note in self.notes("accepted", replica):
            check(note["peer"] != GATEWAY or note["time_us"] >= opened["time_us"],
                  f"{replica} was reached {opened['time_us'] - note['time_us']} us before its gate opened")  # fmt: skip
        return opened


def get(port, path="who", timeout=90):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    with contextlib.closing(connection):
        connection.request("GET", "/" + path)
        response = connection.getresponse()
        equal(response.status, 200, f"status of /{path}")
        return json.loads(response.read())


ASK = """
import http.client, sys
connection = http.client.HTTPConnection("10.77.0.2", 8000, timeout=90)
connection.request("GET", "/" + sys.argv[1])
sys.stdout.buffer.write(connection.getresponse().read())
"""


def ask(daemon, replica, path, answer=True):
    """Asks one replica, from inside its network namespace."""
    text = daemon.inside(replica, ["/usr/bin/python3", "-S", "-c", ASK, path], check_exit=answer)
    return json.loads(text) if answer else None


class Client(threading.Thread):
    """Tries to connect from the moment it is made, asks once, and waits for the answer for as long as it takes."""

    def __init__(self, port, path="who"):
        super().__init__(daemon=True)
        self.port, self.path = port, path
        self.body = self.error = None
        self.connected_us = self.answered_us = 0
        self.over = threading.Event()
        self.start()

    def run(self):
        while not self.over.is_set():
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
                    self.connected_us = time.time_ns() // 1000
                    self.talk(connection)
                return
            except ConnectionRefusedError:
                time.sleep(0.005)
            except OSError as error:
                self.error = error
                return

    def talk(self, connection):
        connection.settimeout(0.2)
        connection.sendall(f"GET /{self.path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        data = b""
        while not self.over.is_set():
            try:
                piece = connection.recv(65536)
            except TimeoutError:
                continue
            if data == b"" and piece:
                self.answered_us = time.time_ns() // 1000
            data += piece
            if not piece:
                self.body = json.loads(data.partition(b"\r\n\r\n")[2] or b"null")
                return

    def wait_connected(self):
        wait_for(lambda: self.connected_us or self.error, "the client is connected", step=0.005)
        check(self.error is None, f"the client was turned away: {self.error}")

    def wait_answer(self, timeout=120):
        self.join(timeout)
        alive = self.is_alive()
        self.over.set()
        check(not alive, f"the client has no answer after {timeout} s")
        check(self.error is None and self.body, f"the client was turned away: {self.error}")
        return self.body

    def check_waits(self, what):
        check(self.error is None, f"{what}: the client was turned away: {self.error}")
        check(self.is_alive() and not self.answered_us, f"{what}: the client has its answer already")

    def cancel(self):
        self.over.set()
        self.join(10)


class Knocker(threading.Thread):
    """Tries all the time to reach the replicas of a daemon at their own addresses, which must never work.

    By their links only: an address that is not routed at the moment must not lead out of this host."""

    def __init__(self, daemon, port=8000):
        super().__init__(daemon=True)
        self.thaw, self.port = daemon, port
        self.tried, self.reached = set(), set()
        self.over = threading.Event()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, kind, *_):
        self.over.set()
        self.join(20)
        if kind is None:
            check(self.tried, "no replica's address was ever tried")
            check(not self.reached, f"replicas were reached past their gate: {self.reached}")

    def run(self):
        while not self.over.is_set():
            try:
                rows = self.thaw.replicas()
            except (OSError, http.client.HTTPException):
                rows = []
            for row in rows:
                for address in (row["address"], row["address6"]):
                    if address and not self.over.is_set():
                        self.knock(address, link_of(row["address"]), row["state"])
            self.over.wait(0.02)

    def knock(self, address, link, state):
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as client:
            try:
                client.settimeout(0.25)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, link.encode())
                client.connect((address, self.port))
                self.reached.add((address, state))
            except OSError:
                pass
        self.tried.add((address, state))


def link_of(address):
    """The host's end of a replica's link (docs/network.md)."""
    third, fourth = map(int, address.split(".")[2:])
    return f"thaw{third // 8}-{third % 8 * 256 + fourth}"


def resign(daemon, checkpoint, change):
    """Changes a checkpoint's manifest as change(manifest) does, and signs it anew with the daemon's own key."""
    file = daemon.data / "checkpoints" / checkpoint["id"] / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["mac"]
    change(manifest)
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    manifest["mac"] = hmac.new((daemon.data / "mac.key").read_bytes(), text.encode(), "sha256").hexdigest()
    file.write_text(json.dumps(manifest))


def sql(daemon, statement, *values):
    """Changes the daemon's database behind its back, as time or another host would have done."""
    with contextlib.closing(sqlite3.connect(daemon.data / "thaw.db", timeout=20)) as database, database:
        return database.execute(statement, values).fetchall()


# --- the processes behind a replica ---


def command_line(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def shims(daemon):
    """Folder of the slot → pid of its shim. (The shim's keeper has the same command line, but another name; what it forks has both until it
    is another program, but a shim as its parent.)"""
    found = {}
    for pid in thawtest._pids():
        words = command_line(pid).split(b"\0")
        if len(words) > 2 and words[1] == b"shim" and words[2].startswith(str(daemon.data).encode()) and thawtest._read(f"/proc/{pid}/comm") == b"thaw-shim\n":
            found[pid] = words[2].rpartition(b"/")[2].decode()
    return {slot: pid for pid, slot in found.items() if parent(pid) not in found}


def parent(pid):
    """0 when the process is gone."""
    fields = thawtest._read(f"/proc/{pid}/stat").decode().rpartition(")")[2].split()
    return int(fields[1]) if fields else 0


def shim_of(daemon, replica):
    shim = shims(daemon).get(replica["slot"])
    check(shim, f"replica {replica['id']} has no shim")
    return shim


def process_state(pid):
    """The letter of /proc/PID/stat: T is stopped, Z is dead and not reaped. "" when it is gone."""
    fields = thawtest._read(f"/proc/{pid}/stat").decode().rpartition(")")[2].split()
    return fields[0] if fields else ""


def freezer_state(row):
    """FROZEN or THAWED, as the kernel has it."""
    for top, _, files in os.walk("/sys/fs/cgroup"):
        if top.endswith("/" + row["slot"]) and "freezer.state" in files:
            return thawtest._read(top + "/freezer.state").decode().strip()
        if top.endswith("/" + row["slot"]) and "cgroup.events" in files and "frozen 1" in thawtest._read(top + "/cgroup.events").decode():
            return "FROZEN"
    return "THAWED"


def children(pid):
    found = []
    for file in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, file.read_text().split())
    return found


def criu_below(shim):
    """A CRIU below a shim that has not been asked for anything yet: later it has another command line. None."""
    return next((pid for pid in children(shim) if b"swrk" in command_line(pid).split(b"\0")), None)


@contextlib.contextmanager
def before_others(*processes):
    """This thread runs whenever it can, and so do these processes: a moment that it waits for ends in time, and they do something in it,
    whatever else the machine does."""
    before = [(pid, os.sched_getscheduler(pid), os.sched_getparam(pid)) for pid in (0, *processes)]
    try:
        for pid, _, _ in before:
            os.sched_setscheduler(pid, os.SCHED_FIFO, os.sched_param(1))
        yield
    finally:
        for pid, policy, parameter in before:
            with contextlib.suppress(ProcessLookupError):
                os.sched_setscheduler(pid, policy, parameter)


class HeldDump:
    """Makes a replica that is warming up dump, and holds the dump: CRIU is stopped. Leaving the block lets it go on. The daemon must not
    have been started with a fault of another kind.

    stage "begun": as soon as CRIU is there; "frozen": when the tree is frozen and images are being written.
    armed: hold_next() was called before the pod was deployed."""

    def __init__(self, pod, stage="frozen", armed=False):
        self.pod, self.stage, self.armed = pod, stage, armed
        self.criu = self.handle = None
        self.replica = pod.only_replica()
        self.shim = shim_of(pod.daemon, self.replica)

    def __enter__(self):
        thawtest.at_end(self.resume)
        mark = self.pod.daemon.mark if self.armed else self.pod.daemon.hold_next()
        self.pod.go()
        wait_for(mark.exists, "CRIU is started for the dump", step=0.005)
        # The kernel's list of children is exact only while none of them comes or goes.
        self.criu = wait_for(lambda: criu_below(self.shim), "the shim has a CRIU", step=0.005)
        self.handle = os.pidfd_open(self.criu)
        self.signal(signal.SIGSTOP)
        self.pod.daemon.let_go()
        rows = self.pod.daemon.api("GET", f"/v1/checkpoints?pod={self.pod.name}")
        self.checkpoint = next(row["id"] for row in rows if row["status"] == "creating")
        self.directory = self.pod.daemon.data / "checkpoints" / self.checkpoint
        if self.stage == "frozen":
            # Let go for a moment at a time, until it has come so far.
            with before_others(self.criu):
                wait_for(self._step, "the dump has written something", step=0)
        return self

    def _step(self):
        # What comes first of a process's memory. In memory, where only the shim's mount namespace has them, or on disk where memory is short.
        stage = pathlib.Path(f"/proc/{self.shim}/root{self.pod.daemon.data}/slots/{self.replica['slot']}/stage")
        if list(stage.glob("*/pagemap-*.img")) or list(self.directory.glob("images/pagemap-*.img")):
            return True
        self.signal(signal.SIGCONT)
        time.sleep(0.001)
        self.signal(signal.SIGSTOP)
        return False

    def __exit__(self, *_):
        self.resume()

    def signal(self, number):
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.handle, number)

    def resume(self):
        if self.handle is not None:
            self.signal(signal.SIGCONT)
            os.close(self.handle)
            self.handle = None

    def kill(self):
        self.signal(signal.SIGKILL)


def connections_inside(daemon, replica):
    """Peers of established TCP connections in a replica's network namespace."""
    lines = daemon.inside(replica, ["ss", "-Htn", "state", "established"]).splitlines()
    return [line.split()[3] for line in lines]


@contextlib.contextmanager
def small_disk(folder, mib, *options):
    """A disk of its own, mounted at the folder."""
    with tempfile.TemporaryDirectory(prefix="thaw-disk-", dir="/var/tmp") as beside:
        disk = os.path.join(beside, "disk")
        with open(disk, "wb") as file:
            file.truncate(mib << 20)
        run("mkfs.ext4", "-q", "-F", "-m", "0", *options, disk)
        run("mount", "-o", "loop", disk, folder)
        try:
            run("rmdir", folder / "lost+found")
            yield
        finally:
            # A daemon's end may have taken it away; what used it may be about to end.
            thawtest.wait_for(lambda: not os.path.ismount(folder) or subprocess.run(["umount", folder], capture_output=True, timeout=60, check=False).returncode == 0,
                              f"{folder} can be unmounted", 30, 0.2)  # fmt: skip


def fill(file):
    """Writes a file until its disk is full, which must be one of small_disk's."""
    disk = os.statvfs(pathlib.Path(file).parent)
    check(disk.f_blocks * disk.f_frsize < 2 << 30, f"{file} is on no small disk")
    with open(file, "wb", buffering=0) as out:
        for size in (1 << 20, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    out.write(bytes(size))


def run(*argv, timeout=180):
    done = subprocess.run([str(a) for a in argv], capture_output=True, text=True, timeout=timeout, check=False)
    check(done.returncode == 0, f"`{' '.join(map(str, argv))}` ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def background(daemon, *arguments, **more):
    """`thaw ARGUMENTS` as a process, which ends with the test at the latest. `more` is Popen's, in place of pipes and text."""
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **more}
    process = subprocess.Popen([daemon.binary, *map(str, arguments)], env={**daemon.env, "THAW_HOST": daemon.address}, **options)
    thawtest.at_end(process.kill)
    return process
