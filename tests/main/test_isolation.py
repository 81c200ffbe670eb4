"""What a program tries that wants out of its container, cold and restored: on the host's files, on what enters it, on devices and limits."""

import json
import os
import pathlib
import stat
import threading

import thawtest
from common import Pod, ask
from thawtest import check, equal

GO = {"file": "/ctl/go"}

# All that the host writes into /run/thaw, or has written there once.
NAMES = ("identity.json", "identity.json.new", "restored", "restored.new", "started.json", "started.json.new")


def test_planted_names(daemon):
    """Links, FIFOs and folders in place of the host's files in /run/thaw: a dump, a proof, a restore and a standby go on, and follow none."""
    victim = daemon.data / "victim"
    victim.write_text("of the host")
    for kind, plant in (("link", f"ln -s {victim}"), ("fifo", "mkfifo"), ("folder", "mkdir -p")):
        name = f"plants-{kind}"
        spec = {
            "name": name, "rootfs": thawtest.rootfs("programs"), "replicas": {"min": 1, "max": 3, "standby": 1}, "stop_grace": "0s",
            "command": ["sh", "-c", "touch /run/thaw/ready; exec sleep 100000"],
            "checkpoint": {"when": {"file": "/run/thaw/ready"},
                           "before_checkpoint": ["sh", "-c", f"cd /run/thaw; for n in {' '.join(NAMES)}; do rm -rf $n; {plant} $n; done"]},
        }  # fmt: skip
        daemon.deploy(spec)
        checkpoint = daemon.wait_checkpoint(name)
        daemon.wait_event(lambda e: e["type"] == "replica.standby", "a standby", pod=name)
        rows = daemon.scale(name, 3)  # a standby that is taken, and one that is restored for it
        equal([(row["started_from"], row["outcome"]) for row in rows[1:]], [(checkpoint["id"], "Restored")] * 2, f"{kind}: how they started")
        for row in rows[1:]:
            who = json.loads(daemon.exec(row["id"], "cat", "/run/thaw/identity.json"))
            equal((who["replica"], who["hostname"]), (row["id"], row["hostname"]), f"{kind}: identity.json")
            equal(daemon.exec(row["id"], "stat", "-c", "%F", "/run/thaw/restored").strip(), "regular empty file", f"{kind}: /run/thaw/restored")
        equal(victim.read_text(), "of the host", f"{kind}: a file of the host")
        daemon.remove(name)


# Looks at each new process in /proc as fast as it can; ends when /tmp/enough appears. Prints what could be opened of a process that is not
# yet the container's own program.
WATCH = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
known, found, inside = set(os.listdir("/proc")), set(), ("/usr/", "/bin/")
open("/tmp/watching", "w").close()
while not os.path.exists("/tmp/enough"):
    for pid in set(os.listdir("/proc")) - known:
        if not pid.isdigit(): continue
        for _ in range(40):
            try:
                exe = os.readlink(f"/proc/{pid}/exe")
            except FileNotFoundError: break
            except OSError: continue
            if exe.startswith(inside): break
            found.add("exe " + exe)
            try: found.update("fd " + os.readlink(f"/proc/{pid}/fd/{n}") for n in os.listdir(f"/proc/{pid}/fd"))
            except OSError: pass
            if libc.ptrace(0x4206, int(pid), None, None) == 0: found.add("ptrace")
print("\\n".join(sorted(found)))
"""


def test_what_enters_is_shut_off(daemon):
    """A probe or an exec session cannot be opened, traced or read by the container's root before it is the container's own program."""
    pod = Pod(daemon, "watches", when=GO)
    pod.warm()
    pod.wait_checkpoint()
    for row in daemon.scale(pod.name, 2):
        seen = []
        watcher = threading.Thread(target=lambda row=row, seen=seen: seen.append(daemon.exec(row["id"], "python3", "-S", "-c", WATCH)))
        watcher.start()
        thawtest.wait_for(lambda row=row: daemon.exec(row["id"], "ls", "/tmp/watching", check_exit=False).returncode == 0, "it watches")
        for _ in range(12):
            daemon.exec(row["id"], "true")
        daemon.exec(row["id"], "touch", "/tmp/enough")
        watcher.join(240)
        equal(seen, ["\n"], f"what {row['started_from']} saw of what entered it")


def test_the_hosts_program(daemon):
    """A program of the image that is a link to /proc/self/exe runs the host's thaw; nothing of that can be changed by it."""
    pod = Pod(daemon, "rewrites")
    pod.deploy(wait=True)
    row = pod.only_replica()
    daemon.exec(row["id"], "sh", "-c", "printf '#!/proc/self/exe\\n' > /tmp/run; chmod 755 /tmp/run")
    held = """
import errno, os, sys, time
for _ in range(20000):
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = open(f"/proc/{pid}/cmdline", "rb").read().split(b"\\0")
            if b"/tmp/run" not in words: continue
            held = os.open(f"/proc/{pid}/exe", os.O_RDONLY)
        except OSError: continue
        try: os.fchmod(held, os.fstat(held).st_mode & 0o7777); print("changed")
        except OSError as error: print(errno.errorcode[error.errno])
        sys.exit()
    time.sleep(0.001)
"""
    answers = []
    watcher = threading.Thread(target=lambda: answers.append(daemon.exec(row["id"], "python3", "-S", "-c", held).strip()))
    watcher.start()
    while watcher.is_alive():
        daemon.exec(row["id"], "/tmp/run", "events", "-f", check_exit=False)
    equal(answers, ["EROFS"], "what a change of the host's program is answered with")


