"""The commands, as people use them: through pipes, on a terminal, following what happens, and on a host that lacks something."""

import fcntl
import hashlib
import json
import os
import pathlib
import pty
import select
import signal
import struct
import subprocess
import tarfile
import tempfile
import termios
import time

import thawtest
from common import background
from thawtest import Daemon, check, equal, rootfs, wait_for

PROGRAM = "import http.server\nprint('begun', flush=True)\nhttp.server.HTTPServer(('0.0.0.0', 8000), http.server.SimpleHTTPRequestHandler).serve_forever()"


def spec(name, **more):
    return {
        "name": name, "rootfs": rootfs("example"), "command": ["python3", "-u", "-c", PROGRAM], "ports": [8000], "replicas": {"min": 1, "max": 4},
        "stop_grace": "0s", **more,
    }  # fmt: skip


class Terminal:
    """`thaw WORDS` on a terminal of its own."""

    def __init__(self, daemon, *words, rows=30, columns=100):
        self.fd, other = pty.openpty()
        self.resize(rows, columns)
        self.process = background(daemon, *words, stdin=other, stdout=other, stderr=other, start_new_session=True)
        os.close(other)
        self.text = ""

    def resize(self, rows, columns):
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def send(self, text):
        os.write(self.fd, text.encode())

    def read(self, seconds):
        if not select.select([self.fd], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self.fd, 4096)
        except OSError:  # EIO: its other end is closed
            data = b""
        self.text += data.decode(errors="replace")
        return bool(data)

    def wait(self, text, seconds=90):
        end = time.monotonic() + seconds
        while text not in self.text:
            check(time.monotonic() < end, f"the terminal does not show {text!r}: {self.text!r}")
            self.read(0.5)

    def end(self, seconds=90):
        code = self.process.wait(seconds)
        while self.read(0.1):
            pass
        os.close(self.fd)
        return code


def test_exec_with_more_output_than_anybody_reads(daemon):
    """The program answers each block with four, and is sent all of it before anything is read: nobody waits for the other for ever."""
    daemon.deploy(spec("pipes"))
    program = "import sys\nfor block in iter(lambda: sys.stdin.buffer.read1(65536), b''): sys.stdout.buffer.write(block * 4)"
    sent = os.urandom(1 << 20) * 8
    done = subprocess.run(
        [daemon.binary, "exec", "-i", "pipes", "--", "python3", "-c", program], env={**daemon.env, "THAW_HOST": daemon.address}, input=sent,
        capture_output=True, timeout=240, check=False,
    )  # fmt: skip
    equal(done.returncode, 0, f"its exit code ({done.stderr.decode()})")
    equal(len(done.stdout), 4 * len(sent), "bytes that came back")
    done = daemon.cli("exec", "pipes", "--", "sh", "-c", "echo out; echo err >&2; exit 9", check_exit=False)
    equal((done.stdout, done.stderr, done.returncode), ("out\n", "err\n", 9), "the two streams and the exit code")
    done = daemon.cli("exec", "-i", "pipes", "--", "sha256sum", input="some text")
    equal(done.stdout.split()[0], hashlib.sha256(b"some text").hexdigest(), "what stdin had")


def test_exec_on_a_terminal(daemon):
    daemon.deploy(spec("tty"))
    terminal = Terminal(daemon, "exec", "-it", "tty", "--", "sh")
    terminal.send("stty size; tty\n")
    terminal.wait("30 100")
    terminal.wait("/dev/pts/")
    terminal.resize(12, 34)
    terminal.process.send_signal(signal.SIGWINCH)

    def resized():  # it comes a moment later
        terminal.send("stty size\n")
        terminal.read(0.5)
        return "12 34" in terminal.text

    wait_for(resized, "the terminal inside has the new size")
    # Ctrl-C belongs to the program in the container.
    terminal.send("sleep 100000\n")
    wait_for(lambda: "sleep\n" in daemon.exec("tty", "sh", "-c", "cat /proc/[0-9]*/comm"), "the program runs")
    terminal.send("\x03")
    terminal.send("echo still $((40 + 2))\n")
    terminal.wait("still 42")
    terminal.send("exit 7\n")
    equal(terminal.end(), 7, f"its exit code\n{terminal.text}")


def test_progress_on_a_terminal(daemon):
    """A person who deploys sees what happens while it happens; a script sees the URL only."""
    path = pathlib.Path(tempfile.mkdtemp(dir=daemon.data)) / "pod.json"
    path.write_text(json.dumps(spec("shown", checkpoint={"when": {"http": {"path": "/"}}})))
    terminal = Terminal(daemon, "deploy", str(path))
    for word in ("starting", "warming", "checkpointing", "ready", "http://"):
        terminal.wait(word)
    equal(terminal.end(), 0, "its exit code")
    daemon.wait_checkpoint("shown")
    done = daemon.cli("deploy", str(path))
    check(done.stdout.startswith("http://") and len(done.stdout.splitlines()) == 1, f"what a script sees: {done.stdout!r}")
    terminal = Terminal(daemon, "rm", "--force", "shown")
    terminal.wait("stopping")
    equal(terminal.end(), 0, "its exit code")


