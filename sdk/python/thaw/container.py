"""Inside a replica: say that the program is ready, learn that it was restored, know who it is.

The protocol is files in /run/thaw (docs/container-protocol.md); no daemon is asked. Outside a replica these functions do nothing, so
that a program runs unchanged on a developer's machine.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import select
import socket
import struct
import sys
import threading
import time
import traceback
from typing import Any, Callable, List, NamedTuple, Optional, TypeVar

from .errors import InvalidError, ThawError

__all__ = ["Identity", "checkpoint_enabled", "identity", "inside", "on_restore", "ready", "restored", "wait_for_restore"]

FOLDER = "/run/thaw"
# The longest that a change may go unseen where inotify says nothing: it comes before its watch, or the host is out of watches.
_LOOK_S = 1.0
_IN_CLOEXEC, _IN_NONBLOCK = 0o2000000, 0o4000
_IN_CREATE, _IN_MOVED_TO, _IN_CLOSE_WRITE = 0x100, 0x80, 0x8

_Function = TypeVar("_Function", bound=Callable[..., Any])


class Identity(NamedTuple):
    """Who this replica is. After a restore all of it is the new replica's.

    >>> identity()._replace(pod="model").pod
    'model'
    """

    pod: str
    replica: str
    hostname: str
    generation: str  # another one after each restore
    started_from: str  # "cold" or a checkpoint's id


def inside() -> bool:
    """Whether this program runs in a replica of Thaw.

    >>> if inside(): print(identity().pod)
    """
    return os.path.exists(f"{FOLDER}/identity.json")


def identity() -> Identity:
    """Who this replica is, now: it changes with a restore.

    >>> identity().replica
    '1f0c52a9be11'
    """
    try:
        with open(f"{FOLDER}/identity.json", encoding="utf-8") as file:
            found = json.load(file)
    except FileNotFoundError:
        raise ThawError("unavailable", "read", f"{FOLDER}/identity.json", "it is not there: this program does not run in a replica",
                        "ask thaw.inside() first where it may run elsewhere") from None  # fmt: skip
    return Identity(*(str(found.get(key, "")) for key in Identity._fields))


def checkpoint_enabled() -> bool:
    """Whether this pod is checkpointed: asked for, and possible here. False outside a replica.

    >>> if checkpoint_enabled(): warm_up_everything()
    """
    return os.environ.get("THAW_CHECKPOINT_ENABLED") == "true"


def restored() -> bool:
    """Whether this replica was started from a checkpoint.

    >>> restored()
    False
    """
    return os.path.exists(f"{FOLDER}/restored")


# --- ready ---


def ready() -> None:
    """Says that this process is warm: once in each worker, where there are several. Calling it again does no harm.

    It makes the conditions `workers(n)` (counting processes), `notify()` and `file("/run/thaw/ready")` hold. A worker that has died
    since counts no more.

    >>> def post_worker_init(worker):      # gunicorn.conf.py
    ...     load_model()
    ...     thaw.ready()
    """
    if not inside():
        return
    workers = f"{FOLDER}/workers"
    os.makedirs(workers, exist_ok=True)
    if os.stat(workers).st_uid == os.geteuid():
        os.chmod(workers, 0o1777)  # workers may be of several users, and umask is the program's
    lock = os.open(workers, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # a lock file would be one user's
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for entry in os.listdir(workers):
            if entry.isdigit() and not os.path.exists(f"/proc/{entry}"):
                _remove(f"{workers}/{entry}")
        _touch(f"{workers}/{os.getpid()}")
    finally:
        os.close(lock)
    _touch(f"{FOLDER}/ready")
    # A datagram cannot be taken back when its worker dies, so it is not sent where workers are counted.
    address = os.environ.get("NOTIFY_SOCKET")
    if address and os.environ.get("THAW_CHECKPOINT_CONDITION") != "workers":
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
            try:
                out.sendto(b"READY=1", address)
            except OSError as error:
                print(f"thaw: READY=1 could not be sent to {address}: {error}", file=sys.stderr, flush=True)


def _touch(path: str) -> None:
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644))
    except PermissionError:
        if not os.path.exists(path):  # another user's worker has made it
            raise


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass  # another worker did, or it is another user's


# --- waiting ---


class _Watch:
    """Waits for changes in the folder, by inotify. A wait also ends when the process was restored meanwhile: the kernel breaks off
    the call, and ctypes, unlike select, does not begin it again."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd = self._libc.inotify_init1(_IN_CLOEXEC | _IN_NONBLOCK)
        if self.fd >= 0:
            self._libc.inotify_add_watch(self.fd, os.fsencode(FOLDER), _IN_CREATE | _IN_MOVED_TO | _IN_CLOSE_WRITE)

    def wait(self, seconds: float) -> None:
        entry = ctypes.create_string_buffer(struct.pack("ihh", self.fd, select.POLLIN, 0))
        if self._libc.poll(entry, ctypes.c_ulong(1), ctypes.c_int(max(0, int(seconds * 1000)))) > 0:
            try:
                os.read(self.fd, 65536)
            except OSError:
                pass

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def wait_for_restore(timeout: Optional[float] = None) -> bool:
    """Waits until the start of this replica is over. True: this process runs restored from a checkpoint. False: it is the one that
    was started cold, and goes on: the checkpoint was made, or failed, or the condition did not hold in time, or none is wanted.

    Whatever happens, it returns; with a timeout after so many seconds at the latest. Functions given to on_restore have run when it
    returns True. gunicorn does not take a worker that waits here for one that hangs.

    >>> ready()
    >>> if wait_for_restore():
    ...     reconnect_to_database()
    """
    if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or timeout < 0):
        raise InvalidError("use timeout", timeout, "it is no number of seconds", "give one such as 30, or None to wait for as long as it takes")
    if not inside() or (not checkpoint_enabled() and not restored()):
        return False
    end = None if timeout is None else time.monotonic() + timeout
    watch = _Watch()
    try:
        while True:
            if restored():
                _run_callbacks()
                return True
            left = _LOOK_S if end is None else min(_LOOK_S, end - time.monotonic())
            if os.path.exists(f"{FOLDER}/started.json") or left <= 0:
                return False
            watch.wait(left)
            _beat_for_gunicorn()
    finally:
        watch.close()


