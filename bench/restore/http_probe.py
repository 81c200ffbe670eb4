"""The client: the first 200, and the hundred requests after it, over a bare socket."""

import json
import socket
import time

from .host import BenchError

REFUSED_PAUSE = 0.0005  # nobody listens yet
LOADING_PAUSE = 0.005  # the server answers 503 while it loads: do not disturb it


class Connection:
    """One kept-alive connection."""

    def __init__(self, sock):
        self.socket = sock
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def get(self, path):
        asked = time.monotonic()
        self.socket.sendall(f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())
        received = self._receive()
        self.first_byte_ms = (time.monotonic() - asked) * 1000  # after the request's own first byte
        while b"\r\n\r\n" not in received:
            received += self._receive()
        head, body = received.split(b"\r\n\r\n", 1)
        length = next(
            (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
        )
        while len(body) < length:
            body += self._receive()
        return int(head.split(None, 2)[1]), body

    def _receive(self):
        part = self.socket.recv(65536)
        if not part:
            raise ConnectionResetError("the server closed the connection")
        return part

    def close(self):
        self.socket.close()


class Answer:
    def __init__(self, at, body, connection):
        self.at = at  # time.monotonic() of its last byte
        self.body = body
        self.connection = connection
        self.first_byte_ms = connection.first_byte_ms


def first_200(port, path, seconds, make_socket=socket.socket, alive=lambda: True):
    """Asks until the answer is 200. A held connection is one long ask."""
    end = time.monotonic() + seconds
    last = "nothing listens"
    while time.monotonic() < end:
        sock = make_socket()
        sock.settimeout(max(0.001, end - time.monotonic()))
        connection = Connection(sock)
        try:
            sock.connect(("127.0.0.1", port))
            status, body = connection.get(path)
            if status == 200:
                return Answer(time.monotonic(), body, connection)
            last = f"it answers {status}: {body[:200].decode(errors='replace').strip()}"
            pause = LOADING_PAUSE
        except OSError as error:
            last = str(error)
            pause = REFUSED_PAUSE
        connection.close()
        if not alive():
            raise BenchError(f"the server is gone ({last})")
        time.sleep(pause)
    raise BenchError(f"no 200 from port {port} within {seconds} s: {last}")


def more(connection, path, count):
    """Milliseconds of each of the next requests."""
    took = []
    for _ in range(count):
        begun = time.monotonic()
        status, _ = connection.get(path)
        took.append((time.monotonic() - begun) * 1000)
        if status != 200:
            raise BenchError(f"a later request was answered with {status}")
    return took


def check_body(path, body, heap_mib, known):
    """That the server is the right one and its memory whole. `known` remembers checksums by heap."""
    if path != "/":
        return
    answer = json.loads(body)
    if answer["heap_mib"] != heap_mib:
        raise BenchError(f"a server with {answer['heap_mib']} MiB answered in place of one with {heap_mib} MiB")
    expected = known.setdefault(heap_mib, answer["checksum"])
    if answer["checksum"] != expected:
        raise BenchError(f"the memory is not what it was: checksum {answer['checksum']}, expected {expected}")
