"""The program in the pods of the traffic tests: HTTP/1.1 on 8000, and on 9000 a line that says who is connected.

/seen         JSON: what it was asked, and by whom
/echo         the request's body, in chunks as they come
/length/N     N bytes with a length; /endless/N without one, until the end
/early        an answer before the body was read
/slow/N       the same as /seen, after N seconds
/cut          fewer bytes than it promised
/hang         nothing, until the client goes
/upgrade      101, and then every byte comes back

HOLDS: landlock (a ruleset, which CRIU cannot dump). LEAVES: the first request after a restore ends it.
"""

import hashlib
import http.server
import json
import os
import signal
import socket
import socketserver
import sys
import threading
import time


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def pieces(self):
        """The request's body as it comes."""
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length", 0))
        while left:
            piece = self.rfile.read1(min(left, 65536))
            if not piece:
                raise ConnectionError("cut off")
            left -= len(piece)
            yield piece

    def answer(self, body, status=200, **headers):
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        if "LEAVES" in os.environ and os.path.exists("/run/thaw/restored"):
            os._exit(3)
        name, _, value = self.path.split("?")[0].strip("/").partition("/")
        if name == "echo":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for piece in self.pieces():
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")
        elif name in ("length", "endless"):
            size = int(value)
            self.send_response(200)
            if name == "length":
                self.send_header("Content-Length", value)
            self.end_headers()
            block = bytes(range(256)) * 1024
            while size > 0:
                size -= self.wfile.write(block[: min(size, len(block))])
            self.close_connection = True
        elif name == "early":
            self.answer(b"too much\n", 413)
            self.close_connection = True
        elif name == "cut":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"0123456789")
            self.close_connection = True
        elif name == "slow":
            time.sleep(float(value))
            self.answer(b"slow\n")
        elif name == "hang":
            self.rfile.read(1)
            self.close_connection = True
        elif name == "upgrade":
            self.send_response(101)
            self.send_header("Connection", "Upgrade")
            self.send_header("Upgrade", self.headers["Upgrade"])
            self.end_headers()
            while piece := self.rfile.read1(65536):
                self.wfile.write(piece)
            self.close_connection = True
        else:
            digest = hashlib.sha256()
            size = 0
            for piece in self.pieces():
                digest.update(piece)
                size += len(piece)
            with open("/run/thaw/identity.json", encoding="utf-8") as file:
                identity = json.load(file)
            seen = {"method": self.command, "path": self.path, "headers": self.headers.items(), "peer": self.client_address,
                    "size": size, "sha256": digest.hexdigest(), "identity": identity}  # fmt: skip
            self.answer(json.dumps(seen).encode(), Content_Type="application/json")

    do_POST = do_PUT = do_HEAD = do_DELETE = do_GET


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    request_queue_size = int(os.environ.get("BACKLOG", 1024))

    def handle_error(self, *_):
        pass


def tell_who():
    listener = socket.create_server(("0.0.0.0", 9000), backlog=1024)
    while True:
        client, peer = listener.accept()
        threading.Thread(target=echo, args=(client, peer), daemon=True).start()


def echo(client, peer):
    try:
        client.sendall(f"{peer[0]}\n".encode())
        while piece := client.recv(65536):
            client.sendall(piece)
    except OSError:
        pass
    client.close()


if os.environ.get("HOLDS") == "landlock":
    import ctypes

    ruleset = ctypes.CDLL(None).syscall(444, (ctypes.c_uint64 * 1)(1), 8, 0)
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
time.sleep(float(os.environ.get("STARTS_IN", 0)))
threading.Thread(target=tell_who, daemon=True).start()
print("serving", flush=True)
Server(("", int(sys.argv[1]) if len(sys.argv) > 1 else 8000), Handler).serve_forever()