def _beat_for_gunicorn() -> None:
    """gunicorn's arbiter kills a worker whose heartbeat file is older than the worker time-out, and a waiting one cannot beat."""
    if "gunicorn" not in sys.modules:
        return
    now = time.monotonic()  # later versions read the modification time, on this clock; earlier ones the change time
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
            if target.rpartition("/")[2].startswith("wgunicorn-") and target.endswith(" (deleted)"):
                os.utime(int(name), (now, now))
        except OSError:
            pass  # closed meanwhile


# --- on_restore ---

_callbacks: List[List[Any]] = []  # a function, and the generation that it was called in
_lock = threading.RLock()
_watcher: Optional[threading.Thread] = None


def on_restore(function: _Function) -> _Function:
    """A decorator: the function, without arguments, is called in this process after each restore, on a thread of its own.

    For what must be different in each replica: random seeds, connections, leases. Every process that registered it calls it, workers
    forked later too. An exception is printed, and the others are called all the same.

    >>> @on_restore
    ... def reseed():
    ...     random.seed()
    """
    if not callable(function):
        raise InvalidError("use on_restore", function, "it cannot be called", "put @on_restore above a function without arguments")
    from . import values

    if values.required_arguments(function) > 0:
        raise InvalidError("use on_restore", function, "it needs arguments, and nobody has any for it", "put @on_restore above a function without arguments")
    if not inside():
        return function
    with _lock:
        _callbacks.append([function, identity().generation])
        _start_watcher()
    return function


def _start_watcher() -> None:
    global _watcher
    if _watcher is None or not _watcher.is_alive():
        _watcher = threading.Thread(target=_watch_for_restores, name="thaw-on-restore", daemon=True)
        _watcher.start()


def _watch_for_restores() -> None:
    watch = _Watch()
    while True:
        if restored():
            _run_callbacks()
        watch.wait(_LOOK_S)


def _run_callbacks() -> None:
    with _lock:
        try:
            generation = identity().generation
        except (OSError, ValueError, ThawError):
            return  # in the middle of its replacement: we are called again
        for entry in list(_callbacks):
            function, called_in = entry
            if called_in == generation:
                continue
            entry[1] = generation
            try:
                function()
            except (Exception, SystemExit):  # noqa: BLE001: the next one may matter more
                print(f"thaw: on_restore function {getattr(function, '__qualname__', repr(function))} failed", file=sys.stderr)
                traceback.print_exc()
                sys.stderr.flush()


def _after_fork() -> None:
    """A forked worker has the functions, but no thread, and a lock that somebody may have held."""
    global _lock, _watcher
    _lock, _watcher = threading.RLock(), None
    if _callbacks:
        _start_watcher()


os.register_at_fork(after_in_child=_after_fork)
