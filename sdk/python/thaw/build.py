"""Builds images: each step becomes a layer below $THAW_CACHE/images (/var/cache/thaw/images), found again by its key.

A layer is a whole root file system whose unchanged files are hard links to those of the layer below: making one costs no space and
little time, and nothing has to be put together before it is used. A layer is built beside its place and renamed into it, so that one that
is there is whole. Files of layers are never changed.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import shlex
import shutil
import stat
import subprocess
import tempfile
import threading
import time
from typing import Any, BinaryIO, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from . import tree
from .client import Client
from .errors import InvalidError, ThawError
from .image import Step
from .undo import Undo

Progress = Callable[[str], None]
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_DEFAULT_WORKDIR = "/app"
_LISTS_VALID_S = 86400
_KEPT_CODE_LAYERS = 8  # with folders that were added, those that no pod uses
_KEPT_S = 30 * 86400  # other layers that nobody has used for so long go
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Built(NamedTuple):
    """What a pod needs to know of a built image."""

    source: Dict[str, str]  # {"rootfs": folder} or {"image": reference}
    env: Dict[str, str]
    workdir: Optional[str]
    command: Optional[List[str]]
    user: Optional[str]


class _State:
    """The image so far."""

    def __init__(self) -> None:
        self.key = ""
        self.rootfs = ""  # "": it is not on disk, `source` says what it is
        self.source: Dict[str, str] = {}
        self.env: Dict[str, str] = {}
        self.workdir: Optional[str] = None
        self.command: Optional[List[str]] = None
        self.user: Optional[str] = None
        self.code = False  # an added folder is in it

    def place(self) -> str:
        return self.workdir or _DEFAULT_WORKDIR


def cache_folder() -> str:
    return os.path.join(os.environ.get("THAW_CACHE") or "/var/cache/thaw", "images")


# --- what a deploy has made, for when it fails ---

_session = threading.local()


@contextlib.contextmanager
def session(undo: Undo) -> Iterator[None]:
    """Layers of added folders that are made in this block are removed when `undo` is called."""
    _session.undo = undo
    try:
        yield
    finally:
        _session.undo = None


# --- steps ---


def build(steps: Sequence[Step], progress: Progress) -> Built:
    """Builds what is missing of an image. Raises ThawError with the end of the output of what failed."""
    state = _State()
    for number, step in enumerate(steps):
        if step.kind == "env":
            state.env.update(step.arguments)
        elif step.kind == "workdir":
            state.workdir = step.arguments["0"]
        elif number == 0:
            needs_files = any(later.kind not in ("env", "workdir") for later in steps[1:])
            _BASES[step.kind](state, step, needs_files, progress)
        else:
            _STEPS[step.kind](state, step, progress)
    if state.workdir is None and any(step.kind == "add" and step.arguments["target"] is None for step in steps):
        state.workdir = state.place()
    source = {"rootfs": state.rootfs} if state.rootfs else state.source
    return Built(source, state.env, state.workdir, state.command, state.user)


def _key(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _layer(state: _State, key: str, what: str, progress: Progress, make: Callable[[str], None], code: bool = False) -> None:
    """Makes `key` the state's layer, built by make(folder) when it is not there: folder/rootfs must be there afterwards."""
    layers = os.path.join(cache_folder(), "layers")
    place = os.path.join(layers, key)
    state.key, state.rootfs, state.code = key, os.path.join(place, "rootfs"), state.code or code
    code = state.code  # each edit makes those above an added folder anew, too
    with contextlib.suppress(FileNotFoundError, PermissionError):
        os.utime(place)  # when it was last used
        return
    if os.geteuid() != 0:
        raise ThawError("denied", "build", what, "an image has files of other users, which only root can make", "run it as root, or give a finished image")
    os.makedirs(layers, mode=0o700, exist_ok=True)
    with lock(f"layer-{key}"):
        if os.path.isdir(place):  # built by another while this one waited
            return
        progress(f"building {what}")
        work = tempfile.mkdtemp(prefix=f".{key}-", dir=layers)
        try:
            make(work)
            with open(os.path.join(work, "layer.json"), "w", encoding="utf-8") as file:
                json.dump({"what": what, "code": code}, file)
            os.rename(work, place)
        except BaseException:
            # The error that is under way is the one to see; what cannot be removed stays with its dot, and nobody takes it for a layer.
            with contextlib.suppress(Exception):
                _remove_tree(work)
            raise
    undo = getattr(_session, "undo", None)
    if code and undo is not None:
        undo.add(lambda: _remove_unused(place))


