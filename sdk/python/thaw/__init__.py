"""Thaw: pods that start warm.

    from thaw import Image, Pod

    def warm() -> bool:                    # called in the container, in a process of its own
        return urlopen("http://127.0.0.1:8000/health").status == 200

    pod = Pod(name="model", image=Image.debian("bookworm").apt("python3").add("."), entrypoint=["python3", "server.py"],
              ports=[8000], checkpoint_condition=warm)

`thaw deploy app.py:pod` builds the image, starts the pod, checkpoints it when it is warm, and starts every later replica from there.
In the container, `thaw.ready()`, `thaw.wait_for_restore()` and `@thaw.on_restore` speak to Thaw through files: no daemon is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, List

# A program in a container needs only a few of these, and restarts often enough to mind the time that the others take to import.
_HOMES = {
    "container": ["Identity", "checkpoint_enabled", "identity", "inside", "on_restore", "ready", "restored", "wait_for_restore"],
    "conditions": ["Condition", "after", "all_", "any_", "exec_", "file", "http", "log", "notify", "python", "tcp", "workers"],
    "errors": ["InvalidError", "ThawError", "UnreachableError"],
    "client": ["Client"],
    "image": ["Image"],
    "pod": ["Checkpoint", "Deployment", "Event", "ExecResult", "LogLine", "Pod", "Replica", "Secret"],
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__version__ = "0.1.0"
__all__ = sorted(_HOME_OF)

if TYPE_CHECKING:
    from .client import Client
    from .conditions import Condition, after, all_, any_, exec_, file, http, log, notify, python, tcp, workers
    from .container import Identity, checkpoint_enabled, identity, inside, on_restore, ready, restored, wait_for_restore
    from .errors import InvalidError, ThawError, UnreachableError
    from .image import Image
    from .pod import Checkpoint, Deployment, Event, ExecResult, LogLine, Pod, Replica, Secret


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'thaw' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> List[str]:
    return sorted([*globals(), *_HOME_OF])
