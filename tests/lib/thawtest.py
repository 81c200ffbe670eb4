"""What scenario tests share: a daemon of their own, its API and CLI, bounded waits, and the check that nothing is left behind.

A test file is a Python program that ctest runs as root:

    import thawtest

    def test_restore(daemon):
        daemon.deploy({"name": "web", ...})
        checkpoint = daemon.wait_checkpoint("web")          # proven; raises Failure with the reason otherwise
        daemon.scale("web", 2)
        ...
        daemon.remove("web")

    if __name__ == "__main__":
        thawtest.main(globals())

`main` gives each function named test_* a daemon (one for the whole file; `main(..., fresh=True)`: one for each function; a
function without a parameter gets none and makes its own), prints one line a test, and ends with 1 when one failed. After each test that got a
daemon, all pods and checkpoints are removed and the daemon's slots, links, cgroups, processes, mounts and descriptors
must be what they were. At the end the host must be as it was before. Ctrl-C, SIGTERM and THAW_TEST_TIMEOUT (seconds, set by
ctest a little below its own limit) end a test in order, too: what the tests made is removed on every path but SIGKILL.

Names on the command line choose tests; -k keeps the data directory of a failed run.
"""

import collections
import contextlib
import ctypes
import fcntl
import glob
import http.client
import inspect
import json
import os
import pathlib
import queue
import random
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_CHILD_SUBREAPER = 36
MNT_DETACH = 2
CLONE_NEWNET = 0x40000000
SPARE_PIPE = 256 << 10  # bytes of a pipe that moves clients' bytes (src/gateway/relay.h)
SETTLE_S = 120  # the longest a daemon may take to be at rest again
# These end a checkpoint's way for good or ill.
SETTLED = ("available", "failed", "restore_failed", "deleted")


class Failure(AssertionError):
    """A test failed; the message is for people."""


class ApiError(Exception):
    """The daemon refused. `status` is HTTP's, `code` the API's own, `body` all of it."""

    def __init__(self, status, body):
        error = (body or {}).get("error", {}) if isinstance(body, dict) else {}
        super().__init__(error.get("message") or f"status {status}: {body}")
        self.status, self.body, self.code = status, body, error.get("code")


def check(condition, message):
    if not condition:
        raise Failure(message)


def equal(found, wanted, what):
    if found != wanted:
        raise Failure(f"{what}: {found!r} instead of {wanted!r}")


def binary():
    """The thaw under test."""
    path = os.environ.get("THAW_BINARY")
    check(path, "THAW_BINARY is not set: it names the thaw to test (ctest sets it)")
    check(os.access(path, os.X_OK), f"THAW_BINARY is {path}, which cannot be run")
    return os.path.realpath(path)


def rootfs(name):
    """The folder of scripts/rootfs NAME ("example" or "programs"), built when it is missing."""
    done = subprocess.run([REPOSITORY / "scripts/rootfs", name], stdout=subprocess.PIPE, text=True, check=False)
    check(done.returncode == 0, f"scripts/rootfs {name} failed")
    return done.stdout.strip()


def wait_for(predicate, what, timeout=90, step=0.05):
    """Until predicate() is true; its value. For what sends no event (the kernel's tables, /proc): otherwise wait_event. The time is for a
    machine that is busy with other things; a last look comes after it."""
    end = time.monotonic() + timeout
    while True:
        late = time.monotonic() > end
        value = predicate()
        if value:
            return value
        if late:
            raise Failure(f"{what}: not within {timeout} s")
        time.sleep(step)


