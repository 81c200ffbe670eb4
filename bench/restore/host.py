"""The machine under the measurements: commands, namespaces, processes, memory."""

import ctypes
import os
import pathlib
import platform
import shutil
import signal
import socket
import subprocess
import tempfile
import time

CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000
MS_REC = 0x4000
MS_PRIVATE = 1 << 18
MNT_DETACH = 2
PR_SET_CHILD_SUBREAPER = 36
CRIU_HOME = pathlib.Path(os.environ.get("THAW_CRIU_HOME", "/usr/local/lib/thaw/criu"))
REPOSITORY = pathlib.Path(__file__).resolve().parents[2]

_libc = ctypes.CDLL(None, use_errno=True)


class BenchError(Exception):
    """A measurement that could not be taken, said for people."""


def _check(result, what):
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot {what}: {os.strerror(number)}")


def mount(source, target, kind=None, flags=0, data=None):
    as_bytes = [os.fsencode(x) if x is not None else None for x in (source, target, kind)]
    _check(
        _libc.mount(*as_bytes, ctypes.c_ulong(flags), data.encode() if data else None),
        f"mount {kind or source} at {target}",
    )


def unmount(target):
    _check(_libc.umount2(os.fsencode(target), MNT_DETACH), f"unmount {target}")


def enter_private_mounts():
    """Every mount made from here on ends with this process and its children, whatever happens.

    /run becomes a tmpfs as it is on most machines: CRIU keeps what it learned about the kernel there.
    """
    _check(_libc.unshare(CLONE_NEWNS), "make a mount namespace (are you root?)")
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", "/run", "tmpfs", 0, "mode=755")
    # What a daemonised runtime leaves behind is reaped here, not by the machine's init.
    _check(_libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "become the reaper of orphans")


class NetworkNamespace:
    """One made ahead, with its loopback up, held as a descriptor."""

    def __init__(self, fd):
        self.fd = fd

    @classmethod
    def create(cls):
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _check(_libc.unshare(CLONE_NEWNET), "make a network namespace")
            made = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            run(["ip", "link", "set", "lo", "up"])
        finally:
            _check(_libc.setns(home, CLONE_NEWNET), "return to the own network namespace")
            os.close(home)
        return cls(made)

    @classmethod
    def of(cls, pid):
        """The one that a process lives in."""
        return cls(os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC))

    @property
    def path(self):
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    def socket(self):
        """A TCP socket that lives in this namespace."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _check(_libc.setns(self.fd, CLONE_NEWNET), "enter a network namespace")
            try:
                return socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            finally:
                _check(_libc.setns(home, CLONE_NEWNET), "return to the own network namespace")
        finally:
            os.close(home)

    def close(self):
        os.close(self.fd)


def run(command, timeout=60, **options):
    """Runs a command to its end; its output. Says what it said when it fails."""
    command = [str(part) for part in command]
    options.setdefault("stdin", subprocess.DEVNULL)
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout, check=False, **options)
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"`{' '.join(command)}` did not end within {timeout} s") from error
    except FileNotFoundError as error:
        raise BenchError(f"{command[0]} is not installed; scripts/setup installs it") from error
    if done.returncode != 0:
        said = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
        raise BenchError(f"`{' '.join(command[:8])} …` failed ({done.returncode}): {' / '.join(said[-4:])}")
    return done.stdout.decode(errors="replace")


def criu_command():
    if (CRIU_HOME / "sbin/criu").exists():
        library = CRIU_HOME / "lib"
        return [str(library / "ld-linux-x86-64.so.2"), "--library-path", str(library), str(CRIU_HOME / "sbin/criu")]
    if shutil.which("criu"):
        return ["criu"]
    raise BenchError("criu is not installed; scripts/setup installs it")


def path_with_criu(folder):
    """The environment in which podman and runc find our CRIU as `criu`."""
    environment = dict(os.environ, LC_ALL="C")
    if (CRIU_HOME / "sbin/criu").exists():
        binary = folder / "criu"
        source = pathlib.Path(__file__).with_name("criu_in_path.c")
        run(["gcc", "-O2", "-static", f'-DCRIU_HOME="{CRIU_HOME}"', "-o", binary, source])
        environment["PATH"] = f"{folder}:{environment['PATH']}"
    return environment


def temporary_folder():
    return pathlib.Path(tempfile.mkdtemp(prefix="thaw-bench-", dir=os.environ.get("TMPDIR", "/var/tmp")))


def remove_folder(folder):
    """What lies below, mounts first (ours only: the namespace is private)."""
    mounts = [line.split()[4] for line in open("/proc/self/mountinfo", encoding="utf-8")]
    for target in sorted((m for m in mounts if m.startswith(f"{folder}/")), key=len, reverse=True):
        unmount(target)
    shutil.rmtree(folder, ignore_errors=True)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(condition, what, seconds, step=0.01):
    """Its first true value. For preparation and cleaning up only; nothing is timed with it."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise BenchError(f"{what} did not happen within {seconds} s")
        time.sleep(step)


