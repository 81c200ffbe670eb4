"""What the Python programs here have in common: a small HTTP server that tells the program's state.

  GET  /health   200
  GET  /state    what must survive a checkpoint, and stand still unless it is changed
  POST /change   changes it
  GET  /live     {"errors": [], "ticks": {name: number}}: numbers that rise as long as the program works
"""

import http.server
import json
import os
import pathlib
import resource
import signal
import socket
import socketserver


def attributes():
    """What the kernel knows of this process and a restore must bring back."""
    status = dict(line.split(":\t", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
    umask = os.umask(0)
    os.umask(umask)
    names = ("Cap", "NoNewPrivs", "Seccomp", "SigBlk", "SigIgn", "SigCgt", "Groups", "Uid", "Gid", "NSpid", "NSsid")
    return {
        "status": {key: value for key, value in status.items() if key.startswith(names)},
        "umask": umask,
        "cwd": os.getcwd(),
        "command": pathlib.Path("/proc/self/cmdline").read_text(),
        "environment": dict(os.environ),
        "nice": os.nice(0),
        "cpus": sorted(os.sched_getaffinity(0)),
        "limits": {name: resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name.startswith("RLIMIT_")},
        "descriptors": sorted(int(name) for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")),
        "mounts": sorted(
            [fields[4], fields[5], *fields[fields.index("-") + 1 :][:1]]
            for fields in map(str.split, pathlib.Path("/proc/self/mountinfo").read_text().splitlines())
        ),
    }


class Handler(http.server.BaseHTTPRequestHandler):
    timeout = 20

    def do_GET(self):
        self.answer(None)

    def do_POST(self):
        self.answer(self.rfile.read(int(self.headers.get("Content-Length", 0))).decode())

    def answer(self, body):
        route = self.server.routes.get(self.path)
        if not route:
            self.send_error(404)
            return
        try:
            status, value = 200, route(body) if body is not None else route()
        except Exception as error:  # noqa: BLE001: the test shows it
            status, value = 500, f"{type(error).__name__}: {error}"
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


class Server(http.server.HTTPServer):
    request_queue_size = 64

    def __init__(self, address, port, routes, listener=None):
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.routes = routes
        super().__init__((address, port), Handler, bind_and_activate=listener is None)
        if listener:
            self.socket.close()
            self.socket = listener

    def server_bind(self):
        # The parent's own asks a resolver for its name.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]


class ThreadingServer(socketserver.ThreadingMixIn, Server):
    daemon_threads = True


def serve(state, change, live=None, more=None, address="0.0.0.0", port=8000, server=Server, listener=None):
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    routes = {"/health": lambda: "ok", "/state": state, "/change": change, "/live": live or (lambda: {}), **(more or {})}
    server(address, port, routes, listener).serve_forever()
