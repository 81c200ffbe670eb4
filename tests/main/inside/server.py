"""The program in the pods of these tests: one process, few imports, and a note to the host of whatever happens to it.

It answers on PORT (8000) at once and writes one JSON object a line to /ctl/notes, a file of the host, opened anew for each line, so
that no descriptor of it is in a dump. When /ctl/go appears it does what ON_GO names, words separated by blanks:
    print:TEXT (_ is a blank)  touch:PATH  open:PATH  mkdir:PATH  write:PATH  listen:PORT  notify  worker (sends READY=1 from a process of its own)  busy:MIB (holds so much memory)
Before that it does what AT_START names: the same, and landlock (opens a ruleset, which CRIU cannot dump), leave-when-restored, leave-soon-after (1.5 s later).
"""

import ctypes
import json
import os
import random
import signal
import socket
import stat
import sys
import threading
import time

from calls import calls

CTL = "/ctl"
held = []
counted = 0


def identity():
    try:
        with open("/run/thaw/identity.json", encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        return {"replica": "standby"}  # it has none until it is taken


def note(kind, **more):
    line = json.dumps({"kind": kind, "time_us": time.time_ns() // 1000, "replica": identity()["replica"], **more}) + "\n"
    descriptor = os.open(CTL + "/notes", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    os.write(descriptor, line.encode())
    os.close(descriptor)


def tell(text):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.connect(os.environ["NOTIFY_SOCKET"])
        out.send(text.encode())


def worker():
    if os.fork() == 0:
        tell("READY=1")
        while True:
            signal.pause()


def leave_when_restored(after=0):
    while not os.path.exists("/run/thaw/restored"):
        time.sleep(0.01)
    time.sleep(after)
    note("leaving")
    os._exit(3)


def busy_when_restored(mib):
    while not os.path.exists("/run/thaw/restored") or os.path.exists(CTL + "/calm"):
        time.sleep(0.01)
    for _ in range(mib):
        held.append(os.urandom(1 << 20))
    note("busy")


def act(words):
    for word in words.split():
        name, _, value = word.partition(":")
        if name == "print":
            print(value.replace("_", " "), flush=True)
        elif name == "touch":
            open(value, "w", encoding="utf-8").close()
        elif name == "open":
            held.append(open(value, encoding="utf-8"))
        elif name == "mkdir":
            os.mkdir(value)
        elif name == "write":
            with open(value, "w", encoding="utf-8") as file:
                file.write("written before the dump\n")
        elif name == "listen":
            threading.Thread(target=serve, args=(listen(int(value)),), daemon=True).start()
        elif name == "notify":
            tell("STATUS=warm\nREADY=1")
        elif name == "worker":
            worker()
        elif name == "busy":
            held.append(os.urandom(1 << 20) * int(value))
        elif name == "landlock":
            ruleset = ctypes.CDLL(None, use_errno=True).syscall(444, (ctypes.c_uint64 * 1)(1), 8, 0)
            note("landlock", descriptor=ruleset, error=ctypes.get_errno())
            held.append(ruleset)
        elif name == "busy-when-restored":
            threading.Thread(target=busy_when_restored, args=(int(value),), daemon=True).start()
        elif name == "leave-soon-after":
            threading.Thread(target=leave_when_restored, args=(1.5,), daemon=True).start()
        elif name == "leave-when-restored":
            threading.Thread(target=leave_when_restored, daemon=True).start()
        else:
            sys.exit(f"server.py does not know {word}")


def wait_for_go():
    while not os.path.exists(CTL + "/go"):
        time.sleep(0.01)
    act(os.environ.get("ON_GO", ""))
    note("went")


# --- what it sees of its container --------------------------------------------------------------


def try_to(work):
    try:
        return work()
    except OSError as error:
        return f"error {error.errno}"


def read(path, size=1 << 16):
    with open(path, "rb") as file:
        return file.read(size).decode(errors="replace")


def write(path):
    os.close(os.open(path, os.O_WRONLY))
    return "can be written"


def entry(path):
    info = os.lstat(path)
    where = os.readlink(path) if stat.S_ISLNK(info.st_mode) else ""
    return [path, oct(info.st_mode), info.st_uid, info.st_gid, info.st_rdev, where]


def mounts():
    found = []
    for line in read("/proc/self/mountinfo").splitlines():
        head, _, tail = line.partition(" - ")
        words = head.split()
        found.append([words[4], sorted(words[5].split(",")), [w.partition(":")[0] for w in words[6:]], tail.split()[0]])
    return sorted(found)


def processes():
    return sorted(read(f"/proc/{pid}/comm").strip() for pid in os.listdir("/proc") if pid.isdigit())


def descriptors():
    found = []
    for number in os.listdir("/proc/self/fd"):
        target = try_to(lambda number=number: os.readlink(f"/proc/self/fd/{number}"))
        if not target.startswith("error"):
            found.append(target.partition(":")[0])
    return sorted(found)


MASKED = ("acpi", "asound", "kcore", "keys", "latency_stats", "timer_list", "timer_stats", "sched_debug", "scsi", "interrupts")
SETTINGS = ("/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/proc/sys/vm/swappiness",
            "/proc/sys/net/ipv4/ip_forward", "/sys/kernel/profiling")  # fmt: skip


def routes(name):
    """The lines of a file in /proc/net, without the kernel's counters of how often a route is held and was used."""
    columns = {"route": (4, 5), "ipv6_route": (6, 7)}.get(name, ())
    lines = [line.split() for line in read(f"/proc/net/{name}").splitlines()]
    return sorted(" ".join(text for n, text in enumerate(line) if n not in columns) for line in lines)


def view():
    lines = dict(line.split(":\t", 1) for line in read("/proc/self/status").splitlines() if ":\t" in line)
    wanted = ("Uid", "Gid", "Groups", "Umask", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Seccomp_filters", "SigIgn", "SigBlk")
    masked = {}
    for path in ["/proc/" + name for name in MASKED] + ["/sys/firmware", "/sys/dev/block", "/sys/devices/virtual/powercap"]:
        work = os.listdir if os.path.isdir(path) else lambda path: len(read(path))
        masked[path] = try_to(lambda work=work, path=path: work(path))
    libc = ctypes.CDLL(None, use_errno=True)
    return {
        "status": {name: lines.get(name, "").strip() for name in wanted},
        "securebits": libc.prctl(27, 0, 0, 0, 0),
        "dumpable": libc.prctl(3, 0, 0, 0, 0),
        "mounts": mounts(),
        "devices": sorted(entry(os.path.join(top, name)) for top, dirs, files in os.walk("/dev") for name in dirs + files
                          if not top.startswith("/dev/pts")),
        "limits": read("/proc/self/limits").splitlines(),
        "masked": masked,
        "settings": {path: try_to(lambda path=path: write(path)) for path in SETTINGS},
        "calls": calls(),
        "raw socket": try_to(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()),
        "device node": try_to(lambda: os.mknod("/dev/mem", stat.S_IFCHR | 0o600, os.makedev(1, 1))),
        "root": sorted(os.listdir("/")),
        "cwd": os.getcwd(),
        "oom_score_adj": read("/proc/self/oom_score_adj").strip(),
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "session": [os.getpid(), os.getppid(), os.getsid(0), os.getpgid(0)],
        "processes": processes(),
        "descriptors": descriptors(),
        "network": {name: routes(name) for name in ("route", "if_inet6", "ipv6_route")},
        "links": sorted(os.listdir("/sys/class/net")),
        "ping_group_range": read("/proc/sys/net/ipv4/ping_group_range").split(),
        "files": {path: read(path) for path in ("/etc/resolv.conf",)},
        "run/thaw": sorted(os.listdir("/run/thaw")),
    }  # fmt: skip


# --- serving ------------------------------------------------------------------------------------


def count():
    """Counts in memory, and in a file of its own."""
    global counted
    counted += 1
    with open("/counted", "a", encoding="utf-8") as file:
        file.write(f"{counted}\n")
    return {"count": counted, "file": len(read("/counted").split())}


def answer(connection, peer):
    with connection:
        data = b""
        while b"\r\n\r\n" not in data:
            piece = connection.recv(4096)
            if not piece:
                return
            data += piece
        words = data.split()[1].decode().strip("/").split("/")
        status, body = "200 OK", {}
        if words[0] == "who":
            body = {"identity": identity(), "env": dict(os.environ), "hostname": os.uname().nodename, "etc_hostname": read("/etc/hostname").strip(),
                    "hosts": read("/etc/hosts"), "restored": os.path.exists("/run/thaw/restored"), "cwd": os.getcwd(),
                    "uid": os.getuid(), "gid": os.getgid(), "groups": os.getgroups(), "argv": sys.argv}  # fmt: skip
        elif words[0] == "view":
            body = view()
        elif words[0] == "count":
            body = {**count(), "identity": identity()}
        elif words[0] == "draw":
            body = {"number": random.getrandbits(64)}
        elif words[0] == "reseed":
            random.seed(os.urandom(32))
            note("reseeded")
        elif words[0] == "warm":
            status = "200 OK" if os.path.exists(CTL + "/go") else "503 Not Yet"
        elif words[0] == "print":
            print(words[1], flush=True)
        elif words[0] == "slow":
            note("slow")
            while not os.path.exists(f"{CTL}/{words[1]}"):
                time.sleep(0.01)
            body = {"slow": words[1]}
        elif words[0] == "exit":
            os._exit(int(words[1]))
        text = json.dumps(body).encode()
        connection.sendall(f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\nConnection: close\r\n\r\n".encode() + text)


def listen(port):
    server = socket.socket(socket.AF_INET6)
    server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("::", port))
    server.listen(128)
    return server


def serve(server):
    while True:
        connection, peer = server.accept()
        address = peer[0].removeprefix("::ffff:")
        note("accepted", peer=address, port=server.getsockname()[1])
        threading.Thread(target=answer, args=(connection, address), daemon=True).start()


def terminated(*_):
    note("terminated")
    if os.environ.get("IGNORE_TERM") != "1":
        os._exit(int(os.environ.get("TERM_EXIT", "0")))


def main():
    signal.signal(signal.SIGTERM, terminated)
    server = listen(int(os.environ.get("PORT", "8000")))
    print("server is up", flush=True)
    print("and writes to stderr, too", file=sys.stderr, flush=True)
    act(os.environ.get("AT_START", ""))
    note("up", identity=identity())
    threading.Thread(target=wait_for_go, daemon=True).start()
    serve(server)


main()
