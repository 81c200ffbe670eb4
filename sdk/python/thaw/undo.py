"""Steps that are taken back when what follows them fails."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Callable, List, Optional, Type

from .errors import ThawError, add_note


class Undo:
    """Calls what was added, last one first, when its block ends with an exception; what fails meanwhile never hides that one.

    >>> with Undo() as undo:
    ...     make()
    ...     undo.add(unmake)
    ...     use()                     # fails: unmake() is called, and the error of use() goes on
    """

    def __init__(self) -> None:
        self._steps: List[Callable[[], Any]] = []

    def add(self, step: Callable[[], Any]) -> None:
        self._steps.append(step)

    def __enter__(self) -> Undo:
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], error: Optional[BaseException], _: Optional[TracebackType]) -> None:
        if error is None:
            return
        for step in reversed(self._steps):
            try:
                step()
            except Exception as another:  # noqa: BLE001: the first one is what the user has to know
                add_note(error, f"cleaning up after this failed, too: {another}")
                if isinstance(error, ThawError):
                    error.cleanup_errors.append(another)
