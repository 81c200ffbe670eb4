"""The daemon's API (docs/api.md) over its unix socket or over TLS."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
import time
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
_AGAIN_S = 0.1  # between a stream that broke off and the next


class Client:
    """One daemon. `address` is unix:PATH or tls:HOST:PORT; without one THAW_HOST, then the default socket. Over TLS it wants a `token`
    (THAW_TOKEN; `thaw token create` makes one), and trusts the certificates of the file `ca` (THAW_CA), or the system's.

    >>> Client("unix:/run/thaw.sock").get("/v1/version")["version"]
    '0.1.0'
    >>> Client("tls:thaw.example:7443", token="thaw_...", ca="thaw.pem")
    Client('tls:thaw.example:7443')
    """

    def __init__(self, address: Optional[str] = None, token: Optional[str] = None, ca: Optional[str] = None) -> None:
        self.address = address or os.environ.get("THAW_HOST") or DEFAULT_ADDRESS
        self._token = token or os.environ.get("THAW_TOKEN") or ""
        self._ca = ca or os.environ.get("THAW_CA") or None
        self._unix: Optional[str] = None
        self._blocked: Tuple[Any, ...] = (BlockingIOError,)
        kind, _, rest = self.address.partition(":") if isinstance(self.address, str) else ("", "", "")
        host, _, port = rest.rpartition(":")
        if kind == "unix" and rest.startswith("/"):
            self._unix, self._name = rest, "localhost"
        elif kind == "tls" and host and port.isdigit() and 0 < int(port) < 65536:
            self._peer, self._name = (host.strip("[]"), int(port)), rest
            import ssl

            self._blocked += (ssl.SSLWantReadError, ssl.SSLWantWriteError)
            try:
                self._tls = ssl.create_default_context(cafile=self._ca)
            except OSError as error:
                raise InvalidError("trust", self._ca or "the system's certificates", str(error), "name a file of PEM certificates in THAW_CA") from error
        else:
            raise InvalidError("use address", self.address, "it is no address of a daemon", "give unix:/path/to/thaw.sock or tls:HOST:PORT")
        if not self._token.isascii() or not self._token.isprintable():
            raise InvalidError("use", "THAW_TOKEN", "it is no token", "give what `thaw token create` has printed")

    def __repr__(self) -> str:
        return f"Client({self.address!r})"

    def _connect(self, timeout: float) -> socket.socket:
        try:
            if self._unix is None:
                plain = socket.create_connection(self._peer, timeout)
                try:
                    return self._tls.wrap_socket(plain, server_hostname=self._peer[0])
                except BaseException:
                    plain.close()
                    raise
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
            remedy = "start it with `thaw daemon` or `systemctl start thaw`, or name another with THAW_HOST"
            if "CERTIFICATE_VERIFY_FAILED" in str(getattr(error, "reason", "")):
                remedy = "name the daemon's certificate, or the one that signed it, in THAW_CA"
            raise UnreachableError("unavailable", "reach the daemon at", self.address, str(error), remedy) from error

    def _broken(self, what: str, error: Any) -> UnreachableError:
        return UnreachableError("unavailable", f"{what} at", self.address, f"the daemon broke off ({error or type(error).__name__})", "look at its log")

    def _headers(self) -> Dict[str, str]:
        return {"Authorization": f"Bearer {self._token}"} if self._token else {}

    def _open(self, method: str, path: str, body: Any, timeout: float,
              opened: Optional[Callable[[socket.socket], None]] = None) -> Tuple[http.client.HTTPConnection, http.client.HTTPResponse]:  # fmt: skip
        import http.client

        connection = http.client.HTTPConnection(self._name, timeout=timeout)
        connection.sock = self._connect(timeout)
        try:
            if opened:
                opened(connection.sock)
            raw = isinstance(body, bytes)
            data = body if raw or body is None else json.dumps(body).encode()
            kind = {} if data is None else {"Content-Type": "application/octet-stream" if raw else "application/json"}
            connection.request(method, path, data, {**self._headers(), **kind})
            return connection, connection.getresponse()
        except socket.timeout as error:
            connection.close()
            raise ThawError("timeout", f"{method} {path} at", self.address, f"no answer within {timeout:g} s", "look at the daemon's log") from error
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise self._broken(f"{method} {path}", error) from error
        except BaseException:
            connection.close()
            raise

    def request(self, method: str, path: str, body: Any = None, timeout: Optional[float] = None) -> Any:
        """The answer's JSON; a refusal is a ThawError.

        >>> client.request("POST", "/v1/pods/web/scale", {"replicas": 2})
        """
        connection, response = self._open(method, path, body, timeout or _TIMEOUT_S)
        with contextlib.closing(connection):
            data = self._read(response, f"{method} {path}")
            answer = _parse(data)
            if response.status >= 300:
                raise from_answer(response.status, answer)
            return answer

    def _read(self, response: http.client.HTTPResponse, what: str) -> bytes:
        import http.client

        try:
            return response.read()
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(what, error) from error

    def get(self, path: str, **query: Any) -> Any:
        """GET with a query; entries that are None are left out.

        >>> client.get("/v1/replicas", pod="web", all=True)
        """
        return self.request("GET", with_query(path, query))

    def post(self, path: str, body: Any = None, timeout: Optional[float] = None) -> Any:
        """POST of a JSON value.

        >>> client.post("/v1/pods/web/stop")
        """
        return self.request("POST", path, body, timeout)

    def put(self, path: str, body: bytes) -> Any:
        """PUT of bytes.

        >>> client.put("/v1/secrets/api-key", b"hunter2")
        """
        return self.request("PUT", path, bytes(body))

    def delete(self, path: str, **query: Any) -> Any:
        """DELETE with a query.

        >>> client.delete("/v1/pods/web", force=True)
        """
        return self.request("DELETE", with_query(path, query))

    # --- streams ---

    def lines(self, path: str, **query: Any) -> Iterator[Any]:
        """The JSON values of an answer that has one a line.

        >>> for line in client.lines("/v1/replicas/1f0c52a9be11/logs"): print(line["text"])
        """
        connection, response = self._open("GET", with_query(path, query), None, _TIMEOUT_S)
        with contextlib.closing(connection), contextlib.closing(response):
            if response.status >= 300:
                raise from_answer(response.status, _parse(self._read(response, f"GET {path}")))
            for line in self._unbroken(iter(response.readline, b""), f"GET {path}"):
                value = _parse(line)
                if isinstance(value, dict) and "error" in value:
                    raise from_answer(500, value)
                yield value

    def _unbroken(self, values: Iterator[Any], what: str) -> Iterator[Any]:
        """The same values; a broken connection is an error that says so."""
        import http.client

        while True:
            try:
                value = next(values, None)
            except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: closed by another thread
                raise self._broken(what, error) from error
            if value is None:
                return
            yield value

    def events(self, path: str, opened: Optional[Callable[[socket.socket], None]] = None, **query: Any) -> Iterator[Tuple[str, Any]]:
        """Server-sent events as (id, JSON value), until the stream ends. A broken connection is taken up again where events have ids,
        so that nothing is missed; of a log it is an UnreachableError. `opened` gets each connection, and may raise.

        >>> for _, event in client.events("/v1/events", follow=True): print(event["message"])
        """
        while True:
            connection, response = self._open("GET", with_query(path, query), None, _TIMEOUT_S, opened)
            with contextlib.closing(connection), contextlib.closing(response):
                if response.status >= 300:
                    raise from_answer(response.status, _parse(self._read(response, f"GET {path}")))
                try:
                    for kind, identifier, value in self._unbroken(_server_sent(response), f"GET {path}"):
                        if kind == "end":
                            return
                        if kind == "error":
                            raise from_answer(500, value)
                        if identifier and not path.endswith("/logs"):
                            query["after"] = identifier
                        yield identifier, value
                except UnreachableError:
                    if "after" not in query:
                        raise
            if "after" not in query:
                raise self._broken(f"GET {path}", "the stream has no end")
            time.sleep(_AGAIN_S)

    def exec(self, replica: str, argv: Sequence[str], input: Union[bytes, str, None] = None,  # noqa: A002: as subprocess has it
             timeout: Optional[float] = None) -> Tuple[int, bytes, bytes]:  # fmt: skip
        """Runs a program in a replica to its end: its exit code as a shell reports it, stdout, stderr.

        >>> client.exec("1f0c52a9be11", ["cat"], input="hello")
        (0, b'hello', b'')
        """
        if not isinstance(input, (str, bytes, bytearray, memoryview, type(None))):
            raise InvalidError("use input", input, "it is neither text nor bytes", "give one of them, or None")
        data = input.encode() if isinstance(input, str) else bytes(input or b"")
        what = f"run '{' '.join(argv)}'"
        with contextlib.closing(self._connect(_TIMEOUT_S)) as connection:
            talk = _Talk(connection, self._blocked)
            body = json.dumps({"argv": list(argv)}).encode()
            headers = {"Host": self._name, "Connection": "Upgrade", "Upgrade": "thaw-exec", "Content-Type": "application/json", "Content-Length": str(len(body)), **self._headers()}
            talk.send(f"POST /v1/replicas/{segment(replica)}/exec HTTP/1.1\r\n{''.join(f'{name}: {value}' + chr(13) + chr(10) for name, value in headers.items())}\r\n".encode() + body)
            try:
                talk.end = time.monotonic() + _TIMEOUT_S
                status, answered = _head(talk.until(b"\r\n\r\n"))
                if status != 101:
                    raise from_answer(status, _parse(talk.take(int(answered.get("content-length", 0)))))
                talk.end = None if timeout is None else time.monotonic() + timeout
                pieces = [data[start : start + _PIECE] for start in range(0, len(data), _PIECE)]
                talk.send(b"".join(_FRAME.pack(_STDIN, len(piece)) + piece for piece in pieces) + _FRAME.pack(_STDIN_EOF, 0))
                return _read_frames(talk)
            except socket.timeout:
                raise ThawError("timeout", "run", " ".join(argv), f"it has not ended within {timeout or _TIMEOUT_S:g} s", "give it more time") from None
            except (OSError, ValueError) as error:
                if isinstance(error, ThawError):
                    raise
                raise self._broken(what, error) from error

    # --- waiting ---

    def last_event(self) -> int:
        """The id of the newest event.

        >>> client.last_event()
        1042
        """
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


def _head(text: bytes) -> Tuple[int, Dict[str, str]]:
    first, *lines = text.decode("latin-1").split("\r\n")
    words = first.split()
    if len(words) < 2 or not words[1].isdigit():
        raise ValueError(f"it answered {first[:100]!r}")
    return int(words[1]), {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


class _Talk:
    """Sends and receives at the same time: a program that writes before it has read everything would otherwise block both sides. On one
    thread, since a TLS connection is for one at a time."""

    def __init__(self, connection: socket.socket, blocked: Tuple[Any, ...]) -> None:
        self._connection, self._blocked = connection, blocked
        self._in, self._out = bytearray(), memoryview(b"")
        self.end: Optional[float] = None  # of the monotonic clock
        connection.setblocking(False)

    def send(self, data: bytes) -> None:
        """What is still to be sent goes first."""
        self._out = memoryview(bytes(self._out) + data)

    def take(self, count: int) -> bytes:
        while len(self._in) < count:
            self._move()
        data = bytes(self._in[:count])
        del self._in[:count]
        return data

    def until(self, mark: bytes) -> bytes:
        while mark not in self._in:
            self._move()
        return self.take(self._in.index(mark) + len(mark))

    def _move(self) -> None:
        try:
            piece = self._connection.recv(_PIECE)
            if not piece:
                raise ConnectionError("it closed the connection")
            self._in += piece
            return
        except self._blocked:
            pass
        if self._out:
            try:
                self._out = self._out[self._connection.send(self._out[:_PIECE]) :]
                return
            except self._blocked:
                pass
            except OSError:
                self._out = memoryview(b"")  # nobody reads it any more: what it has said still comes
        left = None if self.end is None else self.end - time.monotonic()
        poll = select.poll()
        poll.register(self._connection, select.POLLIN | (select.POLLOUT if self._out else 0))
        if (left is not None and left <= 0) or not poll.poll(None if left is None else left * 1000):
            raise socket.timeout


def _read_frames(talk: _Talk) -> Tuple[int, bytes, bytes]:
    out, err = bytearray(), bytearray()
    while True:
        kind, length = _FRAME.unpack(talk.take(_FRAME.size))
        payload = talk.take(length)
        if kind == _STDOUT:
            out += payload
        elif kind == _STDERR:
            err += payload
        elif kind == _EXIT:
            return int(_parse(payload)["exit_code"]), bytes(out), bytes(err)
        elif kind == _ERROR:
            raise from_answer(500, _parse(payload))
