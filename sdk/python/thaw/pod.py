"""A pod: what its writer declares, and what can be done with it."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import shlex
import sys
import time
import warnings
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

from . import conditions, values
from .client import Client, segment
from .conditions import ConditionLike
from .errors import InvalidError, ThawError
from .image import Image
from .undo import Undo

if TYPE_CHECKING:
    from .build import Built

Progress = Callable[[str], None]
PortLike = Union[int, str, Mapping[str, Any]]
AliveLike = Union[ConditionLike, Mapping[str, Any]]
MountLike = Union[str, Mapping[str, Any]]
_ENDED = ("stopped", "failed")
_HELPERS = "/opt/thaw/python"  # where the container finds this package
_LOG_LINES = 20


class LogLine(NamedTuple):
    """A line that a replica wrote.

    >>> LogLine("2026-01-02T03:04:05.678Z", "stdout", "listening").text
    'listening'
    """

    time: str
    stream: str  # "stdout" or "stderr"
    text: str


class Event(NamedTuple):
    """Something that happened: docs/lifecycle.md lists the states that `type` speaks of.

    >>> [event.message for event in pod.events() if event.type == "replica.ready"]
    """

    id: int
    time: str
    type: str
    pod: Optional[str]
    replica: Optional[str]
    checkpoint: Optional[str]
    message: str
    data: Dict[str, Any]


class ExecResult(NamedTuple):
    """How a program ended that ran in a replica. `exit_code` is as a shell reports it.

    >>> ExecResult(0, "hello\\n", "").stdout
    'hello\\n'
    """

    exit_code: int
    stdout: str
    stderr: str


class Checkpoint(NamedTuple):
    """A checkpoint; only an `available` one is used. `reason` says why another one is not.

    >>> pod.wait_checkpoint().status
    'available'
    """

    id: str
    pod: str
    status: str
    reason: Optional[str]
    bytes: int


class Deployment(NamedTuple):
    """What a deploy came to.

    >>> pod.deploy().created
    True
    """

    name: str
    urls: List[str]
    created: bool
    changed: bool
    warnings: List[str]


class Replica:
    """A running container of a pod. Its facts are as they were when it was asked for; refresh() asks again.

    >>> replica = pod.create()
    >>> replica.id, replica.url, replica.started_from
    ('1f0c52a9be11', 'http://127.0.0.1:9000', 'cold')
    """

    def __init__(self, client: Client, row: Dict[str, Any], url: Optional[str] = None) -> None:
        self._client, self.url = client, url
        self._set(row)

    def _set(self, row: Dict[str, Any]) -> None:
        self.row = row  # all that the API says
        self.id: str = row["id"]
        self.pod: str = row["pod"]
        self.state: str = row["state"]
        self.started_from: str = row["started_from"]
        self.reason: Optional[str] = row["reason"]
        self.exit_code: Optional[int] = row["exit_code"]
        self.ready_in: Optional[float] = None if row["ready_in_us"] is None else row["ready_in_us"] / 1e6

    def __repr__(self) -> str:
        return f"<Replica {self.id} of {self.pod}: {self.state}, from {self.started_from}>"

    @property
    def restored(self) -> bool:
        """Whether it started from a checkpoint.

        >>> [replica.restored for replica in pod.scale(2)]
        [False, True]
        """
        return self.started_from not in ("", "cold")

    def refresh(self) -> Replica:
        """Asks again how it is.

        >>> replica.refresh().state
        'ready'
        """
        self._set(self._client.get(f"/v1/replicas/{self.id}"))
        return self

    def stop(self) -> None:
        """Stops it; the pod wants one less from then on.

        >>> replica.stop()
        """
        self._client.post(f"/v1/replicas/{self.id}/stop")

    def logs(self, follow: bool = False, tail: Optional[int] = None) -> Iterator[LogLine]:
        """What it wrote. follow: goes on as it writes, and ends with it.

        >>> for line in replica.logs(tail=10): print(line.text)
        """
        path = f"/v1/replicas/{self.id}/logs"
        if tail is not None:
            values.whole("tail", tail, 0, 1_000_000)
        rows = (row for _, row in self._client.events(path, follow=True, tail=tail)) if follow else self._client.lines(path, tail=tail)
        text = {"stdout": "", "stderr": ""}
        for row in rows:
            text[row["stream"]] += row["text"]
            if not row.get("partial"):
                yield LogLine(row["time"], row["stream"], text[row["stream"]])
                text[row["stream"]] = ""

    def exec(self, argv: Sequence[str], input: Union[bytes, str, None] = None,  # noqa: A002: as subprocess has it
             timeout: Optional[float] = None, check: bool = False) -> ExecResult:  # fmt: skip
        """Runs a program in it. check: another exit code than 0 is a ThawError.

        >>> replica.exec(["cat", "/etc/hostname"]).stdout
        """
        words = values.words("argv", argv, '["ls", "/"]')
        if timeout is not None:
            values.seconds(timeout)
        code, out, err = self._client.exec(self.id, words, input, timeout)
        result = ExecResult(code, out.decode(errors="replace"), err.decode(errors="replace"))
        if check and code != 0:
            said = (result.stderr.strip() or result.stdout.strip()).splitlines()
            raise ThawError("unavailable", "run", shlex.join(words), f"it ended with exit code {code}" + (f": {said[-1]}" if said else ""))
        return result


def _port(value: Any) -> Any:
    if isinstance(value, str):
        *address, host, container = ["", *value.rsplit(":", 2)][-3:] if ":" in value else ["", "0", value]
        with contextlib.suppress(ValueError):
            if "".join(address):
                ipaddress.ip_address("".join(address).strip("[]"))
            if host.isdigit() and int(host) < 65536 and container.isdigit() and values.port(int(container)):
                return value
        raise InvalidError("use ports", value, "it is not a port", "give 8000, '9000:8000' (host:container) or '0.0.0.0:9000:8000'")
    if isinstance(value, Mapping):
        return dict(values.keys("ports", value, ("container", "host", "address", "protocol", "client_address", "idle_timeout"), "{'container': 8000, 'protocol': 'http'}", "container"))
    return values.port(value, "ports")


def _ports(value: Any) -> List[Any]:
    found = values.each(value, "ports", _port, "[8000]")
    for port in found:
        if found.count(port) > 1:
            raise InvalidError("use ports", port, "it is there twice", "name each port once")
    return found


def _mount(value: Any) -> Dict[str, Any]:
    example = "give 'SOURCE:TARGET', 'SOURCE:TARGET:ro', or {'source': ..., 'target': ..., 'readonly': True}"
    if isinstance(value, str):
        parts = value.split(":")
        if len(parts) not in (2, 3) or (len(parts) == 3 and parts[2] not in ("ro", "rw")):
            raise InvalidError("use mounts", value, "it is no mount", example)
        value = {"source": parts[0], "target": parts[1], "readonly": parts[2:] == ["ro"]}
    if not isinstance(value, Mapping) or not {"source", "target"} <= set(value) <= {"source", "target", "readonly"}:
        raise InvalidError("use mounts", value, "it is no mount", example)
    if not isinstance(value["source"], (str, os.PathLike)) or not os.fspath(value["source"]):
        raise InvalidError("use mounts", value, "its source is no path", example)
    source = os.path.abspath(os.path.expanduser(os.fspath(value["source"])))
    target = values.inner_path("mounts", value["target"])
    place = os.path.normpath(target)
    if place in ("/", "//", "/dev") or any(place == own or place.startswith(f"{own}/") for own in ("/proc", "/sys", "/run/thaw", _HELPERS)):
        raise InvalidError("use mounts", target, "that place is the container's own", "mount it elsewhere, such as at /data")
    return {"source": source, "target": target, "readonly": values.flag("mounts", value.get("readonly", False))}


def _mounts(value: Any) -> List[Dict[str, Any]]:
    found = values.each(value, "mounts", _mount, "['./models:/models:ro']")
    targets = [os.path.normpath(mount["target"]) for mount in found]
    for target in targets:
        if targets.count(target) > 1:
            raise InvalidError("use mounts", target, "two mounts have that target", "give each a target of its own")
    return found


def _route(value: Any) -> Dict[str, Any]:
    return dict(values.keys("routes", value, ("host", "path", "port"), "{'host': 'app.example', 'path': '/api'}"))


def _alive(value: Any) -> Dict[str, Any]:
    """As it is, but for its probe, which is a condition."""
    if not isinstance(value, Mapping):
        value = {"probe": value}
    found = dict(values.keys("alive", value, ("probe", "every", "timeout", "failures"), "{'probe': http('/health'), 'every': '10s', 'failures': 3}", "probe"))
    found["probe"] = conditions.as_condition(found["probe"], "use alive")
    for key in {"every", "timeout"} & set(found):
        found[key] = values.duration(f"alive {key}", found[key], 0.1, 3600)
    if "failures" in found:
        values.whole("alive failures", found["failures"], 1, 1000)
    return found


_SECRET_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"


class Secret:
    """One that the daemon keeps (`thaw secret set`), in place of a file in a pod's `secrets`.

    >>> Pod("web", Image.debian("bookworm"), entrypoint=["serve"], secrets={"token": Secret("api-token")})
    Pod('web')
    """

    def __init__(self, name: str) -> None:
        if not isinstance(name, str) or not re.fullmatch(_SECRET_NAME, name):
            raise InvalidError("use secret", name, "it is no name of one", "give a name that `thaw secret ls` shows")
        self.name = name

    def __repr__(self) -> str:
        return f"Secret({self.name!r})"


def _secrets(value: Any) -> List[Tuple[str, Union[str, Secret]]]:
    example = "give files of this machine, such as ['./api.key'], or names and files, such as {'api-key': './api.key'}"
    if isinstance(value, Mapping):
        pairs = list(value.items())
    elif isinstance(value, (list, tuple)):
        pairs = [(one.name if isinstance(one, Secret) else os.path.basename(os.fspath(one)) if isinstance(one, (str, os.PathLike)) else "", one) for one in value]
    else:
        raise InvalidError("use secrets", value, "they are neither a list nor a dict", example)
    for name, path in pairs:
        if not isinstance(path, Secret) and (not isinstance(path, (str, os.PathLike)) or not os.fspath(path)):
            raise InvalidError("use secrets", f"{name!r}: {path!r}", "it is no name and file", example)
        if not isinstance(name, str) or not re.fullmatch(_SECRET_NAME, name):
            raise InvalidError("use secrets", f"{name!r}: {path!r}", "the name is not one of letters, digits, '-', '_' and '.', the first no '-' or '.'", example)
        if [other for other, _ in pairs].count(name) > 1:
            raise InvalidError("use secrets", name, "two secrets have that name", "give them names of their own: {'one': './a/key', 'other': './b/key'}")
    return [(name, path if isinstance(path, Secret) else os.path.abspath(os.path.expanduser(os.fspath(path)))) for name, path in pairs]


class Pod:
    """What runs, and how: an image, a command, ports, resources, how many replicas, and when one counts as warm.

    `entrypoint` is run instead of the image's own command. `secrets` are files of this machine, or each a `Secret` of the daemon's, whose content the container sees, in
    memory, as /run/thaw/secrets/NAME, of its own user and mode 0400; they are read anew at every start and are in no image and no
    checkpoint (what the program has read of them is in its memory).
    `checkpoint_condition` is a function of your module, called in the container in a process of its own, or a condition such as
    http("/health"); with it, checkpoints are on unless `checkpoint_enabled` is False. `ready` and `alive` are conditions, too: what must
    hold before a replica gets traffic, and while it does. What is not said here has the meaning and the default of docs/pod-spec.md.

    >>> pod = Pod(name="model", image=Image.debian("bookworm").apt("python3").add("."), entrypoint=["python3", "server.py"],
    ...           ports=[8000], memory="2GiB", max_replicas=4, checkpoint_condition=http("/health"))
    >>> pod.deploy().urls
    ['http://127.0.0.1:9000']
    """

    def __init__(
        self,
        name: str,
        image: Union[Image, str],
        *,
        entrypoint: Optional[Sequence[str]] = None,
        args: Optional[Sequence[str]] = None,
        ports: Sequence[PortLike] = (),
        cpu: Optional[float] = None,
        memory: Optional[values.Size] = None,
        pids: Optional[int] = None,
        gpu: Optional[int] = None,
        env: Optional[Mapping[str, str]] = None,
        secrets: Union[Sequence[Union[str, Secret]], Mapping[str, Union[str, Secret]]] = (),
        mounts: Sequence[MountLike] = (),
        user: Optional[str] = None,
        workdir: Optional[str] = None,
        network: Optional[str] = None,
        links: Sequence[str] = (),
        routes: Sequence[Mapping[str, Any]] = (),
        min_replicas: int = 0,
        max_replicas: Optional[int] = None,
        keep_warm: Optional[values.Duration] = None,
        scale_down_delay: Optional[values.Duration] = None,
        drain: Optional[values.Duration] = None,
        concurrency: Optional[int] = None,
        hard: Optional[bool] = None,
        standby: Optional[int] = None,
        standby_warm: Optional[bool] = None,
        ready: Optional[ConditionLike] = None,
        alive: Optional[AliveLike] = None,
        checkpoint_enabled: Optional[bool] = None,
        checkpoint_condition: Optional[ConditionLike] = None,
        checkpoint_timeout: values.Duration = "10m",
        checkpoint_on_timeout: str = "serve",
        checkpoint_verify: bool = True,
        checkpoint_memory: str = "lazy",
        before_checkpoint: Optional[Sequence[str]] = None,
        after_restore: Optional[Sequence[str]] = None,
        idle: Optional[str] = None,
        stop_grace: values.Duration = "10s",
        client: Optional[Client] = None,
    ) -> None:
        self.name = values.name(name)
        if isinstance(image, str):
            image = Image.from_oci(image)
        if not isinstance(image, Image):
            raise InvalidError("use image", image, "it is no image", "give Image.debian('bookworm'), Image.from_oci(...), Image.from_rootfs(...), Image.from_dockerfile(...) or a reference such as 'docker://docker.io/library/python:3.12'")
        self.image = image
        self.entrypoint = None if entrypoint is None else values.words("entrypoint", entrypoint, '["python3", "server.py"]')
        self.args = None if args is None else values.words("args", args, '["--port", "8000"]')
        self.ports = _ports(ports)
        self.network = None if network is None else values.choice("network", network, ("nat", "none"))
        self.links = values.each(links, "links", values.name, "['database']")
        self.routes = values.each(routes, "routes", _route, "[{'host': 'app.example'}]")
        if cpu is not None and (not values.is_number(cpu) or not 0.01 <= cpu <= 1024):
            raise InvalidError("use cpu", cpu, "it is no number of cores from 0.01 to 1024", "give one such as 1.5")
        self.cpu = cpu
        self.memory = None if memory is None else values.size("memory", memory)
        if self.memory is not None and self.memory < 1 << 20:
            raise InvalidError("use memory", memory, "it is less than 1MiB", "give a size such as '2GiB'; a plain number is bytes")
        self.pids = None if pids is None else values.whole("pids", pids, 1, 1 << 22)
        self.gpu = None if gpu is None else values.whole("gpu", gpu, 0, 64)
        self.env = values.environment({} if env is None else env)
        self.secrets = _secrets(secrets)
        self.mounts = _mounts(mounts)
        self.user = None if user is None else values.text("user", user, "give user or user:group, such as '1000:1000'")
        self.workdir = None if workdir is None else values.inner_path("workdir", workdir)
        self.min_replicas = values.whole("min_replicas", min_replicas, 0, 1000)
        self.max_replicas = max(1, self.min_replicas) if max_replicas is None else values.whole("max_replicas", max_replicas, 1, 1000)
        if self.max_replicas < self.min_replicas:
            raise InvalidError("use max_replicas", max_replicas, f"it is below min_replicas, {min_replicas}", "raise max_replicas or lower min_replicas")
        self.keep_warm = None if keep_warm is None else values.duration("keep_warm", keep_warm)
        self.scale_down_delay = None if scale_down_delay is None else values.duration("scale_down_delay", scale_down_delay)
        self.drain = None if drain is None else values.duration("drain", drain)
        self.concurrency = None if concurrency is None else values.whole("concurrency", concurrency, 1, 100_000)
        self.hard = None if hard is None else values.flag("hard", hard)
        self.standby = None if standby is None else values.whole("standby", standby, 0, 1000)
        self.standby_warm = None if standby_warm is None else values.flag("standby_warm", standby_warm)
        self.ready = None if ready is None else conditions.as_condition(ready, "use ready")
        self.alive = None if alive is None else _alive(alive)
        self.idle = None if idle is None else values.choice("idle", idle, ("stop", "freeze", "checkpoint"))
        self.condition = None if checkpoint_condition is None else conditions.as_condition(checkpoint_condition)
        if self.condition is not None and self.condition.needs_port() and not self.ports:
            raise InvalidError("use checkpoint_condition", repr(self.condition), "it names no port, and the pod has no ports", "give the pod ports=[8000], or the condition a port")
        wanted = self.condition is not None if checkpoint_enabled is None else values.flag("checkpoint_enabled", checkpoint_enabled)
        if wanted and self.condition is None:
            raise InvalidError("use checkpoint_enabled", "True", "there is no checkpoint_condition that says when the program is warm", f"give checkpoint_condition= one of {conditions.CHOICES}")
        self.checkpoint_enabled = wanted
        if wanted and (self.gpu or 0) > 1:
            self.checkpoint_enabled = False
            warnings.warn(f"pod '{name}': checkpointing is off: it has gpu={gpu}, and processes that use more than one GPU cannot be checkpointed; it starts cold every time", stacklevel=2)
        self.checkpoint_timeout = values.duration("checkpoint_timeout", checkpoint_timeout, 1)
        self.checkpoint_on_timeout = values.choice("checkpoint_on_timeout", checkpoint_on_timeout, ("serve", "fail"))
        self.checkpoint_verify = values.flag("checkpoint_verify", checkpoint_verify)
        self.checkpoint_memory = values.choice("checkpoint_memory", checkpoint_memory, ("lazy", "background", "eager"))
        self.before_checkpoint = None if before_checkpoint is None else values.words("before_checkpoint", before_checkpoint, '["/app/flush"]')
        self.after_restore = None if after_restore is None else values.words("after_restore", after_restore, '["/app/reseed"]')
        if (self.before_checkpoint or self.after_restore) and self.condition is None:
            raise InvalidError("use after_restore" if self.after_restore else "use before_checkpoint", "Pod", "there is no checkpoint_condition, and so no checkpoint", "give one, or leave it out")
        self.stop_grace = values.duration("stop_grace", stop_grace, 0, 3600)
        if client is not None and not isinstance(client, Client):
            raise InvalidError("use client", client, "it is no Client", "give thaw.Client('unix:/path/to/thaw.sock')")
        self._client = client

    def __repr__(self) -> str:
        return f"Pod({self.name!r})"

    @property
    def client(self) -> Client:
        """The daemon that it is deployed to.

        >>> pod.client.address
        'unix:/var/lib/thaw/thaw.sock'
        """
        if self._client is None:
            self._client = Client()
        return self._client

    @property
    def _path(self) -> str:
        return f"/v1/pods/{segment(self.name)}"

    # --- deploying ---

    def spec(self, progress: Optional[Progress] = None) -> Dict[str, Any]:
        """Builds the image where that is needed, and returns the specification that the daemon gets (docs/pod-spec.md).

        >>> Pod("web", Image.from_rootfs("/srv/rootfs"), entrypoint=["python3", "-m", "http.server"]).spec()["name"]
        'web'
        """
        self._check()
        return self._spec(self.image.build(progress))

    def _check(self) -> None:
        """What is wrong without a look at the image, said before anything is built."""
        for condition in (self.condition, self.ready, self.alive and self.alive["probe"]):
            if condition:
                condition.to_spec()
        if self.entrypoint is None and not self.image.has_command():
            raise InvalidError("use entrypoint", "None", f"{self.image!r} has no command of its own", 'give one, such as entrypoint=["python3", "server.py"]')

    def _spec(self, built: Built) -> Dict[str, Any]:
        from . import build

        env = {**built.env, **self.env}
        helpers = {"source": build.helpers_folder(), "target": _HELPERS, "readonly": True}
        env["PYTHONPATH"] = ":".join(filter(None, [env.get("PYTHONPATH"), _HELPERS]))
        spec: Dict[str, Any] = {
            "name": self.name, **built.source, "env": env, "ports": self.ports, "mounts": [*self.mounts, helpers],
            "secrets": [{"name": name, **({"secret": at.name} if isinstance(at, Secret) else {"file": at})} for name, at in self.secrets],
            "replicas": _given({"min": self.min_replicas, "max": self.max_replicas, "keep_warm": self.keep_warm, "scale_down_delay": self.scale_down_delay, "drain": self.drain,
                                "concurrency": self.concurrency, "hard": self.hard, "standby": self.standby, "standby_warm": self.standby_warm}),
            "args": self.args, "network": self.network, "links": self.links, "routes": self.routes,
            "ready": self.ready and self.ready.to_spec(), "alive": self.alive and {**self.alive, "probe": self.alive["probe"].to_spec()},
            "idle": self.idle, "stop_grace": self.stop_grace,
            "command": self.entrypoint or built.command, "user": self.user or built.user, "workdir": self.workdir or built.workdir,
            "resources": _given({"cpu": self.cpu, "memory": self.memory, "pids": self.pids, "gpu": self.gpu}),
        }  # fmt: skip
        if self.condition is not None:
            spec["checkpoint"] = _given({"enabled": self.checkpoint_enabled, "when": self.condition.to_spec(), "timeout": self.checkpoint_timeout, "on_timeout": self.checkpoint_on_timeout,
                                  "verify": self.checkpoint_verify, "memory": self.checkpoint_memory,
                                         "before_checkpoint": self.before_checkpoint, "after_restore": self.after_restore})  # fmt: skip
        return _given(spec)

    def deploy(self, wait: bool = True, timeout: float = 900, progress: Optional[Progress] = None) -> Deployment:
        """Creates the pod, or changes it to what is declared here, and waits until as many replicas are ready as are wanted: of a new pod
        `min_replicas`, of another one as many as it was scaled to, or as connections call for.

        When anything of it fails, or it is interrupted, everything is put back: a new pod is removed with its checkpoints, one that was
        there gets its old specification, and what was built of the code folder is removed. (Finished image layers stay for the next
        try.) The error's `log` has the last lines of a replica that failed.

        >>> pod.deploy().urls
        ['http://127.0.0.1:9000']
        """
        return self._deploy(None, wait, timeout, progress)

    def create(self, timeout: float = 900, progress: Optional[Progress] = None) -> Replica:
        """One more replica, now: deploys the pod when it is not yet, or has changed. Returns when the replica is ready.

        Those of one machine that are asked for at the same time, in threads or in processes, are made one after another: each returns a
        replica of its own.

        >>> replica = pod.create()
        >>> replica.url
        'http://127.0.0.1:9000'
        """
        from . import build

        with build.lock(f"create-{self.name}"):
            known = {replica.id for replica in self.replicas()} if self._get() else set()
            deployment = self._deploy(1, True, timeout, progress)
            fresh = [replica for replica in self.replicas() if replica.id not in known and replica.state == "ready"]
        if not fresh:
            raise ThawError("unavailable", "create a replica of", self.name, "none of those that are ready is new", "see `thaw ps -a` and `thaw events`")
        fresh[-1].url = deployment.urls[0] if deployment.urls else None
        return fresh[-1]

    def _deploy(self, more: Optional[int], wait: bool, timeout: float, progress: Optional[Progress]) -> Deployment:
        from . import build

        end = time.monotonic() + values.seconds(timeout)
        self._check()
        for path in [*(mount["source"] for mount in self.mounts), *(path for _, path in self.secrets if isinstance(path, str))]:
            if not os.path.exists(path):
                raise InvalidError("show the container", path, "there is no such file or folder", "correct mounts or secrets, or create it")
        before = self._get()
        # What only the daemon can say is wrong, said before minutes of building: upon an image that is none.
        self.client.post("/v1/pods?dry_run=true", self._spec(build.Built({"rootfs": "/"}, {}, None, ["true"], None)))
        with Undo() as undo, build.session(undo):
            spec = self.spec(progress)
            checkpoints = {row["id"] for row in self._checkpoint_rows()} if before else set()
            if progress:
                progress(f"deploying {self.name}")
            undo.add(lambda: self._put_back(before, checkpoints))
            result = self.client.post("/v1/pods", spec, timeout=max(60.0, timeout))
            pod = result["pod"]
            if more is not None:
                # Beside those that are wanted already, whether they are ready or still coming.
                running = before is not None and not before["stopped"] and not result["changed"]
                wanted = pod["desired"] + more if running else max(more, self.min_replicas)
                if wanted > self.max_replicas:
                    raise ThawError("conflict", "create a replica of", self.name, f"{pod['desired']} are wanted already, and max_replicas is {self.max_replicas}", "raise max_replicas, or stop one")
                self.client.post(f"{self._path}/scale", {"replicas": wanted})
            if wait or more is not None:
                pod = self._wait_ready(pod["version"], end, progress, result["last_event"])
        notes = list(result["warnings"])
        try:
            build.prune(self.client)
        except (OSError, ThawError) as error:  # the pod is deployed all the same
            notes.append(f"what is not used any more could not be removed: {error}")
        checkpoint = pod["checkpoint"]
        if checkpoint["enabled"] and not checkpoint["effective"] and not notes:
            notes.append(f"no checkpoints: {checkpoint['reason']}")
        return Deployment(self.name, _urls(pod), result["created"], result["changed"], notes)

    def _put_back(self, before: Optional[Dict[str, Any]], checkpoints: Any) -> None:
        """What this deploy did to the daemon, undone."""
        now = self._get()
        if now is None:
            return
        if before is None:
            self.remove()
            return
        if now["version"] != before["version"]:
            self.client.post("/v1/pods", before["spec"])
        if before["stopped"]:
            self.client.post(f"{self._path}/stop")
        elif self.client.get(self._path)["scale"] != before["scale"]:
            self.client.post(f"{self._path}/scale", {"replicas": before["scale"]})
        for row in self._checkpoint_rows():
            if row["id"] not in checkpoints:
                with contextlib.suppress(ThawError):  # in use by a replica that is still ending
                    self.client.delete(f"/v1/checkpoints/{row['id']}")

    def _wait_ready(self, version: int, end: float, progress: Optional[Progress], after: int) -> Dict[str, Any]:
        """Until as many replicas of this version are ready as are wanted, which is for connections to say, too, and those of another have been told to go.
        They may have connections to finish for long.
        A failed one of this version ends it: replicas of the version before may serve well, but that is not what was asked for."""
        from .follow import follow

        def ready() -> Optional[str]:
            """None, or what is missing."""
            wanted = self.client.get(self._path)["desired"]
            rows = [row for row in self.client.get("/v1/replicas", pod=self.name) if not row["proof"] and row["state"] not in (*_ENDED, "standby", "pausing", "paused", "draining", "stopping")]
            mine = [row for row in rows if row["version"] == version and row["state"] == "ready"]
            return None if len(mine) == wanted == len(rows) else f"{len(mine)} of {wanted} replicas are ready"

        now = ready()
        if now is not None:
            for event in follow(self.client, after, end):
                if event["pod"] != self.name:
                    continue
                if progress:
                    progress(f"{event['type']}: {event['message']}")
                if event["type"] == "replica.failed":
                    row = self.client.get(f"/v1/replicas/{event['replica']}")
                    if row["version"] == version and not row["proof"]:
                        raise self._with_log(ThawError("unavailable", "deploy", self.name, row["reason"] or event["message"], "correct it, and deploy again"), row)
                if event["type"] in ("replica.ready", "replica.draining", "replica.stopped", "replica.failed", "pod.demand", "pod.scaled"):
                    now = ready()
                    if now is None:
                        break
        if now is not None:
            rows = self.client.get("/v1/replicas", pod=self.name)
            error = ThawError("timeout", "deploy", self.name, now, "give it a longer timeout, or look at `thaw events`")
            raise self._with_log(error, rows[-1]) if rows else error
        pod: Dict[str, Any] = self.client.get(self._path)
        return pod

    def _with_log(self, error: ThawError, row: Dict[str, Any]) -> ThawError:
        """The error with the end of a replica's log, which is gone when the deploy is put back."""
        with contextlib.suppress(ThawError):
            error.log = [line.text for line in Replica(self.client, row).logs(tail=_LOG_LINES)]
        if error.log:
            error.args = (f"{error}\n  the replica wrote last:\n    " + "\n    ".join(error.log),)
        return error

    def _scale(self, count: int, timeout: float) -> None:
        self.client.post(f"{self._path}/scale", {"replicas": count, "wait": f"{timeout:.3f}s"}, timeout=timeout + 30)

    # --- the pod as it is ---

    def _get(self) -> Optional[Dict[str, Any]]:
        try:
            found: Dict[str, Any] = self.client.get(self._path)
            return found
        except ThawError as error:
            if error.code == "not_found":
                return None
            raise

    @property
    def urls(self) -> List[str]:
        """Where its ports are published.

        >>> pod.urls
        ['http://127.0.0.1:9000']
        """
        return _urls(self.client.get(self._path))

    def scale(self, replicas: int, wait: bool = True, timeout: float = 300) -> List[Replica]:
        """Sets how many replicas run; the ready ones, oldest first.

        >>> [replica.started_from for replica in pod.scale(2)]
        ['cold', '5d3f0a7c91e2']
        """
        values.whole("replicas", replicas, 0, 1000)
        values.seconds(timeout)
        if wait:
            self._scale(replicas, timeout)
        else:
            self.client.post(f"{self._path}/scale", {"replicas": replicas})
        return [replica for replica in self.replicas() if replica.state == "ready"]

    def stop(self) -> None:
        """Stops all replicas, and returns when they have ended; the pod stays deployed.

        >>> pod.stop()
        """
        after = self.client.last_event()
        self.client.post(f"{self._path}/stop")
        self._wait_for_none(after)

    def remove(self, checkpoints: bool = True) -> None:
        """Stops all replicas and removes the pod; with its checkpoints, unless told otherwise.

        >>> pod.remove()
        """
        after = self.client.last_event()
        rows = self._checkpoint_rows() if checkpoints else []
        self.client.delete(self._path, force=True)
        self._wait_for_none(after)
        for row in rows:
            try:
                self.client.delete(f"/v1/checkpoints/{row['id']}")
            except ThawError as error:
                if error.code != "not_found":  # it went with the pod
                    raise

    def _wait_for_none(self, after: int) -> None:
        def none() -> bool:
            return not [row for row in self.client.get("/v1/replicas") if row["pod"] == self.name]

        if none():
            return
        for _, event in self.client.events("/v1/events", follow=True, after=after):
            if event["pod"] == self.name and event["type"] in ("replica.stopped", "replica.failed") and none():
                return

    def replicas(self, all: bool = False) -> List[Replica]:  # noqa: A002: as `thaw ps` has it
        """Its replicas, oldest first; all: those that have ended, too. A replica that only proves a checkpoint is left out.

        >>> [replica.state for replica in pod.replicas()]
        ['ready']
        """
        pod = self._get()
        url = next(iter(_urls(pod)), None) if pod else None
        rows = self.client.get("/v1/replicas", pod=self.name, all=all or None)
        return [Replica(self.client, row, url) for row in rows if not row["proof"] and (all or row["state"] not in _ENDED)]

    def _newest(self) -> Replica:
        return Replica(self.client, self.client.get(f"/v1/replicas/{segment(self.name)}"))

    def logs(self, follow: bool = False, tail: Optional[int] = None) -> Iterator[LogLine]:
        """What its newest replica wrote; of a pod that does not run, the one that ended last.

        >>> for line in pod.logs(follow=True): print(line.text)
        """
        try:
            replica = self._newest()
        except ThawError as error:
            ended = self.replicas(all=True) if error.code == "not_found" else []
            if not ended:
                raise
            replica = ended[-1]
        return replica.logs(follow, tail)

    def exec(self, argv: Sequence[str], input: Union[bytes, str, None] = None,  # noqa: A002: as subprocess has it
             timeout: Optional[float] = None, check: bool = False) -> ExecResult:  # fmt: skip
        """Runs a program in its newest replica.

        >>> pod.exec(["python3", "--version"]).stdout
        'Python 3.11.2\\n'
        """
        values.words("argv", argv, '["ls", "/"]')
        return self._newest().exec(argv, input, timeout, check)

    def checkpoint(self, timeout: float = 600) -> Checkpoint:
        """Checkpoints a ready replica now, and returns when the checkpoint is proven, or has failed (`status`).

        >>> pod.checkpoint().status
        'available'
        """
        row = self.client.post(f"{self._path}/checkpoint", timeout=values.seconds(timeout))
        return self._settled(row["id"])

    def checkpoints(self) -> List[Checkpoint]:
        """Its checkpoints, newest first.

        >>> [checkpoint.status for checkpoint in pod.checkpoints()]
        ['available']
        """
        return [_checkpoint(row) for row in self._checkpoint_rows()]

    def wait_checkpoint(self, timeout: float = 600) -> Checkpoint:
        """Waits until its newest checkpoint is proven, or has failed.

        >>> pod.wait_checkpoint().status
        'available'
        """
        end = time.monotonic() + values.seconds(timeout)
        after = self.client.last_event()
        rows = self._checkpoint_rows()
        if rows and rows[0]["status"] in _SETTLED:
            return _checkpoint(rows[0])
        from .follow import follow

        for event in follow(self.client, after, end):
            if event["pod"] == self.name and event["checkpoint"] and event["type"].partition(".")[2] in _SETTLED:
                return self._settled(event["checkpoint"])
        raise ThawError("timeout", "wait for a checkpoint of", self.name, f"there is none within {timeout:g} s", "see `thaw checkpoint ls` and `thaw events`")

    def _settled(self, identifier: str) -> Checkpoint:
        return _checkpoint(self.client.get(f"/v1/checkpoints/{identifier}"))

    def _checkpoint_rows(self) -> List[Dict[str, Any]]:
        try:
            rows: List[Dict[str, Any]] = self.client.get("/v1/checkpoints", pod=self.name)
            return rows
        except ThawError as error:
            if error.code == "not_found":
                return []
            raise

    def events(self, follow: bool = False, after: int = 0) -> Iterator[Event]:
        """What happened to it, oldest first; follow: goes on with what happens.

        >>> for event in pod.events(follow=True): print(event.type, event.message)
        """
        values.whole("after", after, 0, 1 << 62)
        if follow:
            for _, row in self.client.events("/v1/events", follow=True, after=after, pod=self.name):
                yield Event(*(row[field] for field in Event._fields))
            return
        while True:
            rows = self.client.get("/v1/events", after=after, pod=self.name, limit=1000)
            for row in rows:
                yield Event(*(row[field] for field in Event._fields))
            if len(rows) < 1000:
                return
            after = rows[-1]["id"]


_SETTLED = ("available", "failed", "restore_failed", "deleted")


def _checkpoint(row: Dict[str, Any]) -> Checkpoint:
    return Checkpoint(*(row[field] for field in Checkpoint._fields))


def _given(values_: Dict[str, Any]) -> Dict[str, Any]:
    """Without what is empty: the specification has a key with a value, or not at all."""
    return {key: value for key, value in values_.items() if value is not None and value != {} and value != []}


def _urls(pod: Mapping[str, Any]) -> List[str]:
    return [port["url"] for port in pod["ports"] if port["url"]]


def print_progress(text: str) -> None:
    """A progress function: a line to stderr.

    >>> pod.deploy(progress=print_progress)
    """
    print(text, file=sys.stderr, flush=True)
