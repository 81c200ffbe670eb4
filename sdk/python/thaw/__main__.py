"""`python3 -m thaw deploy app.py:pod`: what the program `thaw` runs for pods that are written in Python."""

from __future__ import annotations

import argparse
import contextlib
import copy
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from typing import Any, Dict, Iterable, List, Optional, Sequence, Set, Tuple

from . import callables, tree
from .client import Client
from .errors import InvalidError, ThawError, UnreachableError
from .pod import Pod, Replica, print_progress

_EXIT_CODES = {"invalid": 2, "not_found": 4, "conflict": 5, "timeout": 6}
_INTERRUPTED = 130
_IN_CLOEXEC, _IN_NONBLOCK = 0o2000000, 0o4000
_CHANGES = 0x2 | 0x8 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400  # MODIFY CLOSE_WRITE MOVED_FROM MOVED_TO CREATE DELETE DELETE_SELF
_SETTLE_S = 0.2  # an editor's save is several changes


def load_pod(target: str, client: Optional[Client]) -> Tuple[Pod, str]:
    """The pod of FILE.py:NAME, and the folder of the file."""
    file, _, name = target.rpartition(":")
    if not file.endswith(".py") or not name.isidentifier():
        raise InvalidError("load", target, "it is not FILE.py:NAME", "name the file and the pod in it, such as app.py:pod")
    if not os.path.isfile(file):
        raise InvalidError("load", target, f"there is no file {file}", "correct the path")
    folder, module = os.path.dirname(os.path.abspath(file)), os.path.basename(file)[:-3]
    if not module.isidentifier():
        raise InvalidError("load", target, f"'{module}' is no name of a module, so that the container could not import it", "rename the file with letters, digits and _ only")
    os.chdir(folder)  # relative paths in it are relative to it, wherever it is deployed from
    found = callables.load(f"{module}:{name}", folder)
    if not isinstance(found, Pod):
        raise InvalidError("load", target, f"it is no pod but {type(found).__name__}", f"assign a Pod: {name} = Pod(...)")
    if client is not None:
        found._client = client
    return found, folder


def _deploy(options: argparse.Namespace, client: Optional[Client]) -> int:
    pod, _ = load_pod(options.target, client)
    if options.tell:
        with open(options.tell, "w", encoding="utf-8") as file:
            json.dump({"name": pod.name, "was_there": pod._get() is not None, "sources": pod.image.sources()}, file)
    if options.dry_run:
        print(json.dumps(pod.client.post("/v1/pods?dry_run=true", pod.spec(_progress(options)))["spec"], indent=2))
        return 0
    deployment = pod.deploy(wait=not options.no_wait, timeout=options.timeout, progress=_progress(options))
    for text in deployment.warnings:
        print(f"warning: {text}", file=sys.stderr)
    if options.json:
        print(json.dumps(pod.client.get(f"/v1/pods/{pod.name}"), indent=2))
    elif options.quiet:
        print(pod.name)
    else:
        print("\n".join(deployment.urls), end="\n" if deployment.urls else "")
    return 0


def _progress(options: argparse.Namespace) -> Any:
    return None if options.quiet or not (options.verbose or sys.stderr.isatty()) else print_progress


# --- serve ---


