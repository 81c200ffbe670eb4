"""The daemon's API (docs/api.md) over its unix socket or a loopback port."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import threading
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple, Union
from urllib.parse import quote, urlencode

from .errors import InvalidError, ThawError, UnreachableError, from_answer

if TYPE_CHECKING:
    import http.client

DEFAULT_ADDRESS = "unix:/var/lib/thaw/thaw.sock"
_TIMEOUT_S = 60.0  # for a daemon that does not answer; streams say something every 15 s
_FRAME = struct.Struct(">BI")
_STDIN, _STDOUT, _STDERR, _STDIN_EOF, _RESIZE, _SIGNAL, _EXIT, _ERROR = range(1, 9)
_PIECE = 1 << 16


class Client:
    """One daemon. `address` is unix:PATH or tcp:HOST:PORT; without one THAW_HOST, then the default socket.

    >>> Client("unix:/run/thaw.sock").get("/v1/version")["version"]
    '0.1.0'
    """

    def __init__(self, address: Optional[str] = None) -> None:
        self.address = address or os.environ.get("THAW_HOST") or DEFAULT_ADDRESS
        kind, _, rest = self.address.partition(":")
        host, _, port = rest.rpartition(":")
        if kind == "unix" and rest.startswith("/"):
            self._unix: Optional[str] = rest
        elif kind == "tcp" and host and port.isdigit() and 0 < int(port) < 65536:
            self._unix, self._tcp = None, (host.strip("[]"), int(port))
        else:
            raise InvalidError("use address", self.address, "it is no address of a daemon", "give unix:/path/to/thaw.sock or tcp:127.0.0.1:7070")

    def __repr__(self) -> str:
        return f"Client({self.address!r})"

    def _connect(self, timeout: float) -> socket.socket:
        try:
            if self._unix is None:
                return socket.create_connection(self._tcp, timeout)
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.settimeout(timeout)
                connection.connect(self._unix)
            except OSError:
                connection.close()
                raise
            return connection
        except PermissionError as error:
            raise UnreachableError("denied", "reach the daemon at", self.address, str(error), "use sudo, or join the group thaw") from error
        except OSError as error:
            raise UnreachableError("unavailable", "reach the daemon at", self.address, str(error),
                                   "start it with `thaw daemon` or `systemctl start thaw`, or name another with THAW_HOST") from error  # fmt: skip

    def _open(self, method: str, path: str, body: Any, timeout: float,
              opened: Optional[Callable[[socket.socket], None]] = None) -> Tuple[http.client.HTTPConnection, http.client.HTTPResponse]:  # fmt: skip
        import http.client

        connection = http.client.HTTPConnection("localhost", timeout=timeout)
        connection.sock = self._connect(timeout)
        if opened:
            opened(connection.sock)
        try:
            data = None if body is None else json.dumps(body).encode()
            connection.request(method, path, data, {"Content-Type": "application/json"} if data is not None else {})
            return connection, connection.getresponse()
        except socket.timeout as error:
            connection.close()
            raise ThawError("timeout", f"{method} {path} at", self.address, f"no answer within {timeout:g} s", "look at the daemon's log") from error
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise UnreachableError("unavailable", f"{method} {path} at", self.address, f"the daemon broke off ({error or type(error).__name__})", "look at its log") from error

    def request(self, method: str, path: str, body: Any = None, timeout: Optional[float] = None) -> Any:
        """The answer's JSON; a refusal is a ThawError.

        >>> client.request("POST", "/v1/pods/web/scale", {"replicas": 2})
        """
        connection, response = self._open(method, path, body, timeout or _TIMEOUT_S)
        with contextlib.closing(connection):
            try:
                data = response.read()
            except OSError as error:
                raise UnreachableError("unavailable", f"{method} {path} at", self.address, f"the daemon broke off ({error})", "look at its log") from error
            answer = _parse(data)
            if response.status >= 300:
                raise from_answer(response.status, answer)
            return answer

    def get(self, path: str, **query: Any) -> Any:
        """GET with a query; entries that are None are left out."""
        return self.request("GET", with_query(path, query))

    def post(self, path: str, body: Any = None, timeout: Optional[float] = None) -> Any:
        return self.request("POST", path, body, timeout)

    def delete(self, path: str, **query: Any) -> Any:
        return self.request("DELETE", with_query(path, query))

    # --- streams ---

    def lines(self, path: str, **query: Any) -> Iterator[Any]:
        """The JSON values of an answer that has one a line."""
        connection, response = self._open("GET", with_query(path, query), None, _TIMEOUT_S)
        with contextlib.closing(connection), contextlib.closing(response):
            if response.status >= 300:
                raise from_answer(response.status, _parse(response.read()))
            for line in response:
                value = _parse(line)
                if isinstance(value, dict) and "error" in value:
                    raise from_answer(500, value)
                yield value

    def events(self, path: str, opened: Optional[Callable[[socket.socket], None]] = None, **query: Any) -> Iterator[Tuple[str, Any]]:
        """Server-sent events as (id, JSON value), until the stream ends. A broken connection is taken up again where events have ids,
        so that nothing is missed. `opened` gets each connection: to shut it down from another thread ends the stream."""
        last: Optional[str] = None
        while True:
            if last is not None:
                query["after"] = last
            connection, response = self._open("GET", with_query(path, query), None, _TIMEOUT_S, opened)
            with contextlib.closing(connection), contextlib.closing(response):
                if response.status >= 300:
                    raise from_answer(response.status, _parse(response.read()))
                try:
                    for kind, identifier, value in _server_sent(response):
                        if kind == "end":
                            return
                        if kind == "error":
                            raise from_answer(500, value)
                        last = identifier or last
                        yield identifier, value
                except (OSError, ValueError):  # ValueError: closed by another thread
                    pass
            if opened or last is None or "/logs" in path:
                return

    def exec(self, replica: str, argv: Sequence[str], input: Union[bytes, str, None] = None,  # noqa: A002: as subprocess has it
             timeout: Optional[float] = None) -> Tuple[int, bytes, bytes]:  # fmt: skip
        """Runs a program in a replica to its end: its exit code as a shell reports it, stdout, stderr."""
        data = input.encode() if isinstance(input, str) else input or b""
        with contextlib.closing(self._connect(_TIMEOUT_S)) as connection:
            body = json.dumps({"argv": list(argv)}).encode()
            head = (f"POST /v1/replicas/{quote(replica, safe='')}/exec HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: thaw-exec\r\n"
                    f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n")  # fmt: skip
            connection.sendall(head.encode() + body)
            stream = connection.makefile("rb")
            status = int((stream.readline().split() or [b"", b"0"])[1])
            headers = dict(line.decode("latin-1").strip().lower().split(": ", 1) for line in iter(stream.readline, b"\r\n") if b": " in line)
            if status != 101:
                raise from_answer(status, _parse(stream.read(int(headers.get("content-length", 0)))))
            connection.settimeout(timeout)
            # Beside reading: a program that writes before it has read everything would otherwise block both sides.
            writer = threading.Thread(target=_send_input, args=(connection, data), daemon=True)
            writer.start()
            try:
                return _read_frames(stream, argv)
            except socket.timeout:
                raise ThawError("timeout", "run", " ".join(argv), f"it has not ended within {timeout:g} s", "give it more time") from None
            finally:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
                writer.join()

    # --- waiting ---

    def last_event(self) -> int:
        return int(self.get("/v1/version")["last_event"])


def _parse(data: bytes) -> Any:
    try:
        return json.loads(data) if data else None
    except ValueError:
        return data.decode(errors="replace")


def with_query(path: str, query: Mapping[str, Any]) -> str:
    given: Dict[str, str] = {}
    for key, value in query.items():
        if value is not None:
            given[key] = str(value).lower() if isinstance(value, bool) else str(value)
    return path + ("?" + urlencode(given) if given else "")


def segment(name: str) -> str:
    """A name as a part of a path."""
    return quote(name, safe="")


def _server_sent(response: http.client.HTTPResponse) -> Iterator[Tuple[str, str, Any]]:
    kind, identifier, data = "message", "", []  # type: str, str, List[str]
    for raw in iter(response.readline, b""):
        line = raw.decode().rstrip("\r\n")
        if line.startswith("data:"):
            data.append(line[5:].strip())
        elif line.startswith("event:"):
            kind = line[6:].strip()
        elif line.startswith("id:"):
            identifier = line[3:].strip()
        elif not line:
            if data or kind != "message":
                yield kind, identifier, _parse("\n".join(data).encode())
            kind, identifier, data = "message", "", []


def _send_input(connection: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):  # the program has ended: its exit frame says how
        for start in range(0, len(data), _PIECE):
            piece = data[start : start + _PIECE]
            connection.sendall(_FRAME.pack(_STDIN, len(piece)) + piece)
        connection.sendall(_FRAME.pack(_STDIN_EOF, 0))


def _read_frames(stream: Any, argv: Sequence[str]) -> Tuple[int, bytes, bytes]:
    out, err = bytearray(), bytearray()
    while True:
        head = stream.read(_FRAME.size)
        if len(head) < _FRAME.size:
            raise UnreachableError("unavailable", "run", " ".join(argv), "the daemon broke off", "look at its log")
        kind, length = _FRAME.unpack(head)
        payload = stream.read(length)
        if kind == _STDOUT:
            out += payload
        elif kind == _STDERR:
            err += payload
        elif kind == _EXIT:
            return int(_parse(payload)["exit_code"]), bytes(out), bytes(err)
        elif kind == _ERROR:
            raise from_answer(500, _parse(payload))