# --- processes -------------------------------------------------------------------------------


def _parents():
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", encoding="utf-8", errors="replace") as file:
                    parents[int(entry)] = int(file.read().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                pass
    return parents


def parent_of(pid):
    return _parents().get(pid)


def tree(root):
    """The process and everything below it."""
    children = {}
    for pid, parent in _parents().items():
        children.setdefault(parent, []).append(pid)
    found, left = [], [root]
    while left:
        pid = left.pop()
        found.append(pid)
        left += children.get(pid, [])
    return found


def pss_mib(pids):
    """Proportional set size: private pages, and each shared one divided among those that map it."""
    total = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/smaps_rollup", encoding="utf-8") as file:
                for line in file:
                    if line.startswith("Pss:"):
                        total += int(line.split()[1])
        except OSError:
            pass  # it ended meanwhile
    return total / 1024


def end(pid, seconds=10):
    """SIGKILL, and waited for."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(fd, signal.SIGKILL)
    except ProcessLookupError:
        pass
    finally:
        os.close(fd)
    wait_for(lambda: reap(pid) or not os.path.exists(f"/proc/{pid}"), f"the end of process {pid}", seconds)


def reap(pid):
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return False


def reap_orphans():
    try:
        while os.waitpid(-1, os.WNOHANG)[0] > 0:
            pass
    except ChildProcessError:
        pass


def end_descendants():
    """Whatever was left behind: as the reaper of orphans, this process is the ancestor of all of it."""
    for _ in range(20):
        left = [pid for pid in tree(os.getpid()) if pid != os.getpid()]
        if not left:
            return
        for pid in left:
            end(pid)
        reap_orphans()


# --- the machine itself ----------------------------------------------------------------------


def drop_page_cache():
    """Clean pages of every file leave memory, as after a reboot; directory entries and inodes stay."""
    os.sync()
    pathlib.Path("/proc/sys/vm/drop_caches").write_text("1")


def read_into_page_cache(path):
    """A file, or all below a folder; what others have written goes to the disk first."""
    os.sync()
    files = [path] if path.is_file() else [name for name in path.rglob("*") if name.is_file() and not name.is_symlink()]
    block = bytearray(1 << 20)
    for name in files:
        with open(name, "rb", buffering=0) as file:
            while file.readinto(block):
                pass


def warm_memory(mib):
    """The first touch of memory after boot is many times slower than any later one."""
    child = os.fork()
    if child == 0:
        block = bytearray(1 << 20)
        kept = [bytes(block) for _ in range(mib)]
        os._exit(0 if kept else 1)
    os.waitpid(child, 0)


def used_mib():
    """Memory that programs and the kernel use; the page cache is not counted."""
    total, available = (int(_first("/proc/meminfo", name).split()[0]) for name in ("MemTotal", "MemAvailable"))
    return (total - available) / 1024


def _first(path, prefix):
    with open(path, encoding="utf-8") as file:
        for line in file:
            if line.startswith(prefix):
                return line.split(":", 1)[1].strip()
    return ""


def _version(command):
    try:
        words = run(command, timeout=20).split()
    except BenchError:
        return None
    return next((word.strip(",") for word in words if word[:1].isdigit()), None)


def describe(thaw):
    """What a reader must know of the machine to compare figures."""
    with open("/sys/kernel/mm/transparent_hugepage/enabled", encoding="utf-8") as file:
        huge_pages = file.read().split("[")[1].split("]")[0]
    with open("/proc/cgroups", encoding="utf-8") as file:
        v1 = any(line.split()[0] == "memory" and line.split()[1] != "0" for line in file)
    return {
        "cpu": _first("/proc/cpuinfo", "model name"),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mib": int(_first("/proc/meminfo", "MemTotal").split()[0]) // 1024,
        "kernel": platform.release(),
        "cgroups": "v1" if v1 else "v2",
        "transparent_hugepage": huge_pages,
        "load_before": round(os.getloadavg()[0], 2),
        "versions": {
            "thaw": _version([thaw, "version"]) if thaw else None,
            "criu": _version([*criu_command(), "--version"]),
            "runc": _version(["runc", "--version"]),
            "podman": _version(["podman", "--version"]),
            "python": platform.python_version(),
        },
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