def test_device_nodes(daemon):
    """A node of a device in the image opens nothing, not even one that the container's own /dev has; one in a mount only those."""
    pod = Pod(daemon, "nodes", when=GO)
    pod.deploy()
    pod.wait_note("up")
    # As a layer of an image would have it: the upper directory becomes one in the checkpoint.
    upper = daemon.data / "slots" / pod.only_replica()["slot"] / "fs/upper"
    nodes = {upper / "null-of-the-image": (1, 3), pod.ctl / "memory": (1, 1), pod.ctl / "zero": (1, 5)}
    for path, (major, minor) in nodes.items():
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(major, minor))
        path.chmod(0o666)
    pod.go()
    pod.wait_checkpoint()
    program = """
import errno, os, sys
for path in sys.argv[1:]:
    try: os.close(os.open(path, os.O_RDONLY)); print("opened")
    except OSError as error: print(errno.errorcode[error.errno])
"""
    for row in daemon.scale(pod.name, 2):
        found = daemon.exec(row["id"], "python3", "-S", "-c", program, "/null-of-the-image", "/ctl/memory", "/ctl/zero").split()
        equal(found, ["EACCES", "EPERM", "opened"], f"how devices open in the one from {row['started_from']}")


FORK = """
import os, signal
count = 0
try:
    while count < 500:
        if os.fork() == 0: signal.pause()
        count += 1
except OSError as error: print(error.errno, count)
"""


def test_limits():
    """What the daemon's unit has for itself is not the containers': descriptors, locked memory, the order of death; and pids run out."""
    own = pathlib.Path("/proc/self/oom_score_adj")
    before = own.read_text()
    own.write_text("300")
    try:
        daemon = thawtest.Daemon().start()
    finally:
        own.write_text(before)
    with daemon:
        equal(pathlib.Path(f"/proc/{daemon.pid}/oom_score_adj").read_text().strip(), "300", "the daemon's own")
        pod = Pod(daemon, when=GO, resources={"pids": 40})
        pod.warm()
        pod.wait_checkpoint()
        program = "cat /proc/self/oom_score_adj; ulimit -S -n; ulimit -H -n; ulimit -S -l; ulimit -H -l"
        for row in daemon.scale(pod.name, 2):
            view = ask(daemon, row, "view")
            lines = {line[:26].strip(): line[26:].split()[:2] for line in view["limits"]}
            for number in lines["Max open files"]:
                check(int(number) <= 65536, f"descriptors: {lines['Max open files']}")
            for number in lines["Max locked memory"]:
                check(int(number) <= 8 << 20, f"locked memory: {lines['Max locked memory']}")
            equal(view["oom_score_adj"], "0", f"oom_score_adj of the one from {row['started_from']}")
            found = daemon.exec(row["id"], "bash", "-c", program).split()
            equal(found[:3], ["0", *lines["Max open files"]], "an exec session")
            equal([int(n) << 10 for n in found[3:]], [int(n) for n in lines["Max locked memory"]], "locked memory of an exec session")
            error, count = map(int, daemon.exec(row["id"], "python3", "-S", "-c", FORK).split())
            check(error == 11 and count < 40, f"a program forked {count} times (error {error}) where the limit is 40")
            equal(pod.get()["uid"], 0, "the pod serves on")
        daemon.remove(pod.name)
        equal(daemon.destroy(), [], "what had to be ended by force")


if __name__ == "__main__":
    thawtest.main(globals())
