"""Checks of single values. Each returns the value as the daemon takes it, or raises InvalidError."""

from __future__ import annotations

import datetime
import os
import re
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Union

from .errors import InvalidError

Size = Union[int, str]
Duration = Union[int, float, str, datetime.timedelta]

_SIZE_UNITS = {"": 1}
for _power, _letter in enumerate("KMGT", 1):
    _SIZE_UNITS.update({f"{_letter}B": 1000**_power, _letter: 1000**_power, f"{_letter}iB": 1024**_power, f"{_letter}i": 1024**_power})
_SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6}
# Thaw's own, set by the daemon.
_RESERVED = ("THAW_POD", "THAW_REPLICA", "THAW_CHECKPOINT_ENABLED", "THAW_CHECKPOINT_CONDITION", "NOTIFY_SOCKET")


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def whole(what: str, value: Any, low: int, high: int, cause: str = "") -> int:
    """A whole number from low to high."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidError(f"use {what}", value, cause or f"it is no whole number from {low} to {high}", f"give a whole number from {low} to {high}")
    return value


def seconds(value: Any, what: str = "timeout") -> float:
    """A number of seconds above 0."""
    if not is_number(value) or not 0 < value < 1e9:
        raise InvalidError(f"use {what}", value, "it is no number of seconds", "give one such as 900")
    return float(value)


def required_arguments(function: Any) -> int:
    """How many arguments it cannot do without; 0 where that is not known. (The module inspect takes long to import.)"""
    inner = getattr(function, "__func__", function)
    code = getattr(inner, "__code__", None)
    return int(code.co_argcount - len(inner.__defaults__ or ()) - (inner is not function)) if code else 0


def port(value: Any, what: str = "port") -> int:
    return whole(what, value, 1, 65535, "it is not a port")


def text(what: str, value: Any, remedy: str = "give a text") -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise InvalidError(f"use {what}", value, "it is empty" if value == "" else "it is no text" if not isinstance(value, str) else "it has a zero byte", remedy)
    return value


def flag(what: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InvalidError(f"use {what}", value, "it is neither True nor False", "give one of them")
    return value


def choice(what: str, value: Any, choices: Sequence[str]) -> str:
    if value not in choices:
        raise InvalidError(f"use {what}", value, "it is not known", "give " + " or ".join(map(repr, choices)))
    return str(value)


def name(value: Any) -> str:
    """A pod's name: a DNS label."""
    if not isinstance(value, str) or not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", value):
        raise InvalidError("use name", value, "it is no DNS label", "give 1 to 63 of a-z, 0-9 and -, with a letter or digit at either end, such as 'model-server'")
    return value


def size(what: str, value: Any) -> int:
    """Bytes. 2GiB, 512Mi, 1073741824.

    >>> size("memory", "2GiB")
    2147483648
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", value) if isinstance(value, str) else None
    if not match or match.group(2) not in _SIZE_UNITS:
        raise InvalidError(f"use {what}", value, "it is no size", "give bytes, or a number with KiB, MiB, GiB, TiB (powers of 1024) or KB, MB, GB, TB (powers of 1000), such as '2GiB'")
    return int(float(match.group(1)) * _SIZE_UNITS[match.group(2)]) if "." in match.group(1) else int(match.group(1)) * _SIZE_UNITS[match.group(2)]


def duration_us(what: str, value: Any, low_s: float = 0, high_s: float = 86400) -> int:
    """Microseconds of a number of seconds, a text such as "1m30s", or a timedelta.

    >>> duration_us("keep_warm", "1m30s")
    90000000
    """
    seconds: Optional[float] = None
    if isinstance(value, datetime.timedelta):
        seconds = value.total_seconds()
    elif is_number(value):
        seconds = float(value)
    elif isinstance(value, str):
        parts = re.findall(r"(\d+(?:\.\d+)?)(ms|us|d|h|m|s)", value)
        if parts and "".join(number + unit for number, unit in parts) == value:
            seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
        elif re.fullmatch(r"\d+(\.\d+)?", value):
            seconds = float(value)
    if seconds is None:
        raise InvalidError(f"use {what}", value, "it is no duration", "give seconds, a timedelta, or a text with units d, h, m, s, ms, us such as '1m30s'")
    if not low_s <= seconds <= high_s:
        raise InvalidError(f"use {what}", value, f"it is not between {low_s:g} and {high_s:g} seconds", "give another duration")
    return round(seconds * 1e6)


def duration(what: str, value: Any, low_s: float = 0, high_s: float = 86400) -> str:
    return f"{duration_us(what, value, low_s, high_s)}us"


def words(what: str, value: Any, example: str) -> List[str]:
    """A non-empty list of texts; a single text is a likely mistake."""
    if isinstance(value, str):
        raise InvalidError(f"use {what}", value, "it is one text, and no shell is involved that would split it", f"give a list, such as {example}")
    if not isinstance(value, (list, tuple)) or not value:
        raise InvalidError(f"use {what}", value, "it is no list with at least one text", f"give one, such as {example}")
    for word in value:
        if not isinstance(word, (str, os.PathLike)) or "\0" in os.fspath(word):
            raise InvalidError(f"use {what}", value, f"{word!r} in it is no text", f"give a list of texts, such as {example}")
    return [os.fspath(word) for word in value]


def inner_path(what: str, value: Any) -> str:
    """An absolute path in the container."""
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(path, str) or not path.startswith("/") or ".." in path.split("/") or "\0" in path:
        raise InvalidError(f"use {what}", value, "it is no absolute path without '..'", "give the path as the container sees it, such as '/app'")
    return path


def environment(value: Any, what: str = "env") -> Dict[str, str]:
    if not isinstance(value, Mapping):
        raise InvalidError(f"use {what}", value, "it is no dict", "give names and values, such as {'MODE': 'fast'}")
    for key, entry in value.items():
        if not isinstance(key, str) or not re.fullmatch(r"[A-Za-z0-9_.-]+", key):
            raise InvalidError(f"use {what}", key, "it is no name of a variable", "give letters, digits, '_', '-' and '.'")
        if key in _RESERVED:
            raise InvalidError(f"use {what}", key, "the variable is Thaw's own", "leave it out")
        if not isinstance(entry, str) or "\0" in entry:
            raise InvalidError(f"use {what}", f"{key}={entry!r}", "the value is no text", f"give a text: {{'{key}': {str(entry)!r}}}")
    return dict(value)


def keys(what: str, value: Any, known: Sequence[str], example: str, required: str = "") -> Mapping[str, Any]:
    """A dict that has some of these keys; the daemon checks what they hold."""
    if not isinstance(value, Mapping) or not set(value) <= set(known) or (required and required not in value):
        raise InvalidError(f"use {what}", value, f"it is no dict of {', '.join(known)}", f"give one such as {example}")
    return value


def each(value: Any, what: str, check: Callable[[Any], Any], example: str) -> List[Any]:
    """A list whose entries `check` takes."""
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Sequence):
        raise InvalidError(f"use {what}", value, "it is no list", f"give one, such as {example}")
    return [check(entry) for entry in value]