def temporary_folder():
    """Removed when the test file ends."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="thaw-test-"))
    at_end(lambda: shutil.rmtree(folder, ignore_errors=True))
    return folder


def wait_equal(find, wanted, what, timeout=90):
    """Like equal(find(), wanted, what), where what is found comes about a moment later."""
    found = None

    def same():
        nonlocal found
        found = find()
        return found == wanted

    with contextlib.suppress(Failure):
        wait_for(same, what, timeout)
    equal(found, wanted, what)


_given_ports = set()


def free_port():
    """One that nobody has, below those that the kernel gives to clients (ip_local_port_range): it is free still when it is used."""
    while True:
        port = random.randrange(10000, 32000)
        if port in _given_ports:
            continue
        _given_ports.add(port)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("0.0.0.0", port))
            return port


def in_netns(namespace, function):
    """function() on a thread of its own that has entered a network namespace (a descriptor). Sockets made there stay there."""
    result = []

    def work():
        try:
            if LIBC.setns(namespace, CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
            result.append((function(), None))
        except Exception as error:  # noqa: BLE001: raised again by the caller's thread
            result.append((None, error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    value, error = result[0]
    if error:
        raise error
    return value


def _http(connected, path, method, body, timeout):
    connection = http.client.HTTPConnection("replica", timeout=timeout)
    connection.sock = connected
    try:
        connection.request(method, path, body, {"Connection": "close"})
        response = connection.getresponse()
        text = response.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        raise Failure(f"{method} {path}: {type(error).__name__} {error}") from None
    finally:
        connection.close()
    check(response.status == 200, f"{method} {path}: {response.status} {text[:500]}")
    return text


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path, timeout):
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Daemon:
    """One `thaw daemon` on a private data directory. Use as a context manager, or call destroy() at the end."""

    living = []  # those that must be destroyed when the test file ends
    # Of all that this test file has started: network instances, data directories, slots, and the links of those.
    used_instances, used_data, used_slots, used_links = set(), set(), set(), set()

    def __init__(self, *arguments, env=None, slots=2):
        """`arguments` are added to the command line, `env` to the environment. `slots` are prepared ahead."""
        self.binary = binary()
        self.arguments, self.slots = [*map(str, arguments), "--slots", str(slots)], slots
        self.data = pathlib.Path(tempfile.mkdtemp(prefix="thaw-test-", dir=os.environ.get("TMPDIR", "/var/tmp")))
        self.socket = str(self.data / "thaw.sock")
        self.address = f"unix:{self.socket}"
        self.log = self.data / "daemon.log"
        # A dump can be held at this step (hold_next); as long as the mark is there, nothing is.
        self.mark = self.data / "held"
        self.mark.touch()
        self.env = {**os.environ, "THAW_FAULT": "shim.dump.criu:hold", "THAW_FAULT_MARK": str(self.mark), **(env or {})}
        self.process = None
        self.earlier = []  # processes that another daemon has taken over from
        self.slot_names = set()
        self.instances = set()  # of the network, that it has had: it names links, tables and cgroups
        Daemon.living.append(self)
        Daemon.used_data.add(self.data)

    def __enter__(self):
        if not self.process:
            self.start()
        return self

    def __exit__(self, *_):
        self.destroy()

    # --- its life ---

    def launch(self, more=(), before=()):
        """Starts it. `more` is added to the command line, `before` stands before it: a program that starts another."""
        check(not self.running(), "the daemon runs already")
        with open(self.log, "ab") as log:
            # A session of its own: Ctrl-C is for the test, which then ends the daemon in order.
            self.process = subprocess.Popen(
                [*before, self.binary, "daemon", "--data-dir", self.data, "--listen", self.address, *self.arguments, *more],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=self.env,
            )  # fmt: skip

    def start(self, timeout=120, more=()):
        """Starts it and waits until the API answers."""
        self.launch(more)

        def answers():
            if self.process.poll() is not None:
                raise Failure(f"the daemon ended at its start ({self.process.returncode}):\n{self.tail()}")
            try:
                # A connection that a killed daemon left behind in the backlog is nobody's.
                return self.api("GET", "/v1/version", timeout=10)["pid"] == self.process.pid
            except (OSError, http.client.HTTPException):
                return False

        wait_for(answers, "the daemon's API answers", timeout)
        self.instances |= self.locks()
        Daemon.used_instances |= self.instances
        return self

    def running(self):
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self):
        return self.process.pid

    def kill9(self, holder=False):
        """SIGKILL, as a crash would be. Replicas run on. holder: nobody keeps its listening sockets, either."""
        self._note_slots()
        for pid in self.holders() if holder else []:
            _kill(pid)
        self.process.kill()
        self.process.wait()

    def replace(self):
        """Another daemon takes the place of this one. The process of the earlier one, which stays for its connections."""
        self._note_slots()
        earlier, self.process = self.process, None
        self.earlier.append(earlier)
        self.start(more=["--replace"])
        return earlier

    def restart(self, kill=False):
        """Ends it (kill: by SIGKILL) and starts it again on the same data directory."""
        if kill:
            self.kill9()
        else:
            self.stop()
        return self.start()

    def stop(self, timeout=120):
        """SIGTERM; replicas run on unless --stop-replicas-on-exit was given. Its exit code, which must be 0."""
        if not self.running():
            return
        self.process.terminate()
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill9()
            raise Failure(f"the daemon did not end within {timeout} s of SIGTERM:\n{self.tail()}") from None
        equal(self.process.returncode, 0, f"the daemon's exit code\n{self.tail()}")

    def clear(self):
        """Removes all its pods and checkpoints."""
        for pod in self.api("GET", "/v1/pods"):
            self.remove(pod["name"], checkpoints=False)
        for row in self.api("GET", "/v1/checkpoints"):
            with contextlib.suppress(ApiError):
                self.api("DELETE", f"/v1/checkpoints/{row['id']}")

    def destroy(self, keep=False):
        """Ends it and all that is left of it, by force where needed, and removes its data. What had to be forced, as text.

        keep: the data directory stays."""
        left = []
        self._note_slots()
        if self in Daemon.living:
            Daemon.living.remove(self)
        try:
            if self.running():
                try:
                    self.clear()
                finally:
                    self.stop()
        except Exception as error:  # noqa: BLE001: it has to be gone, whatever it does
            left.append(f"the daemon could not be ended in order: {error}")
            if self.running():
                self.kill9()
        left += self._sweep()
        if not keep:
            shutil.rmtree(self.data, ignore_errors=True)
            if self.data.exists():
                left.append(f"{self.data} could not be removed")
        return left

    def _sweep(self):
        """What outlived it, ended by force."""
        left = []
        needle = str(self.data).encode()
        # Of a daemon which was killed: it waits for the next one.
        waiting = self.holders() if self.process and self.process.returncode == -signal.SIGKILL else []
        for pid in waiting:
            _kill(pid)
        for pid in _pids():
            line = _read(f"/proc/{pid}/cmdline")
            if needle in line and pid != os.getpid() and pid not in waiting:
                left.append(f"process {pid}: {line.replace(bytes(1), b' ').decode(errors='replace').strip()}")
                _kill(pid)
        self._note_slots()
        for slot in self.slot_names:
            left += _sweep_cgroups(slot)
        for instance in sorted(self.instances):
            with _claimed(instance) as ours:
                if ours and not _foreign(instance):
                    left += _sweep_links(Daemon.used_links & set(_links(instance)))
        for target in _mounts_below(self.data):
            left.append(f"mount {target}")
            LIBC.umount2(os.fsencode(target), MNT_DETACH)
        return left

    def _note_slots(self):
        """Remembers the names of its slots and links, to know them when they are left behind."""
        for folder in (self.data / "slots").glob("*"):
            self.slot_names.add(folder.name)
            Daemon.used_slots.add(folder.name)
            with contextlib.suppress(OSError, ValueError, KeyError):
                Daemon.used_links.add(json.loads((folder / "slot.json").read_text())["interface"])

    def tail(self, lines=25):
        """The end of its log."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.strip().splitlines()[-lines:])

    def log_lines(self):
        """Its log so far, by lines; the last one may be on its way still, and is not among them."""
        return self.log.read_text(encoding="utf-8", errors="replace").split("\n")[:-1] if self.log.exists() else []

    def hold_next(self):
        """The next dump waits when its CRIU is started and asked for nothing, until let_go(). The file that appears when it has come there."""
        pathlib.Path(f"{self.mark}.go").unlink(missing_ok=True)
        self.mark.unlink(missing_ok=True)
        return self.mark

    def let_go(self):
        pathlib.Path(f"{self.mark}.go").touch()

    # --- asking it ---

    def api(self, method, path, body=None, timeout=120, raw=False):
        """The answer's JSON. A str or bytes body is sent as YAML. raw: (status, JSON or text); otherwise a refusal raises ApiError."""
        connection = _UnixConnection(self.socket, timeout)
        try:
            headers = {}
            if isinstance(body, (str, bytes)):
                headers["Content-Type"] = "application/yaml"
                body = body.encode() if isinstance(body, str) else body
            elif body is not None:
                headers["Content-Type"] = "application/json"
                body = json.dumps(body).encode()
            connection.request(method, path, body, headers)
            self.wait_answer(connection.sock, timeout)
            response = connection.getresponse()
            # http.client takes a head that breaks off for a whole one.
            if not response.chunked and response.getheader("Content-Length") is None:
                raise http.client.IncompleteRead(b"")
            data = response.read()
        except http.client.IncompleteRead as error:
            raise ConnectionResetError("the answer breaks off, as of a daemon that is killed meanwhile") from error
        finally:
            connection.close()
        try:
            answer = json.loads(data) if data else None
        except ValueError:
            answer = data.decode(errors="replace")
        if raw:
            return response.status, answer
        if response.status >= 300:
            raise ApiError(response.status, answer)
        return answer

    def wait_answer(self, connection, timeout):
        """Until it answers, or has died: what is asked of a dead daemon would wait for the next one."""
        if not self.process:
            return
        if self.process.returncode is not None:
            raise ConnectionResetError("the daemon has ended")
        handle = os.pidfd_open(self.process.pid)
        try:
            ready, _, _ = select.select([connection, handle], [], [], timeout)
        finally:
            os.close(handle)
        if ready == [handle]:
            raise ConnectionResetError("the daemon has ended")

    def cli(self, *arguments, check_exit=True, timeout=120, input=None):  # noqa: A002: as subprocess has it
        """`thaw ARGUMENTS` against this daemon. A CompletedProcess with text; check_exit: not 0 is a Failure."""
        done = subprocess.run(
            [self.binary, *map(str, arguments)], env={**self.env, "THAW_HOST": self.address}, capture_output=True, text=True,
            input=input, stdin=subprocess.DEVNULL if input is None else None, timeout=timeout, check=False,
        )  # fmt: skip
        if check_exit and done.returncode != 0:
            raise Failure(f"`thaw {' '.join(map(str, arguments))}` ended with {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
        return done

    def cli_json(self, *arguments, **more):
        return json.loads(self.cli(*arguments, "--json", **more).stdout)

    def last_event(self):
        return self.api("GET", "/v1/version")["last_event"]

    def events(self, after=0, pod=None):
        """All of them so far."""
        found = []
        query = f"&pod={pod}" if pod else ""
        while True:
            page = self.api("GET", f"/v1/events?limit=1000&after={after}{query}")
            found += page
            if len(page) < 1000:
                return found
            after = page[-1]["id"]

    def wait_event(self, match, what, after=0, pod=None, timeout=120):
        """The first event after id `after` for which match(event) is true, now or when it happens."""
        seen = collections.deque(maxlen=12)
        end = time.monotonic() + timeout
        with self.follow(after, pod) as stream:
            while True:
                event = stream.next(max(0.0, end - time.monotonic()))
                if event is None:
                    tail = "\n".join(f"  {e['type']}: {e['message']}" for e in seen)
                    raise Failure(f"{what}: no such event within {timeout} s, or the stream ended; the last ones:\n{tail}\n{self.tail(8)}")
                if match(event):
                    return event
                seen.append(event)

    def follow(self, after=0, pod=None):
        """An EventStream: all events after `after`, and what happens from now on."""
        return EventStream(self, after, pod)

    # --- pods ---

    def deploy(self, spec, wait=True, timeout=180):
        """Deploys a specification (a dict); wait: until replicas.min are ready. The answer of POST /v1/pods."""
        result = self.api("POST", "/v1/pods", spec)
        if wait:
            wanted = result["pod"]["desired"]
            if wanted:
                self.wait_ready(spec["name"], wanted, result["last_event"], timeout)
        return result

    def wait_ready(self, pod, count, after=0, timeout=180):
        """Until `count` replicas of it are ready; they, oldest first. A replica that fails ends it."""

        def settled(event=None):
            if event and event["type"] == "replica.failed":
                raise Failure(f"replica {event['replica']} of {pod} failed: {event['message']}\n{self.logs(event['replica'])}\n{self.tail()}")
            return len(self.replicas(pod, "ready")) >= count

        if not settled():
            self.wait_event(settled, f"{count} replicas of {pod} are ready", after, pod, timeout)
        return self.replicas(pod, "ready")

    def wait_checkpoint(self, pod, status="available", after=0, timeout=180):
        """The pod's newest checkpoint, when its status is final. Another final one than `status` is a Failure with its reason."""

        def settled(event):
            return event["checkpoint"] and event["type"] in [f"checkpoint.{name}" for name in SETTLED]

        event = self.wait_event(settled, f"a checkpoint of {pod} is settled", after, pod, timeout)
        rows = self.api("GET", f"/v1/checkpoints?pod={pod}")
        row = next((row for row in rows if row["id"] == event["checkpoint"]), None)
        check(row, f"checkpoint {event['checkpoint']} is not listed")
        if row["status"] != status:
            raise Failure(f"the checkpoint of {pod} is {row['status']} instead of {status}: {row['reason']}\n{self.tail()}")
        return row

    def scale(self, pod, count, timeout=120, wait=True):
        """Scales and waits. The pod's ready replicas, oldest first."""
        body = {"replicas": count, **({"wait": f"{timeout}s"} if wait else {})}
        try:
            self.api("POST", f"/v1/pods/{pod}/scale", body, timeout=timeout + 30)
        except ApiError as error:
            raise Failure(f"{error}\n{self.tail()}") from None
        return self.replicas(pod, "ready")

    def replicas(self, pod=None, state=None, ended=False):
        """Oldest first; ended: those that have ended, too."""
        query = "&".join([*([f"pod={pod}"] if pod else []), *(["all=true"] if ended else [])])
        rows = self.api("GET", f"/v1/replicas?{query}")
        return [row for row in rows if state is None or row["state"] == state]

    def replica(self, identifier):
        return self.api("GET", f"/v1/replicas/{identifier}")

    def port(self, pod, container=None):
        """The host port of its (first) published port."""
        for port in self.api("GET", f"/v1/pods/{pod}")["ports"]:
            if container in (None, port["container"]):
                return port["host"]
        raise Failure(f"{pod} does not publish {container or 'a port'}")

    def remove(self, pod, checkpoints=True):
        """`thaw rm --force`, waits until its replicas have ended, and removes its checkpoints."""
        rows = self.api("GET", f"/v1/checkpoints?pod={pod}") if checkpoints else []
        self.api("DELETE", f"/v1/pods/{pod}?force=true")
        wait_for(lambda: not [r for r in self.replicas() if r["pod"] == pod], f"the replicas of {pod} have ended", SETTLE_S)
        for row in rows:
            try:
                self.api("DELETE", f"/v1/checkpoints/{row['id']}")
            except ApiError as error:
                if error.code != "not_found":  # it may have gone with the pod
                    raise

    def exec(self, replica, *argv, check_exit=True, input=None, timeout=240):  # noqa: A002
        """`thaw exec`: what the program wrote to stdout; check_exit=False: a CompletedProcess."""
        words = ["exec", *(["-i"] if input is not None else []), replica, "--", *argv]
        done = self.cli(*words, check_exit=check_exit, input=input, timeout=timeout)
        return done.stdout if check_exit else done

    def logs(self, replica):
        done = self.cli("logs", replica, check_exit=False)
        return done.stdout + done.stderr

    def inside(self, replica, argv, input=None, timeout=120, check_exit=True):  # noqa: A002
        """Runs a program of the host in the replica's network namespace: a client that no gate holds back. Its stdout."""
        pid = replica["pid"] if isinstance(replica, dict) else self.replica(replica)["pid"]
        done = subprocess.run(["nsenter", f"--net=/proc/{pid}/ns/net", *map(str, argv)], capture_output=True, text=True,
                              input=input, timeout=timeout, check=False)  # fmt: skip
        if check_exit and done.returncode != 0:
            raise Failure(f"{' '.join(map(str, argv))} ended with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def connect(self, replica, port, host="10.77.0.2", timeout=90, kind=socket.SOCK_STREAM):
        """A socket to host:port inside the replica's network namespace, past its gate."""
        pid = replica["pid"] if isinstance(replica, dict) else self.replica(replica)["pid"]
        with open(f"/proc/{pid}/ns/net", "rb") as namespace:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            connection = in_netns(namespace.fileno(), lambda: socket.socket(family, kind))
        connection.settimeout(timeout)
        try:
            connection.connect((host, port))
        except OSError as error:
            connection.close()
            raise Failure(f"no connection to {host} port {port} of the replica: {error}") from None
        return connection

    def http(self, replica, path, method="GET", body=None, port=8000, host="10.77.0.2", timeout=90):
        """An HTTP request made inside the replica's network namespace; the answer's text. Another status than 200 is a Failure."""
        return _http(self.connect(replica, port, host, timeout), path, method, body, timeout)

    def http_published(self, pod, path, method="GET", body=None, timeout=90, container=None):
        """The same as a client of the host does it: through the published port."""
        connection = socket.create_connection(("127.0.0.1", self.port(pod, container)), timeout)
        return _http(connection, path, method, body, timeout)

    # --- what it holds ---

    def holders(self):
        """The processes that keep its listening sockets: one while it runs."""
        folder = str(self.data / "daemon").encode()
        return [pid for pid in _pids() if _read(f"/proc/{pid}/cmdline").split(bytes(1))[1:3] == [b"holder", folder]]

    def locks(self):
        """Network instances whose lock this daemon holds."""
        found = set()
        with contextlib.suppress(OSError):
            for name in os.listdir(f"/proc/{self.pid}/fd"):
                with contextlib.suppress(OSError):
                    match = re.fullmatch(r"/run/thaw/network-(\d+)", os.readlink(f"/proc/{self.pid}/fd/{name}"))
                    if match:
                        found.add(int(match.group(1)))
        return found

    def holdings(self):
        """What must be the same again after pods came and went, at rest: counts, and names where there should be none."""
        self._note_slots()
        found = collections.Counter()
        # A number that it had before it was started again may be another daemon's by now, and one with another /run may have the same: where
        # there are others, what is of slots that this one has had.
        instances = sorted(i for i in self.instances if i in self.locks() or _is_free(i))
        alone = not any(_stranger(pid) for pid in _pids())
        for instance in instances:
            found["links"] += len([link for link in _links(instance) if alone or link in Daemon.used_links])
            for group in _cgroups(instance):
                found[f"cgroups of {group.split('/')[4]}"] += len([d for d in os.scandir(group) if d.is_dir() and (alone or d.name in self.slot_names)])
        found["slots"] = len(os.listdir(self.data / "slots"))
        found["checkpoint folders"] = len(os.listdir(self.data / "checkpoints"))
        found["host mounts"] = len(_mounts_below(self.data))
        needle = str(self.data).encode()
        found["processes"] = sum(needle in _read(f"/proc/{pid}/cmdline") for pid in _pids())
        for instance in instances:
            for group in _cgroups(instance)[:1]:
                files = [f for f in glob.glob(f"{group}/**/cgroup.procs", recursive=True) if alone or self.slot_names & set(f.split("/"))]
                found["processes in cgroups"] += sum(len(_read(f).split()) for f in files)
        for name in os.listdir(f"/proc/{self.pid}/fd"):
            with contextlib.suppress(OSError):
                target = os.readlink(f"/proc/{self.pid}/fd/{name}")
                if target.startswith(str(self.data / "thaw.db")):
                    continue  # SQLite opens its files when one of the two connections first needs them
                if target.startswith("pipe:") and _pipe_size(f"/proc/{self.pid}/fd/{name}") == SPARE_PIPE:
                    continue  # the gateway keeps some for the next bodies
                found["descriptors: " + re.sub(r"\[?\d+\]?", "N", target.replace(str(self.data), "DATA"))] += 1
        found["threads"] = len(os.listdir(f"/proc/{self.pid}/task"))
        return found

    def wait_idle(self, replicas=0):
        """Until its slots are refilled, beside those of so many replicas, and nothing else is going on."""
        last = None

        def quiet():
            nonlocal last
            now = self.holdings()
            same, last = now == last and now["slots"] == self.slots + replicas, now
            return same

        wait_for(quiet, "the daemon is at rest", SETTLE_S, 0.25)
        return last


class EventStream:
    """Server-sent events, read by a thread. `with daemon.follow() as stream: stream.next(seconds)`."""

    def __init__(self, daemon, after=0, pod=None):
        self.queue = queue.SimpleQueue()
        self.connection = _UnixConnection(daemon.socket, 60)  # the server says something every 15 s
        self.connection.request("GET", f"/v1/events?follow=true&after={after}" + (f"&pod={pod}" if pod else ""))
        daemon.wait_answer(self.connection.sock, 60)
        self.response = self.connection.getresponse()
        if self.response.status != 200:
            raise ApiError(self.response.status, self.response.read().decode(errors="replace"))
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        with contextlib.suppress(OSError, AttributeError):
            self.connection.sock.shutdown(socket.SHUT_RDWR)
        self.thread.join(10)
        self.connection.close()

    def next(self, timeout):
        """The next event; None when there was none in time, or when the stream has ended."""
        try:
            return self.queue.get(timeout=max(0.001, timeout))
        except queue.Empty:
            return None

    def _read(self):
        data = []
        with contextlib.suppress(OSError, ValueError, http.client.HTTPException, AttributeError):
            while True:
                line = self.response.readline().decode()
                if not line:
                    break
                line = line.rstrip("\r\n")
                if line.startswith("data:"):
                    data.append(line[5:].strip())
                elif not line and data:
                    self.queue.put(json.loads("\n".join(data)))
                    data = []
        self.queue.put(None)


class LeakCheck:
    """Compares before and after. Without a daemon: the host's own things, as far as no other daemon's are concerned; with one: what
    that daemon holds, at rest.

        with LeakCheck(daemon):
            ...                      # raises Failure when something is left
    """

    def __init__(self, daemon=None):
        self.daemon = daemon
        self.before = self.take()

    def take(self):
        return self.daemon.wait_idle() if self.daemon else HostThings()

    def differences(self):
        if not self.daemon:
            return [f"left behind: {thing}" for thing in HostThings().since(self.before)]
        after = collections.Counter()

        def same():
            nonlocal after
            after = self.daemon.holdings()
            return not self._more(after)

        with contextlib.suppress(Failure):
            wait_for(same, "", SETTLE_S, 0.2)
        return self._more(after)

    def _more(self, after):
        return [f"{key}: {self.before[key]} before, {count} after" for key, count in sorted(after.items()) if count > self.before[key]]

    def verify(self):
        found = self.differences()
        check(not found, "something is left:\n  " + "\n  ".join(found))

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            self.verify()


# --- the host -----------------------------------------------------------------------------------


def _read(path):
    try:
        return pathlib.Path(path).read_bytes()
    except OSError:
        return b""


def _pipe_size(path):
    pipe = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return fcntl.fcntl(pipe, 1032)  # F_GETPIPE_SZ
    finally:
        os.close(pipe)


def _pids():
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _kill(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _mounts_below(folder):
    """Innermost first."""
    targets = [line.split()[4] for line in open("/proc/self/mountinfo", encoding="utf-8")]
    return sorted((t for t in targets if t == str(folder) or t.startswith(f"{folder}/")), key=len, reverse=True)


def _links(instance):
    return [name for name in os.listdir("/sys/class/net") if re.fullmatch(rf"thaw{instance}-\d+", name)]


def _cgroups(instance):
    return sorted(glob.glob(f"/sys/fs/cgroup/*/thaw/{instance}") + glob.glob(f"/sys/fs/cgroup/thaw/{instance}"))


@contextlib.contextmanager
def _claimed(instance):
    """Holds an instance's lock, if nobody else does."""
    try:
        lock = os.open(f"/run/thaw/network-{instance}", os.O_RDWR)
    except FileNotFoundError:
        yield True
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(lock)


def _is_free(instance):
    with _claimed(instance) as ours:
        return ours


def _foreign(instance):
    """Whether processes that are none of ours live in its cgroups: replicas of somebody else's daemon, killed or alive."""
    files = [file for group in _cgroups(instance)[:1] for file in glob.glob(f"{group}/**/cgroup.procs", recursive=True)]
    return any(not _ours(int(pid)) for file in files for pid in _read(file).split())


def _sweep_cgroups(slot):
    """Ends what a slot has left in its cgroups, and removes these."""
    left = []
    groups = glob.glob(f"/sys/fs/cgroup/*/thaw/*/{slot}") + glob.glob(f"/sys/fs/cgroup/thaw/*/{slot}")
    for group in groups:
        with contextlib.suppress(OSError):
            if os.path.exists(f"{group}/freezer.state"):
                pathlib.Path(f"{group}/freezer.state").write_text("THAWED")
        for attempt in range(100):
            pids = [int(pid) for file in glob.glob(f"{group}/**/cgroup.procs", recursive=True) for pid in _read(file).split()]
            if attempt == 0:
                left += [f"process {pid} in {group}: {_read(f'/proc/{pid}/comm').decode().strip()}" for pid in pids]
            if not pids:
                break
            for pid in pids:
                _kill(pid)
            time.sleep(0.05)
    reap()
    for group in groups:
        left.append(f"cgroup {group}")
        for directory, _, _ in os.walk(group, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(directory)
    return left


def _sweep_links(names):
    for name in names:
        subprocess.run(["ip", "link", "del", name], capture_output=True, timeout=30, check=False)
    return [f"link {name}" for name in names]


class HostThings:
    """What tests could leave on this host, now. `since(before)`: what is there that was not. Where daemons of others ran at either
    time, only what can be told to be of a daemon that a test here started; otherwise everything."""

    def __init__(self):
        reap()
        held = _held_instances()
        strangers = held - {i for daemon in Daemon.living for i in daemon.instances} or any(_stranger(pid) for pid in _pids())
        self.alone = not strangers
        self.all, self.own = set(), set()
        idle = {i for i in Daemon.used_instances - held if not _foreign(i)}
        for name in os.listdir("/sys/class/net"):
            match = re.fullmatch(r"thaw(\d+)-\d+", name)
            self._add(f"link {name}", match and int(match.group(1)) in idle and name in Daemon.used_links)
        for directory in glob.glob("/sys/fs/cgroup/*/thaw/*/*/") + glob.glob("/sys/fs/cgroup/thaw/*/*/"):
            self._add(f"cgroup {directory}", directory.rstrip("/").rpartition("/")[2] in Daemon.used_slots)
        for line in open("/proc/self/mountinfo", encoding="utf-8"):
            target = line.split()[4]
            self._add(f"mount {target}", any(target.startswith(str(data)) for data in Daemon.used_data))
        for pid in _pids():
            line = _read(f"/proc/{pid}/cmdline")
            own = any(str(data).encode() in line for data in Daemon.used_data)
            if own or _stranger(pid):
                self._add(f"process {pid} {line.replace(bytes(1), b' ').decode(errors='replace')[:200]}", own)
        for table in _lines("nft", "list", "tables"):
            match = re.match(r"table inet thaw(\d+)$", table)
            self._add(table, match and int(match.group(1)) in idle)
        for line in _lines("ip", "netns", "list"):
            self._add(f"netns {line.split()[0]}", False)
        for path in glob.glob("/run/thaw/*"):
            if not path.rpartition("/")[2].startswith("network-"):  # a lock's file stays
                self._add(f"file {path}", False)

    def _add(self, thing, own):
        self.all.add(thing)
        if own:
            self.own.add(thing)

    def since(self, before):
        if self.alone and before.alone:
            return sorted(self.all - before.all)
        return sorted(self.own - before.own)


def _lines(*command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return [line for line in done.stdout.splitlines() if line.strip()]


def _held_instances():
    held = set()
    for path in glob.glob("/run/thaw/network-*"):
        instance = int(path.rpartition("-")[2])
        with _claimed(instance) as ours:
            if not ours:
                held.add(instance)
    return held


def _stranger(pid):
    """Whether it is a thaw process that is none of this test's."""
    comm = _read(f"/proc/{pid}/comm").decode(errors="replace")
    return comm.startswith("thaw") and not _ours(pid)


def _ours(pid):
    """Whether a process descends from this one."""
    while pid > 1:
        if pid == os.getpid():
            return True
        stat = _read(f"/proc/{pid}/stat").decode(errors="replace")
        if not stat:
            return False
        pid = int(stat.rpartition(")")[2].split()[1])
    return False


def reap():
    """Collects orphans that came to us (we are the subreaper), but no Popen's own children."""
    known = {process.pid for d in Daemon.living for process in (d.process, *d.earlier) if process}
    for pid in _pids():
        stat = _read(f"/proc/{pid}/stat").decode(errors="replace").rpartition(")")[2].split()
        if stat and stat[0] == "Z" and int(stat[1]) == os.getpid() and pid not in known:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def _end_descendants():
    """SIGKILL for what is still below us; what that was."""
    left = []
    for _ in range(100):
        reap()
        pids = [pid for pid in _pids() if pid != os.getpid() and _ours(pid)]
        if not pids:
            break
        if not left:
            left = [f"process {pid}: {_read(f'/proc/{pid}/cmdline').replace(bytes(1), b' ').decode(errors='replace')[:160]}" for pid in pids]
        for pid in pids:
            _kill(pid)
        time.sleep(0.05)
    return left


# --- running tests ------------------------------------------------------------------------------


class Interrupted(BaseException):
    """A signal asked us to end."""


def main(names, fresh=False, daemon_arguments=(), slots=2):
    """Runs the test_* functions of a module's globals(); see the top. Does not return."""
    arguments = [a for a in sys.argv[1:] if not a.startswith("-")]
    keep = "-k" in sys.argv[1:]
    tests = {name: value for name, value in names.items() if name.startswith("test_") and callable(value)}
    chosen = {name: value for name, value in tests.items() if not arguments or any(a in name for a in arguments)}
    if not chosen:
        sys.exit(f"no such test; there are: {', '.join(tests)}")
    if os.geteuid() != 0:
        sys.exit("scenario tests must run as root: they make containers and namespaces")

    def interrupted(number, _):
        raise Interrupted(signal.Signals(number).name)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, interrupted)
    if os.environ.get("THAW_TEST_TIMEOUT"):
        signal.alarm(int(os.environ["THAW_TEST_TIMEOUT"]))
    LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    failed, kept, passed = [], [], 0
    host = HostThings()
    try:
        shared = None
        for name, function in chosen.items():
            begin = time.monotonic()
            try:
                if inspect.signature(function).parameters:
                    if fresh or not shared or not shared.running():
                        shared = Daemon(*daemon_arguments, slots=slots).start()
                    _run_with(shared, function)
                    if fresh:
                        forced = shared.destroy()
                        check(not forced, "had to be ended by force:\n  " + "\n  ".join(forced))
                else:
                    function()
            except Exception as error:  # noqa: BLE001: the next test runs all the same
                failed.append(name)
                print(f"FAIL {name} ({time.monotonic() - begin:.1f} s)", flush=True)
                if isinstance(error, Failure):
                    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.endswith("thawtest.py")]
                    where = f"{os.path.basename(frames[-1].filename)}:{frames[-1].lineno}: " if frames else ""
                    print(f"  {where}{error}".replace("\n", "\n  "), flush=True)
                else:
                    traceback.print_exc(file=sys.stdout)
                # The next test gets a daemon that nothing has happened to.
                for daemon in list(Daemon.living):
                    print(*[f"  {line}" for line in daemon.tail(12).splitlines()], sep="\n", flush=True)
                    daemon.destroy(keep=keep)
                    kept += [str(daemon.data)] if keep else []
                shared = None
            else:
                passed += 1
                print(f"ok   {name} ({time.monotonic() - begin:.1f} s)", flush=True)
    except Interrupted as signal_name:
        failed.append("interrupted")
        print(f"FAIL interrupted by {signal_name}", flush=True)
        traceback.print_exc(file=sys.stdout)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
            signal.signal(number, signal.SIG_IGN)
        forced = []
        for daemon in list(Daemon.living):
            forced += daemon.destroy()
        for undo in reversed(_undo):
            with contextlib.suppress(Exception):
                undo()
        forced += _end_descendants()
        left = []

        def nothing_left():
            nonlocal left
            left = HostThings().since(host)
            return not left

        with contextlib.suppress(Failure):
            # The kernel ends namespaces, and with them links, in the background.
            wait_for(nothing_left, "", 60, 0.2)
    if not failed and (forced or left):
        failed.append("leaks")
    for text in forced:
        print(f"FAIL had to be ended by force: {text}", flush=True)
    for text in left:
        print(f"FAIL left behind: {text}", flush=True)
    if kept:
        print("kept:", *kept)
    print(f"{passed} of {len(chosen)} passed", flush=True)
    sys.exit(1 if failed else 0)


_undo = []


def at_end(undo):
    """Calls undo() when the test file ends, however it ends, after the daemons are gone; last one first."""
    _undo.append(undo)


def _run_with(daemon, function):
    leaks = LeakCheck(daemon)
    function(daemon)
    daemon.clear()
    leaks.verify()