class Changes:
    """Waits until something in folders or files changes; what is ignored does not count."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.inotify_init1(_IN_CLOEXEC | _IN_NONBLOCK)
        if self._fd < 0:
            raise ThawError("exhausted", "watch", "the code folder", os.strerror(ctypes.get_errno()), "raise fs.inotify.max_user_instances")
        self._paths = set(paths)
        self._facts = self._look()

    def watch(self, paths: Iterable[str]) -> None:
        """These, too, from now on."""
        if not self._paths.issuperset(paths):
            self._paths.update(paths)
            self._facts = self._look()

    def _look(self) -> Any:
        """What counts now; every folder on the way is watched."""
        found: List[Any] = []
        folders: Set[str] = set()
        for path in sorted(self._paths):
            if not os.path.isdir(path):
                folders.add(os.path.dirname(path))
                with contextlib.suppress(OSError):  # it is not there, or gone again
                    found.append(tree.file_digest(path))
                continue
            folders.add(path)
            for entry in tree.walk(path, lenient=True):  # what cannot be added is the deploy's to refuse
                if os.path.isdir(entry.full) and not os.path.islink(entry.full):
                    folders.add(entry.full)
                with contextlib.suppress(OSError):  # gone again: another event says so
                    found.append(tree.entry_facts(entry))
        for folder in folders:
            self._libc.inotify_add_watch(self._fd, os.fsencode(folder), _CHANGES)
        return found

    def wait(self) -> None:
        while True:
            select.select([self._fd], [], [])
            while select.select([self._fd], [], [], _SETTLE_S)[0]:
                os.read(self._fd, 65536)
            facts = self._look()
            if facts != self._facts:
                self._facts = facts
                return


def _serve(options: argparse.Namespace, client: Optional[Client]) -> int:
    """Deploys in a process of its own each time, which imports the code afresh; its mistakes do not end this one."""
    pod, folder = load_pod(options.target, client)
    client = pod.client
    # Before the first deploy: what is saved while that goes on is not missed.
    changes = Changes({folder, *pod.image.sources()})
    served: Dict[str, bool] = {}  # the pod's name, and those that it had before; whether they were there before this
    try:
        with tempfile.TemporaryDirectory() as told:
            name = pod.name
            while True:
                name, deployed = _deploy_again(options, os.path.join(told, "told"), name, served, changes)
                for other in [other for other in served if other != name and deployed]:
                    _give_up(pod, other, served.pop(other))
                with _Logs(client, name):
                    changes.wait()
                print_progress("the code changed")
    except KeyboardInterrupt:
        for name, was_there in served.items():
            _give_up(pod, name, was_there)
        return _INTERRUPTED


def _give_up(pod: Pod, name: str, was_there: bool) -> None:
    """Leaves a pod as it was found, or not at all."""
    pod = copy.copy(pod)
    pod.name = name
    print_progress(f"stopping {name}" if was_there else f"removing {name}")
    try:
        if was_there:
            pod.stop()
        else:
            pod.remove()
    except ThawError as error:
        if error.code != "not_found":  # it was never deployed, or somebody else removed it
            print(f"thaw: {_text(error)}", file=sys.stderr)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _deploy_again(options: argparse.Namespace, told: str, name: str, served: Dict[str, bool], changes: Changes) -> Tuple[str, bool]:
    """What the file's pod is called now (`name` was its name so far), and whether it was deployed."""
    command = [sys.executable, "-m", "thaw", *(["--host", options.host] if options.host else []), "deploy", options.file, "--verbose", "--timeout", str(options.timeout), "--tell", told]
    with contextlib.suppress(FileNotFoundError):
        os.unlink(told)
    try:
        with subprocess.Popen(command, start_new_session=True) as process:
            try:
                process.wait()
            except KeyboardInterrupt:
                process.send_signal(signal.SIGINT)  # it puts back what it has done
                process.wait()
                raise
    finally:
        with contextlib.suppress(OSError, ValueError):
            with open(told, encoding="utf-8") as file:
                facts = json.load(file)
            name = facts["name"]
            served.setdefault(name, facts["was_there"])
            changes.watch(facts["sources"])
    return name, process.returncode == 0


class _Logs:
    """Shows what the replicas of a pod write, newest first found, while its block runs."""

    def __init__(self, client: Client, pod: str) -> None:
        self._client, self._pod, self._over = client, pod, threading.Event()

    def __enter__(self) -> None:
        with contextlib.suppress(ThawError):
            for row in self._client.get("/v1/replicas", pod=self._pod):
                if not row["proof"]:
                    threading.Thread(target=self._show, args=(Replica(self._client, row),), daemon=True).start()

    def __exit__(self, *_: Any) -> None:
        self._over.set()

    def _show(self, replica: Replica) -> None:
        with contextlib.suppress(ThawError, OSError, ValueError):
            for line in replica.logs(follow=True):
                if self._over.is_set():
                    return
                print(f"{replica.id[:6]} | {line.text}", file=sys.stderr if line.stream == "stderr" else sys.stdout, flush=True)


# --- init ---