@contextlib.contextmanager
def lock(name: str) -> Iterator[None]:
    """Held by one thread of all processes at a time; who is killed lets it go."""
    with _try_lock(name, 0) as _:
        yield


@contextlib.contextmanager
def _try_lock(name: str, flags: int = fcntl.LOCK_NB) -> Iterator[Optional[str]]:
    """The lock's file, or None when somebody else holds it. Who holds it may remove its file."""
    folder = os.path.join(cache_folder(), "locks")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    path = os.path.join(folder, name)
    while True:
        with open(path, "a", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | flags)
            except BlockingIOError:
                yield None
                return
            if not os.path.exists(path) or not os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                continue  # it was removed meanwhile
            yield path
            return


def _debian(state: _State, step: Step, needs_files: bool, progress: Progress) -> None:
    suite = step.arguments["0"]
    sources = _debian_sources(suite)

    def make(work: str) -> None:
        root, debs = os.path.join(work, "rootfs"), _debs()
        archives = '"$1"/var/cache/apt/archives'
        _tool("mmdebstrap", "mmdebstrap")
        _run([
            "mmdebstrap", "--mode=root", "--format=directory", "--variant=apt", "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
            "--skip=essential/unlink,download/empty,check/empty", '--aptopt=Acquire::Languages "none"', '--aptopt=APT::Sandbox::User "root"',
            "--dpkgopt=force-unsafe-io", f"--setup-hook=mkdir -p {archives}/partial", f"--setup-hook=cp -lf {shlex.quote(debs)}/*.deb {archives}/ 2>/dev/null || true",
            f"--customize-hook=cp -lnf {archives}/*.deb {shlex.quote(debs)}/", '--customize-hook=rm -f "$1"/etc/resolv.conf "$1"/etc/hostname',
            suite, root, "-",
        ], f"build Debian {suite}", progress, sources)  # fmt: skip
        for name in glob.glob(f"{root}/var/cache/apt/archives/*.deb") + glob.glob(f"{root}/var/lib/apt/lists/*_*"):
            os.unlink(name)

    _layer(state, _key("debian", suite, sources, 1), f"Debian {suite}", progress, make)


def _debian_sources(suite: str) -> str:
    """apt's lines for a suite, from the Debian mirrors that this machine uses itself; deb.debian.org where it has none."""
    main, security = "http://deb.debian.org/debian", "http://deb.debian.org/debian-security"
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        listed = subprocess.run(["apt-get", "indextargets", "--format", "$(LABEL)|$(REPO_URI)|$(COMPONENT)", "Created-By: Packages", "Origin: Debian"],
                                capture_output=True, text=True, timeout=60, check=False).stdout  # fmt: skip
        for line in listed.splitlines():
            label, _, rest = line.partition("|")
            uri, _, component = rest.partition("|")
            if component == "main" and label == "Debian":
                main = uri.rstrip("/")
            elif component == "main" and label == "Debian-Security":
                security = uri.rstrip("/")
    signed = f"deb [signed-by={_KEYRING}]"
    lines = [f"{signed} {main} {suite} main"]
    if suite not in ("sid", "unstable", "experimental"):
        lines += [f"{signed} {main} {suite}-updates main", f"{signed} {security} {suite}-security main"]
    return "\n".join(lines) + "\n"


def _debs() -> str:
    """Downloaded packages, shared with scripts/rootfs."""
    folder = os.path.join(os.path.dirname(cache_folder()), "debs")
    os.makedirs(folder, exist_ok=True)
    return folder