def test_following(daemon):
    """`events -f` and `logs -f` show what comes, until they are told to end."""
    events = background(daemon, "events", "-f", "--json")
    daemon.deploy(spec("followed"))
    ready = next(event for event in map(json.loads, events.stdout) if event["pod"] == "followed" and event["type"] == "replica.ready")
    replica = daemon.replica(ready["replica"])
    phases = ready["data"]["phases"]
    equal([p for p in phases if p["name"] != "ready"], [p for p in replica["phases"] if p["name"] != "ready"], "phases of the event")
    check(all(p["end_us"] >= p["start_us"] for p in phases if p["name"] != "ready"), f"phases: {phases}")
    events.send_signal(signal.SIGINT)
    equal(events.wait(90), 130, "how `events -f` ends at Ctrl-C")

    logs = background(daemon, "logs", "-f", "followed")
    equal(logs.stdout.readline().strip(), "begun", "the first line")
    daemon.exec(replica["id"], "sh", "-c", "echo more > /proc/1/fd/1")
    equal(logs.stdout.readline().strip(), "more", "the next line")
    daemon.cli("stop", "followed")
    equal(logs.wait(90), 0, "how `logs -f` ends when the replica has")
    stopped = [event for event in daemon.events(pod="followed") if event["type"] == "replica.stopped"][-1]
    equal([p["name"] for p in stopped["data"]["phases"]][-2:], ["draining", "stopping"], "the last phases of the event")


def test_images(daemon):
    folder = pathlib.Path(tempfile.mkdtemp(dir=daemon.data))
    (folder / "hello").write_text("hello")
    with tarfile.open(folder / "layer.tar", "w") as layer:
        layer.add(folder / "hello", "hello")
    for words in (("init", "--layout", "oci"), ("new", "--image", "oci:v1"), ("raw", "add-layer", "--image", "oci:v1", "layer.tar")):
        subprocess.run(["umoci", *words], cwd=folder, check=True, capture_output=True, timeout=60)
    reference = f"oci:{folder}/oci:v1"
    image = daemon.cli("image", "import", reference).stdout.strip()
    equal([row["reference"] for row in json.loads(daemon.cli("image", "ls", "--json").stdout)], [reference], "images")
    equal(daemon.cli("image", "ls", "-q").stdout.split(), [image], "their ids")
    check(image[:12] in daemon.cli("image", "ls").stdout, "the table does not show it")
    daemon.cli("image", "rm", image)
    equal(daemon.cli("image", "ls", "-q").stdout, "", "images afterwards")


def doctor(*words):
    done = subprocess.run([thawtest.binary(), "doctor", *words, "--json"], capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, {row["name"]: row for row in json.loads(done.stdout)}


def test_doctor():
    code, rows = doctor()
    equal(code, 0, f"the exit code here, where all is well: {rows}")
    for name in ("kernel", "criu", "runtime", "cgroups", "userfaultfd", "overlay", "nftables", "open files"):
        equal(rows[name]["status"], "pass", f"{name}: {rows[name]}")
    code, rows = doctor("--runtime", "/no/such/runtime")
    equal((code, rows["runtime"]["status"]), (1, "fail"), "the exit code and the check without an OCI runtime")
    check("--runtime" in rows["runtime"]["remedy"], f"the remedy: {rows['runtime']}")
    # A CRIU that is there and does not run.
    folder = thawtest.temporary_folder()
    (folder / "sbin").mkdir()
    (folder / "sbin/criu").write_text("#!/bin/sh\nexit 1\n")
    (folder / "sbin/criu").chmod(0o755)
    (folder / "VERSION").write_text("4.2.1\n")
    code, rows = doctor("--criu", str(folder))
    equal((code, rows["criu"]["status"]), (0, "warn"), f"the exit code and the check with a broken CRIU: {rows['criu']}")


def test_another_runtime():
    """The OCI runtime's path is a setting: here a program that notes what it is asked, and asks runc."""
    folder = thawtest.temporary_folder()
    runtime, notes = folder / "runtime", folder / "notes"
    runtime.write_text(f'#!/bin/sh\necho "$@" >> {notes}\nexec runc "$@"\n')
    runtime.chmod(0o755)
    with Daemon("--runtime", runtime) as daemon:
        daemon.deploy(spec("other", checkpoint={"when": {"http": {"path": "/"}}}))
        daemon.wait_checkpoint("other")
        rows = daemon.scale("other", 2)
        equal(sorted(row["started_from"] == "cold" for row in rows), [False, True], "one of them was restored")
    check(" create " in notes.read_text(), f"it was not asked to create a container: {notes.read_text()}")
    with Daemon("--runtime", "/no/such/runtime") as daemon:
        wait_for(lambda: "/no/such/runtime" in daemon.log.read_text(), "the daemon says at its start what is missing")


if __name__ == "__main__":
    thawtest.main(globals())
