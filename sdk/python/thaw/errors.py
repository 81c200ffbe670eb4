"""What goes wrong, said so that a person knows what to do."""

from __future__ import annotations

from typing import Any, List, Optional


class ThawError(Exception):
    """Something could not be done. Its text says what, to what, why, and what to do.

    `code` is one of the API's: invalid, not_found, conflict, unavailable, timeout, ...

    >>> raise ThawError("not_found", "find pod", "web", "there is none of that name", "deploy it first")
    Traceback (most recent call last):
    thaw.errors.ThawError: cannot find pod 'web': there is none of that name; deploy it first
    """

    def __init__(self, code: str, action: str, object: str, cause: str, remedy: str = "", message: str = "") -> None:  # noqa: A002
        self.code, self.action, self.object, self.cause, self.remedy = code, action, object, cause, remedy
        named = f" '{object}'" if object else ""
        super().__init__(message or f"cannot {action}{named}: {cause}" + (f"; {remedy}" if remedy else ""))
        self.log: List[str] = []  # the last lines of the replica that failed, where there is one
        self.cleanup_errors: List[BaseException] = []  # what could not be put back after this error


class InvalidError(ThawError, ValueError):
    """An argument is wrong.

    >>> from thaw import http
    >>> http(port=70000)
    Traceback (most recent call last):
    thaw.errors.InvalidError: cannot use port '70000': it is not a port; give a whole number from 1 to 65535
    """

    def __init__(self, action: str, object: Any, cause: str, remedy: str = "") -> None:  # noqa: A002
        super().__init__("invalid", action, object if isinstance(object, str) else repr(object), cause, remedy)


class UnreachableError(ThawError):
    """No daemon answers, or it broke off.

    >>> try: pod.deploy()
    ... except UnreachableError as error: print(error)
    """


def from_answer(status: int, body: Any) -> ThawError:
    """The error that the daemon's answer tells of."""
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return ThawError("internal", "use the answer", f"status {status}", str(body)[:500])
    code, object, message = error.get("code", "internal"), error.get("object", ""), error.get("message", "")  # noqa: A001
    if code == "invalid":
        found: ThawError = InvalidError(error.get("action", ""), object, error.get("cause", ""), error.get("remedy", ""))
        found.args = (message,)
        return found
    return ThawError(code, error.get("action", ""), object, error.get("cause", ""), error.get("remedy", ""), message)


def add_note(error: BaseException, text: str) -> None:
    """As BaseException.add_note, which Python has since 3.11."""
    if hasattr(error, "add_note"):
        error.add_note(text)
        return
    notes: Optional[List[str]] = getattr(error, "__notes__", None)
    error.__notes__ = (notes or []) + [text]  # type: ignore[attr-defined]