def _oci(state: _State, step: Step, needs_files: bool, progress: Progress) -> None:
    reference = _absolute_reference(step.arguments["0"], step.folder)
    _tool("skopeo", "skopeo")
    if not needs_files:
        state.source = {"image": reference}
        # The image's own variables are the daemon's to read, but this one gets a folder of ours beside it.
        config = json.loads(_output(["skopeo", "inspect", "--config", reference], f"look at {reference}")).get("config") or {}
        state.env.update(entry.split("=", 1) for entry in config.get("Env") or [] if entry.startswith("PYTHONPATH="))
        return
    _tool("umoci", "umoci")
    found = _output(["skopeo", "inspect", "--format", "{{.Digest}}", reference], f"look at {reference}").strip()
    _unpacked(state, _key("oci", found, 1), reference, progress, lambda layout: _run(["skopeo", "copy", reference, f"oci:{layout}:image"], f"fetch {reference}", progress))


def _unpacked(state: _State, key: str, what: str, progress: Progress, fetch: Callable[[str], None]) -> None:
    def make(work: str) -> None:
        layout, bundle = os.path.join(work, "layout"), os.path.join(work, "bundle")
        fetch(layout)
        config = json.loads(_output(["skopeo", "inspect", "--config", f"oci:{layout}:image"], f"read the configuration of {what}")).get("config") or {}
        _run(["umoci", "unpack", "--image", f"{layout}:image", bundle], f"unpack {what}", progress)
        os.rename(os.path.join(bundle, "rootfs"), os.path.join(work, "rootfs"))
        shutil.rmtree(bundle)
        shutil.rmtree(layout)
        with open(os.path.join(work, "config.json"), "w", encoding="utf-8") as file:
            json.dump(config, file)

    _layer(state, key, what, progress, make)
    with open(os.path.join(os.path.dirname(state.rootfs), "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    state.env.update(entry.split("=", 1) for entry in config.get("Env") or [] if "=" in entry)
    state.workdir = config.get("WorkingDir") or None
    state.command = [*(config.get("Entrypoint") or []), *(config.get("Cmd") or [])] or None
    state.user = config.get("User") or None


def _absolute_reference(reference: str, folder: str) -> str:
    kind, _, path = reference.partition(":")
    if kind == "docker":
        return reference
    return f"{kind}:{os.path.normpath(os.path.join(folder, path))}"


def _rootfs(state: _State, step: Step, needs_files: bool, progress: Progress) -> None:
    folder = os.path.realpath(os.path.join(step.folder, step.arguments["0"]))
    if not os.path.isdir(folder):
        raise InvalidError("use rootfs", folder, "it is not a folder", "give the folder of a root file system")
    if not needs_files:
        state.rootfs = folder
        return
    facts = _names_and_times(folder)
    linked = step.arguments["link"] and os.stat(folder).st_dev == os.stat(_existing(cache_folder())).st_dev

    def make(work: str) -> None:
        _run(["cp", "-al" if linked else "-a", "--reflink=auto" if not linked else "--no-target-directory", folder, os.path.join(work, "rootfs")], f"copy {folder}", progress)
        if _names_and_times(folder) != facts:
            raise _changed("use rootfs", folder)

    _layer(state, _key("rootfs", facts, linked, 1), f"a copy of {folder}", progress, make)


def _names_and_times(folder: str) -> str:
    """What a root file system is, as the daemon knows it: by names, sizes and times."""
    facts = hashlib.sha256(folder.encode())
    for where, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files) + folders:
            info = os.lstat(os.path.join(where, name))
            times = 0 if stat.S_ISDIR(info.st_mode) else (info.st_size, info.st_mtime_ns)
            facts.update(f"{where}/{name}\0{info.st_mode} {info.st_uid} {info.st_gid} {times}\0".encode(errors="surrogateescape"))
    return facts.hexdigest()


def _changed(action: str, path: str) -> ThawError:
    """A layer is found again by what it was made of, so it must be made of just that."""
    return ThawError("conflict", action, path, "it was changed while it was read", "try again; what changes all the time belongs into .thawignore")


def _copy(source: str, to: BinaryIO, digest: str) -> None:
    """Copies a file, which must still have this digest."""
    with open(source, "rb") as file:
        if tree.digest_of(file, to) != digest:
            raise _changed("add", source)


def _existing(path: str) -> str:
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path


def _dockerfile(state: _State, step: Step, needs_files: bool, progress: Progress) -> None:
    path = os.path.join(step.folder, step.arguments["0"])
    context = os.path.join(step.folder, step.arguments["context"] or os.path.dirname(step.arguments["0"]))
    if not os.path.isfile(path):
        raise InvalidError("build", path, "there is no such Dockerfile", "correct the path")
    tool = shutil.which("buildah") or shutil.which("podman") or ""
    if not tool:
        raise ThawError("unsupported", "build", path, "neither buildah nor podman is installed", "apt-get install buildah")
    # All of the context: what a .dockerignore lets through is the tool's to say, and its patterns are not git's.
    def look() -> List[Any]:
        return [tree.file_digest(file) for file in (path, f"{path}.dockerignore") if os.path.isfile(file)] + tree.whole(context)

    facts = look()
    arguments = [f"--build-arg={name}={value}" for name, value in sorted(step.arguments["args"].items())]

    def fetch(layout: str) -> None:
        name = f"localhost/thaw-build-{_key(layout)}"
        try:
            _run([tool, "build", "--isolation=chroot", "--network=host", *arguments, "-f", path, "-t", name, context], f"build {path}", progress)
            if look() != facts:
                raise _changed("build", path)
            _run([tool, "push", name, f"oci:{layout}:image"], f"export {path}", progress)
        finally:
            subprocess.run([tool, "rmi", "-f", name], capture_output=True, timeout=120, check=False)

    _unpacked(state, _key("dockerfile", facts, arguments, 2), path, progress, fetch)


def _apt(state: _State, step: Step, progress: Progress) -> None:
    packages = step.arguments["*"]

    def make(work: str) -> None:
        if not os.path.exists(os.path.join(state_below, "usr/bin/apt-get")):
            raise InvalidError("install", " ".join(packages), "the image has no apt-get", "begin with Image.debian(...), or use .run(...) with the image's own package manager")
        archives, debs = os.path.join(work, "archives"), _debs()
        os.makedirs(os.path.join(archives, "partial"))
        for deb in glob.glob(f"{debs}/*.deb"):
            os.link(deb, os.path.join(archives, os.path.basename(deb)))
        sources = "".join(open(name, encoding="utf-8").read() for name in sorted(glob.glob(f"{state_below}/etc/apt/sources.list*") + glob.glob(f"{state_below}/etc/apt/sources.list.d/*")) if os.path.isfile(name))
        lists = os.path.join(cache_folder(), "lists", _key(sources))
        os.makedirs(os.path.join(lists, "partial"), exist_ok=True)
        install = f"apt-get install -qy --no-install-recommends {shlex.join(packages)}"
        script = (f"export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8; printf '#!/bin/sh\\nexit 101\\n' >/usr/sbin/policy-rc.d; chmod +x /usr/sbin/policy-rc.d; "
                  f"options='-o APT::Sandbox::User=root -o Acquire::Languages=none -o DPkg::Options::=--force-unsafe-io'; update() {{ apt-get $options -q update && touch /var/lib/apt/lists/.fetched; }}; "
                  f"install() {{ {install.replace('apt-get', 'apt-get $options', 1)}; }}; "
                  f"if [ -z \"$(find /var/lib/apt/lists/.fetched -mmin -{_LISTS_VALID_S // 60} 2>/dev/null)\" ]; then update && install; else install || {{ update && install; }}; fi; "
                  f"status=$?; rm -f /usr/sbin/policy-rc.d; exit $status")  # fmt: skip
        with lock(f"lists-{os.path.basename(lists)}"):
            _inside(state_below, work, script, {}, "/", f"install {' '.join(packages)}", progress, {archives: "/var/cache/apt/archives", lists: "/var/lib/apt/lists"})
        for deb in glob.glob(f"{archives}/*.deb"):
            with contextlib.suppress(FileExistsError):
                os.link(deb, os.path.join(debs, os.path.basename(deb)))
        _remove_tree(archives)

    state_below = state.rootfs
    _layer(state, _key(state.key, "apt", packages), f"apt {' '.join(packages)}", progress, make)


def _pip(state: _State, step: Step, progress: Progress) -> None:
    packages, requirements, index = (step.arguments[name] for name in ("*", "requirements", "index_url"))
    wheels = {package: os.path.join(step.folder, package) for package in packages if package.endswith(".whl")}
    files = [*wheels.values(), *([os.path.join(step.folder, requirements)] if requirements else [])]
    for file in files:
        if not os.path.isfile(file):
            raise InvalidError("install", file, "there is no such file", "build the wheel first, or correct the path")
    below, env = state.rootfs, dict(state.env)
    digests = [tree.file_digest(file) for file in files]

    def make(work: str) -> None:
        files_folder = os.path.join(work, "files")
        os.mkdir(files_folder)
        for file, digest in zip(files, digests):
            with open(os.path.join(files_folder, os.path.basename(file)), "wb") as out:
                _copy(file, out, digest)
        binds = {files_folder: "/run/thaw-pip/files"}
        if not any(glob.glob(f"{below}/{pattern}/pip/__main__.py") for pattern in ("usr/lib/python3/dist-packages", "usr/local/lib/python3*/*-packages", "usr/lib/python3*/site-packages")):
            binds[os.path.dirname(_host_pip())] = "/run/thaw-pip/lib"
        words = [f"/run/thaw-pip/files/{os.path.basename(wheels[package])}" if package in wheels else package for package in packages]
        words += ["-r", f"/run/thaw-pip/files/{os.path.basename(requirements)}"] if requirements else []
        words += ["--index-url", index] if index else []
        # Without an index where nothing but wheels is wanted: a wheel's own requirements must then be there, or be given, too.
        words += ["--no-index", "--find-links", "/run/thaw-pip/files"] if wheels and len(wheels) == len(packages) and not requirements and not index else []
        command = f"python3 -m pip install --no-cache-dir --no-input --disable-pip-version-check --root-user-action=ignore --no-compile {shlex.join(words)}"
        _inside(below, work, command, {**env, "PYTHONPATH": "/run/thaw-pip/lib", "PIP_BREAK_SYSTEM_PACKAGES": "1", "PYTHONDONTWRITEBYTECODE": "1"}, "/",
                f"install {' '.join(packages) or requirements}", progress, binds)  # fmt: skip
        _remove_tree(files_folder)

    key = _key(state.key, "pip", [package for package in packages if package not in wheels], digests, index)
    _layer(state, key, f"pip {' '.join(packages) or requirements}", progress, make)


def _host_pip() -> str:
    """pip is pure Python: an image without one uses this machine's."""
    import importlib.util

    found = importlib.util.find_spec("pip")
    if found and found.origin:
        return os.path.dirname(found.origin)
    for path in sorted(glob.glob("/usr/lib/python3/dist-packages/pip")):
        return path
    raise ThawError("unsupported", "install with", "pip", "neither the image nor this machine has it", 'add .apt("python3-pip") before')


def _step_run(state: _State, step: Step, progress: Progress) -> None:
    command, below, env, place = step.arguments["0"], state.rootfs, dict(state.env), state.workdir or "/"

    def make(work: str) -> None:
        _inside(below, work, command, env, place, f"run `{command}`", progress, {})

    _layer(state, _key(state.key, "run", command, sorted(env.items()), place), f"run {command}", progress, make)


def _add(state: _State, step: Step, progress: Progress) -> None:
    source = os.path.normpath(os.path.join(step.folder, step.arguments["0"]))
    target = step.arguments["target"] or state.place()
    if os.path.isdir(source):
        entries = list(tree.walk(source))
        if not entries:
            raise InvalidError("add", source, "nothing is in it that is not ignored", "look at its .gitignore and .thawignore")
    elif os.path.isfile(source):
        # Into a folder under its own name, or, with a target, there.
        name = os.path.basename(target) if step.arguments["target"] else os.path.basename(source)
        target = os.path.dirname(target) if step.arguments["target"] else target
        entries = [tree.Entry(name, source, os.stat(source))]
    else:
        raise InvalidError("add", source, "there is no such file or folder", "correct the path; it is relative to the folder of the program that says .add()")
    facts = [tree.entry_facts(entry) for entry in entries]
    below = state.rootfs

    def make(work: str) -> None:
        root = os.path.join(work, "rootfs")
        _link_tree(below, root)
        with lock("content"):
            for entry, fact in zip(entries, facts):
                _place(root, os.path.join(target, entry.path), entry, fact)
        # The folders' times are those of the files in them: of the content, not of this moment.
        for entry in reversed(entries):
            _set_time(_within(root, os.path.join(target, entry.path)), 0)
        _set_time(_within(root, target), 0)

    _layer(state, _key(state.key, "add", target, facts), f"{source} at {target}", progress, make, code=True)


def _place(root: str, path: str, entry: tree.Entry, fact: List[str]) -> None:
    folder = _within(root, os.path.dirname(path), make=True)
    place = os.path.join(folder, os.path.basename(path))
    if fact[1] == "folder":
        if os.path.islink(place) or not os.path.isdir(place):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(place)
            os.mkdir(place, 0o755)
        return
    if os.path.isdir(place) and not os.path.islink(place):
        raise InvalidError("add", entry.full, f"the image has a folder at {path}", "choose another target")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(place)
    if fact[1] == "link":
        os.symlink(fact[2], place)
        _set_time(place, 0)
    else:
        os.link(_content(entry, fact), place)


def _content(entry: tree.Entry, fact: List[str]) -> str:
    """The file in the store of contents that all layers link to: an edited folder costs its edited files."""
    store = os.path.join(cache_folder(), "content", fact[2][:2])
    place = os.path.join(store, f"{fact[2]}-{fact[1]}")
    if not os.path.exists(place):
        os.makedirs(store, exist_ok=True)
        handle, work = tempfile.mkstemp(dir=store)
        try:
            with open(handle, "wb") as file:
                _copy(entry.full, file, fact[2])
            os.chmod(work, 0o755 if fact[1] == "program" else 0o644)
            # The daemon knows a root file system by its sizes and times: the time is of the content, too.
            _set_time(work, int(fact[2][:12], 16))
            os.rename(work, place)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(work)
            raise
    return place


def _set_time(path: str, salt: int) -> None:
    """A time in 2001 that is always the same for the same content."""
    seconds, nanoseconds = 1_000_000_000 + salt % (1 << 23), (salt >> 23) % 1_000_000_000
    if os.path.lexists(path):
        os.utime(path, ns=(seconds * 1_000_000_000 + nanoseconds,) * 2, follow_symlinks=False)


def _within(root: str, path: str, make: bool = False) -> str:
    """Where a path of the image is on this machine; links on its way stay within the image."""
    place, parts, hops = root, [part for part in path.split("/") if part], 0
    while parts:
        part = parts.pop(0)
        if part in ("", "."):
            continue
        if part == "..":
            place = os.path.dirname(place) if place != root else root
            continue
        following = os.path.join(place, part)
        if os.path.islink(following):
            hops += 1
            if hops > 40:
                raise InvalidError("add", path, "there are too many links on its way", "choose another target")
            text = os.readlink(following)
            place = root if text.startswith("/") else place
            parts = [*text.split("/"), *parts]
            continue
        if make and not os.path.exists(following):
            os.mkdir(following, 0o755)
        place = following
    return place


_BASES: Mapping[str, Callable[[_State, Step, bool, Progress], None]] = {"debian": _debian, "from_oci": _oci, "from_rootfs": _rootfs, "from_dockerfile": _dockerfile}
_STEPS: Mapping[str, Callable[[_State, Step, Progress], None]] = {"apt": _apt, "pip": _pip, "run": _step_run, "add": _add}


# --- running in an image ---

_ENTER = r"""
set -e
mount --make-rprivate /
mount -t overlay overlay -o "lowerdir=$BELOW,upperdir=$WORK/upper,workdir=$WORK/overlay,redirect_dir=off,metacopy=off" "$WORK/merged"
cd "$WORK/merged"
mkdir -p proc sys dev run tmp etc
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t tmpfs -o mode=755 tmpfs dev
for name in null zero full random urandom tty; do touch dev/$name; mount --bind /dev/$name dev/$name; done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd; ln -s /proc/self/fd/0 dev/stdin; ln -s /proc/self/fd/1 dev/stdout; ln -s /proc/self/fd/2 dev/stderr
mount -t tmpfs -o mode=755 tmpfs run
if [ ! -L etc/resolv.conf ]; then [ -e etc/resolv.conf ] || : >etc/resolv.conf; mount --bind /etc/resolv.conf etc/resolv.conf; fi
while [ $# -gt 1 ] && [ "$1" != -- ]; do mkdir -p "./$2"; mount --bind "$1" "./$2"; shift 2; done
shift
exec chroot . "$@"
"""


def _inside(below: str, work: str, script: str, env: Mapping[str, str], place: str, what: str, progress: Progress, binds: Mapping[str, str]) -> None:
    """Runs a script in the image `below`, and makes work/rootfs of what it left."""
    for name in ("upper", "overlay", "merged"):
        os.mkdir(os.path.join(work, name))
    variables = {"PATH": _PATH, "HOME": "/root", "LC_ALL": "C.UTF-8", **env}
    pairs = [word for pair in binds.items() for word in pair]
    # A builder that is killed takes it along.
    command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", _ENTER, "sh", *pairs, "--", "/usr/bin/env", "-i",
               *(f"{name}={value}" for name, value in variables.items()), "/bin/sh", "-ec", 'mkdir -p "$0" && cd "$0" && exec /bin/sh -c "$1"', place, script]  # fmt: skip
    _run(command, what, progress, env={**os.environ, "BELOW": below, "WORK": work})
    root = os.path.join(work, "rootfs")
    _link_tree(below, root)
    _apply(os.path.join(work, "upper"), root)
    for name in ("upper", "overlay", "merged"):
        _remove_tree(os.path.join(work, name))


