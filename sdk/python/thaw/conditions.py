"""Conditions: what must hold before a replica counts as warm. They are values; the daemon asks them, from outside the container."""

from __future__ import annotations

from typing import Any, Callable, Optional, Tuple, Union

from . import callables, values
from .errors import InvalidError

CHOICES = (
    "http('/health'), tcp(8000), exec_('test', '-e', '/ready'), file('/run/thaw/ready'), log('listening on .*'), a function of your module such as warm, "
    "notify(), workers(4), after('5s'), all_(...), any_(...)"
)
_MOST_LEVELS = 8
_MOST_CHILDREN = 100


class Condition:
    """One condition, or several combined. `a & b` is all_(a, b), `a | b` is any_(a, b).

    >>> http("/health") & log("model loaded")
    all_(http('/health'), log('model loaded'))
    """

    __slots__ = ("kind", "value", "_text")

    def __init__(self, kind: str, value: Any, text: str) -> None:
        self.kind, self.value, self._text = kind, value, text

    def to_spec(self) -> Any:
        """As the daemon takes it.

        >>> tcp(8000).to_spec()
        {'tcp': {'port': 8000}}
        """
        if self.kind in ("all", "any"):
            return {self.kind: [child.to_spec() for child in self.value]}
        if self.kind == "python" and not isinstance(self.value, str):
            return {"python": callables.name_of(self.value)}
        return {self.kind: self.value}

    def needs_port(self) -> bool:
        """Whether it goes by the pod's first port.

        >>> http("/health").needs_port(), http("/health", port=8000).needs_port()
        (True, False)
        """
        if self.kind in ("all", "any"):
            return any(child.needs_port() for child in self.value)
        return self.kind in ("http", "tcp") and "port" not in self.value

    def levels(self) -> int:
        """How deep it is nested.

        >>> all_(tcp(1), any_(tcp(2), notify())).levels()
        3
        """
        return 1 + max((child.levels() for child in self.value), default=0) if self.kind in ("all", "any") else 1

    def __and__(self, other: ConditionLike) -> Condition:
        return all_(self, other)

    def __or__(self, other: ConditionLike) -> Condition:
        return any_(self, other)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Condition) and (self.kind, self.value) == (other.kind, other.value)

    def __hash__(self) -> int:
        return hash((self.kind, self._text))

    def __repr__(self) -> str:
        return self._text


ConditionLike = Union[Condition, Callable[[], Any]]


def _call(name: str, *arguments: str) -> str:
    return f"{name}({', '.join(a for a in arguments if a)})"


def http(path: str = "/", port: Optional[int] = None, status: int = 200) -> Condition:
    """A GET of `path` is answered with `status`. Without a port: the first of the pod's ports.

    >>> http("/health", port=8000)
    http('/health', port=8000)
    """
    if not isinstance(path, str) or not path.startswith("/") or any(c in path for c in " \r\n\0"):
        raise InvalidError("use http condition", path, "it is no path of a URL", "give one that begins with '/', such as '/health'")
    value = {"path": path, "status": values.whole("status", status, 100, 599)}
    if port is not None:
        value["port"] = values.port(port)
    return Condition("http", value, _call("http", repr(path), f"port={port}" if port else "", f"status={status}" if status != 200 else ""))


def tcp(port: Optional[int] = None) -> Condition:
    """The port accepts connections. Without one: the first of the pod's ports.

    >>> tcp(8000)
    tcp(8000)
    """
    return Condition("tcp", {} if port is None else {"port": values.port(port)}, _call("tcp", str(port or "")))


def exec_(*argv: str) -> Condition:
    """The command, run in the container, ends with exit code 0. No shell is involved.

    >>> exec_("test", "-e", "/ready")
    exec_('test', '-e', '/ready')
    """
    if len(argv) == 1 and isinstance(argv[0], (list, tuple)):
        argv = tuple(argv[0])
    found = values.words("exec_ condition", list(argv), "exec_('test', '-e', '/ready')")
    return Condition("exec", found, _call("exec_", *map(repr, found)))


def file(path: str) -> Condition:
    """The file exists in the container.

    >>> file("/run/thaw/ready")
    file('/run/thaw/ready')
    """
    return Condition("file", values.inner_path("file condition", path), _call("file", repr(path)))


def log(pattern: str) -> Condition:
    """A line of the output matches the regular expression (RE2 syntax).

    >>> log("listening on .*")
    log('listening on .*')
    """
    values.text("log condition", pattern, "give a regular expression, such as 'listening on .*'")
    return Condition("log", pattern, _call("log", repr(pattern)))


def python(function: Union[str, Callable[[], Any]]) -> Condition:
    """The function, called in the container in a process of its own, returns something true.

    A function of a module, or its name as text.

    >>> python("app.health:ready")
    python('app.health:ready')
    """
    if isinstance(function, str):
        return Condition("python", callables.check_name(function), _call("python", repr(function)))
    if not callable(function):
        raise InvalidError("use python condition", function, "it cannot be called", "give a function of your module, or its name such as 'app.health:ready'")
    callables.check(function)
    return Condition("python", function, _call("python", repr(f"{function.__module__}:{function.__qualname__}")))


def notify() -> Condition:
    """The program sends READY=1 to $NOTIFY_SOCKET, as sd_notify and thaw.ready() do.

    >>> notify()
    notify()
    """
    return Condition("notify", True, "notify()")


def workers(count: int) -> Condition:
    """That many workers have called thaw.ready().

    >>> workers(4)
    workers(4)
    """
    return Condition("workers", values.whole("workers condition", count, 1, 10000), _call("workers", str(count)))


def after(time: values.Duration) -> Condition:
    """That much time has passed since the start.

    >>> after("5s")
    after('5s')
    """
    return Condition("after", values.duration("after condition", time), _call("after", repr(time)))


def _several(kind: str, conditions: Tuple[ConditionLike, ...]) -> Condition:
    name = f"{kind}_"
    if len(conditions) == 1 and isinstance(conditions[0], (list, tuple)):
        conditions = tuple(conditions[0])
    if not 1 <= len(conditions) <= _MOST_CHILDREN:
        raise InvalidError(f"use {name} condition", f"{name}()", f"it has {len(conditions)} conditions", f"give 1 to {_MOST_CHILDREN}")
    children = [as_condition(condition, f"use {name} condition") for condition in conditions]
    found = Condition(kind, children, _call(name, *map(repr, children)))
    if found.levels() > _MOST_LEVELS:
        raise InvalidError(f"use {name} condition", name, f"conditions are nested more than {_MOST_LEVELS} levels deep", "nest them less")
    return found


def all_(*conditions: ConditionLike) -> Condition:
    """All of them hold.

    >>> all_(http("/health"), log("model loaded"))
    all_(http('/health'), log('model loaded'))
    """
    return _several("all", conditions)


def any_(*conditions: ConditionLike) -> Condition:
    """At least one of them holds.

    >>> any_(notify(), file("/run/thaw/ready"))
    any_(notify(), file('/run/thaw/ready'))
    """
    return _several("any", conditions)


def as_condition(value: Any, action: str = "use checkpoint_condition") -> Condition:
    """A condition, or the condition that a function is."""
    if isinstance(value, Condition):
        return value
    if value in (http, tcp, exec_, file, log, python, notify, workers, after, all_, any_):
        raise InvalidError(action, value.__name__, "it is the maker of a condition, not a condition", f"call it: one of {CHOICES}")
    if callable(value):
        return python(value)
    raise InvalidError(action, value, "it is no condition", f"give one of {CHOICES}")