_APP = '''"""A pod that starts warm. `thaw deploy app.py:pod` deploys it, `thaw serve app.py:pod` deploys it again whenever this folder changes."""

import os
import urllib.request

from thaw import Image, Pod


def warm() -> bool:
    """Called in the container, in a process of its own, until it returns True: then Thaw makes the checkpoint."""
    return urllib.request.urlopen("http://127.0.0.1:8000/health").status == 200


pod = Pod(
    name=NAME,
    image=Image.debian("bookworm").apt("python3").add("."),
    entrypoint=["python3", "server.py"],
    ports=[8000],
    memory="512MiB",
    min_replicas=1,
    max_replicas=4,
    checkpoint_condition=warm,
)
'''
_SERVER = '''"""The program: slow to start, quick to restore."""

import http.server
import json
import random
import time

import thaw

print("loading the model ...", flush=True)
time.sleep(5)
MODEL = {"loaded": time.strftime("%H:%M:%S")}


@thaw.on_restore
def reseed():
    """Each replica that starts from the checkpoint gets random numbers of its own."""
    random.seed()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({**MODEL, "replica": thaw.identity().replica, "started_from": thaw.identity().started_from, "random": random.random()})
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body.encode() + b"\\n")


print("ready", flush=True)
http.server.ThreadingHTTPServer(("", 8000), Handler).serve_forever()
'''
_IGNORE = "# What does not belong into the container; the patterns are those of .gitignore.\n.venv/\n*.log\n"


def _init(options: argparse.Namespace, _: Optional[Client]) -> int:
    folder = options.folder
    name = "".join(c if c.isalnum() else "-" for c in os.path.basename(os.path.abspath(folder)).lower() if c.isascii()).strip("-")[:63].strip("-") or "example"
    files = {"app.py": _APP.replace("NAME", json.dumps(name)), "server.py": _SERVER, ".thawignore": _IGNORE}
    there = [file for file in files if os.path.lexists(os.path.join(folder, file))]
    if there:
        raise ThawError("conflict", "write", os.path.join(folder, there[0]), "it is there already", "choose another folder: thaw init FOLDER")
    os.makedirs(folder, exist_ok=True)
    for file, text in files.items():
        with open(os.path.join(folder, file), "x", encoding="utf-8") as out:
            out.write(text)
    place = "" if os.path.normpath(folder) == "." else os.path.join(os.path.normpath(folder), "")
    print(f"wrote {place}app.py, {place}server.py and {place}.thawignore\nnext: thaw deploy {place}app.py:pod")
    return 0


# --- all ---


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="thaw", description="Pods that are written in Python.")
    top.add_argument("--host", help="the daemon: unix:PATH or tls:HOST:PORT")
    verbs = top.add_subparsers(dest="verb", required=True)
    deploy = verbs.add_parser("deploy", help="create the pod of FILE.py:NAME, or change it")
    deploy.add_argument("--tell", help=argparse.SUPPRESS)  # a file where `serve` reads what was loaded
    deploy.add_argument("--no-wait", action="store_true", help="return when the pod is written down")
    deploy.add_argument("--dry-run", action="store_true", help="build and check only, and print the specification")
    deploy.add_argument("--json", action="store_true", help="print the pod as JSON")
    deploy.add_argument("-q", "--quiet", action="store_true", help="print the name only")
    deploy.set_defaults(run=_deploy)
    serve = verbs.add_parser("serve", help="deploy the pod of FILE.py:NAME, and again whenever its code changes")
    serve.set_defaults(run=_serve)
    for verb in (deploy, serve):
        verb.add_argument("target", metavar="FILE.py:NAME")
        verb.add_argument("--timeout", type=float, default=900, help="longest wait in seconds (900)")
        verb.add_argument("-v", "--verbose", action="store_true", help="show progress though stderr is no terminal")
    init = verbs.add_parser("init", help="write an example to begin with")
    init.add_argument("folder", nargs="?", default=".")
    init.set_defaults(run=_init)
    return top


def main(arguments: Optional[Sequence[str]] = None) -> int:
    options = parser().parse_args(arguments)
    if options.verb in ("deploy", "serve"):
        file, colon, name = options.target.rpartition(":")
        options.file = os.path.abspath(file) + colon + name
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup leaves it
            signal.signal(number, _interrupt)
    try:
        return int(options.run(options, Client(options.host) if options.host else None))
    except UnreachableError as error:
        code = 3
        text = _text(error)
    except ThawError as error:
        code = _EXIT_CODES.get(error.code, 1)
        text = _text(error)
    except KeyboardInterrupt:
        return _INTERRUPTED
    print(f"thaw: {text}", file=sys.stderr)
    return code


def _text(error: BaseException) -> str:
    return "\n".join([str(error), *getattr(error, "__notes__", [])])


if __name__ == "__main__":
    sys.exit(main())