def _link_tree(below: str, to: str) -> None:
    _run(["cp", "-al", "--no-target-directory", below, to], f"link {below}", lambda _: None)


def _apply(upper: str, root: str) -> None:
    """What an overlay's upper folder holds, done to a tree of links. New files are linked: the upper is thrown away."""
    for entry in os.scandir(upper):
        place, info = os.path.join(root, entry.name), entry.stat(follow_symlinks=False)
        there = os.path.lexists(place)
        is_folder = stat.S_ISDIR(info.st_mode)
        replaced = is_folder and "trusted.overlay.opaque" in os.listxattr(entry.path, follow_symlinks=False)
        if there and (replaced or not (is_folder and os.path.isdir(place) and not os.path.islink(place))):
            if os.path.isdir(place) and not os.path.islink(place):
                _remove_tree(place)
            else:
                os.unlink(place)
        if stat.S_ISCHR(info.st_mode) and info.st_rdev == 0:
            continue  # overlayfs's mark of what was removed
        if not is_folder:
            for name in os.listxattr(entry.path, follow_symlinks=False):
                if name.startswith("trusted.overlay."):
                    os.removexattr(entry.path, name, follow_symlinks=False)
            os.link(entry.path, place, follow_symlinks=False)
            continue
        if not os.path.isdir(place):
            os.mkdir(place)
        _apply(entry.path, place)
        os.chown(place, info.st_uid, info.st_gid)
        os.chmod(place, stat.S_IMODE(info.st_mode))
        for name in os.listxattr(entry.path):
            if not name.startswith("trusted.overlay."):
                os.setxattr(place, name, os.getxattr(entry.path, name))
        os.utime(place, ns=(info.st_atime_ns, info.st_mtime_ns))


