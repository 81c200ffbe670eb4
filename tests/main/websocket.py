"""A client of RFC 6455, frame by frame."""

import base64
import hashlib
import os
import struct

from thawtest import check, equal

CONTINUED, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class WebSocket:
    def __init__(self, connection, path="/", host="a.example.com"):
        """`connection` is a connected socket."""
        self.connection = connection
        self.stream = connection.makefile("rb")
        key = base64.b64encode(os.urandom(16)).decode()
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
                           "Sec-WebSocket-Version: 13\r\n\r\n".encode())  # fmt: skip
        answer = self.stream.readline()
        check(answer.startswith(b"HTTP/1.1 101 "), f"answer to the upgrade: {answer}")
        headers = {}
        while (line := self.stream.readline()) not in (b"\r\n", b""):
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        accepted = base64.b64encode(hashlib.sha1((key + GUID).encode()).digest()).decode()
        equal(headers.get("sec-websocket-accept"), accepted, f"Sec-WebSocket-Accept among {headers}")

    def send(self, kind, payload=b"", last=True):
        size, mask = len(payload), os.urandom(4)
        head = bytes([kind | (0x80 if last else 0)])
        if size < 126:
            head += bytes([0x80 | size])
        elif size < 65536:
            head += struct.pack(">BH", 0x80 | 126, size)
        else:
            head += struct.pack(">BQ", 0x80 | 127, size)
        key = int.from_bytes(mask * (size // 4 + 1), "big") >> 8 * (4 - size % 4)
        masked = (int.from_bytes(payload, "big") ^ key).to_bytes(size, "big") if size else b""
        self.connection.sendall(head + mask + masked)

    def read(self, size):
        data = self.stream.read(size)
        equal(len(data), size, "bytes of a frame")
        return data

    def frame(self):
        """The next one: its kind, whether it is the message's last, its payload."""
        first, second = self.read(2)
        check(not second & 0x80, "a server's frame is masked")
        size = second & 0x7F
        if size == 126:
            (size,) = struct.unpack(">H", self.read(2))
        elif size == 127:
            (size,) = struct.unpack(">Q", self.read(8))
        return first & 0x0F, bool(first & 0x80), self.read(size)

    def message(self):
        """The next whole one: its kind and payload. Control frames in between are not expected."""
        kind, last, payload = self.frame()
        parts = [payload]
        while not last:
            more, last, payload = self.frame()
            equal(more, CONTINUED, "kind of a later frame of a message")
            parts.append(payload)
        return kind, b"".join(parts)

    def ended(self):
        """Whether the other end has closed it; then this one does, too."""
        over = self.stream.read(1) == b""
        self.stream.close()
        self.connection.close()
        return over
