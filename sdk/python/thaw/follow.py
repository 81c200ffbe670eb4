"""Events as they happen, until a deadline."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from typing import Any, Callable, Dict, Iterator, Optional

from .client import Client


class _Closed(Exception):
    pass


class _Stream:
    """A thread that reads events and hands each to a function, until it is closed; an error that ends it comes last."""

    def __init__(self, client: Client, after: int, pod: Optional[str], handle: Callable[[Any], None]) -> None:
        self._client, self._after, self._pod, self._handle = client, after, pod, handle
        self._lock, self._socket, self._closed = threading.Lock(), None, False  # type: threading.Lock, Optional[socket.socket], bool
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _opened(self, connection: socket.socket) -> None:
        with self._lock:
            if self._closed:
                raise _Closed
            self._socket = connection

    def _read(self) -> None:
        try:
            for _, event in self._client.events("/v1/events", self._opened, follow=True, after=self._after, pod=self._pod):
                self._handle(event)
        except _Closed:
            pass
        except Exception as error:  # noqa: BLE001: whoever waits for events raises it
            self._handle(error)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)


def follow(client: Client, after: int, end: float) -> Iterator[Dict[str, Any]]:
    """Events after an id, until `end`, a time of the monotonic clock."""
    events: queue.SimpleQueue[Any] = queue.SimpleQueue()
    stream = _Stream(client, after, None, events.put)
    try:
        while True:
            event = events.get(timeout=max(0.001, end - time.monotonic()))
            if isinstance(event, Exception):
                raise event
            yield event
    except queue.Empty:
        return
    finally:
        stream.close()