def _run(command: Sequence[str], what: str, progress: Progress, input: str = "", env: Optional[Mapping[str, str]] = None) -> None:  # noqa: A002
    """Runs a program and tells its lines; what fails is told with the last of them."""
    lines: List[str] = []
    with subprocess.Popen(list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env) as process:
        assert process.stdin and process.stdout
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(input.encode())
                process.stdin.close()
            for raw in process.stdout:
                line = raw.decode(errors="replace").rstrip().rpartition("\r")[2]
                if line.strip():
                    progress("  " + line)
                    lines = [*lines[-39:], line]
            code = process.wait()
        except BaseException:
            process.kill()
            raise
    if code != 0:
        why = f"killed by signal {-code}" if code < 0 else f"it ended with exit code {code}"
        error = ThawError("unavailable", what, "", why + ("".join(f"\n    {line}" for line in lines[-15:]) if lines else ""))
        error.log = lines
        raise error


def _output(command: Sequence[str], what: str) -> str:
    done = subprocess.run(list(command), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        raise ThawError("unavailable", what, "", said[-1] if said else f"exit code {done.returncode}", "correct the reference")
    return done.stdout


def _tool(program: str, package: str) -> None:
    if not shutil.which(program):
        raise ThawError("unsupported", "run", program, "it is not installed", f"apt-get install {package}")


def _remove_tree(path: str) -> None:
    if os.path.lexists(path):
        subprocess.run(["rm", "-rf", "--one-file-system", path], capture_output=True, check=False)
        if os.path.lexists(path):
            raise ThawError("system", "remove", path, "something of it is still there", "remove it by hand")


# --- what is mounted into every pod: this package ---


def helpers_folder() -> str:
    """A copy of this package, in a folder that is never changed: containers import it from there."""
    package = os.path.dirname(os.path.abspath(__file__))
    names = sorted(name for name in os.listdir(package) if name.endswith(".py") or name == "py.typed")
    key = _key("helpers", [[name, tree.file_digest(os.path.join(package, name))] for name in names])
    place = os.path.join(cache_folder(), "helpers", key)
    with contextlib.suppress(OSError):
        os.utime(place)  # when it was last used
    if not os.path.isdir(place):
        os.makedirs(os.path.dirname(place), mode=0o755, exist_ok=True)
        work = tempfile.mkdtemp(prefix=".", dir=os.path.dirname(place))
        try:
            os.chmod(work, 0o755)
            os.mkdir(os.path.join(work, "thaw"), 0o755)
            for name in names:
                shutil.copyfile(os.path.join(package, name), os.path.join(work, "thaw", name))
                os.chmod(os.path.join(work, "thaw", name), 0o644)
            os.rename(work, place)
        except OSError:
            with contextlib.suppress(Exception):
                _remove_tree(work)
            if not os.path.isdir(place):  # otherwise another was quicker
                raise
    return place


# --- what is not used any more ---


def _remove_unused(place: str) -> None:
    if os.path.isdir(place):
        doomed = tempfile.mkdtemp(prefix=f".{os.path.basename(place)}-", dir=os.path.dirname(place))
        os.rename(place, os.path.join(doomed, "layer"))  # nobody takes a half removed one for whole
        _remove_tree(doomed)
    _prune_content()


def _prune_content() -> None:
    with lock("content"):
        for path in glob.glob(f"{cache_folder()}/content/*/*"):
            if os.stat(path).st_nlink == 1:
                os.unlink(path)
        for folder in glob.glob(f"{cache_folder()}/content/*"):
            with contextlib.suppress(OSError):
                os.rmdir(folder)


def prune(client: Client, kept: int = _KEPT_CODE_LAYERS) -> None:
    """Removes what no pod uses: layers with added folders but for the newest few, others after a month, and what killed builds left."""
    pods = [pod["spec"] for pod in client.get("/v1/pods")]
    used = {spec.get("rootfs", "") for spec in pods} | {mount["source"] for spec in pods for mount in spec.get("mounts", [])}
    found: Dict[bool, List[Tuple[float, str]]] = {True: [], False: []}
    for place in glob.glob(f"{cache_folder()}/layers/[0-9a-f]*"):
        with contextlib.suppress(OSError, ValueError):
            with open(os.path.join(place, "layer.json"), encoding="utf-8") as file:
                code = bool(json.load(file)["code"])
            if os.path.join(place, "rootfs") not in used:
                found[code].append((os.stat(place).st_mtime, place))
    old = time.time() - _KEPT_S
    doomed = [place for _, place in sorted(found[True])[: max(0, len(found[True]) - kept)]] + [place for when, place in found[False] if when < old]
    for place in [*doomed, *glob.glob(f"{cache_folder()}/layers/.*-*")]:
        key = os.path.basename(place).lstrip(".").partition("-")[0]
        with _try_lock(f"layer-{key}") as lock, contextlib.suppress(OSError, ThawError):
            if lock:  # otherwise it is being built
                _remove_unused(place) if place in doomed else _remove_tree(place)
                os.unlink(lock)
    for place in [*glob.glob(f"{cache_folder()}/helpers/*"), *glob.glob(f"{cache_folder()}/helpers/.*")]:
        with contextlib.suppress(OSError, ThawError):
            if place not in used and os.stat(place).st_mtime < old:
                _remove_tree(place)
