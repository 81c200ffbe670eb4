"""Stands for a model server: slow to start, large in memory, quick to answer.

It imports what such a server imports, fills HEAP_MIB MiB (default 200) with weights, runs one
small inference to warm up, and serves on PORT (default 8000):

    /health       200 `ok` once it is warm, 503 before
    /             who answers, as JSON: pod and replica (from Thaw), host name, a checksum of some weights
    /infer        one forward pass through the first layers
    /sample       a random number, as a model that samples its answers would draw
    /reseed       makes /sample's generator anew; from inside the container only, for `after_restore`
    /touch?mib=N  reads N MiB of the weights, one byte a page; `&write=1` writes them

SIGTERM lets requests in flight finish, then ends it with status 0.
"""

import asyncio  # noqa: F401  the unused ones stand for what a model server loads at its start
import concurrent.futures
import email.message  # noqa: F401
import hashlib
import http.server
import json
import logging
import os
import random
import signal
import socket
import socketserver
import sqlite3  # noqa: F401
import ssl  # noqa: F401
import sys
import threading
import time
import urllib.parse
import uuid  # noqa: F401

import numpy as np

IDENTITY = "/run/thaw/identity.json"
WIDTH = 2048  # a layer is WIDTH x WIDTH weights of one byte: 4 MiB
LAYER_BYTES = WIDTH * WIDTH
WARM_LAYERS = 4
PAGE = 4096

log = logging.getLogger("model-server")


class Model:
    """Weights quantised to 8 bits: random, so that they neither compress nor repeat."""

    def __init__(self, heap_mib):
        self.layers = []
        rng = np.random.default_rng(77)
        left = heap_mib << 20
        while left > 0:
            rows = -(-min(left, LAYER_BYTES) // WIDTH)
            self.layers.append(rng.integers(-128, 128, size=(rows, WIDTH), dtype=np.int8))
            left -= rows * WIDTH

    def infer(self):
        """One forward pass through the first layers; the same value every time."""
        x = np.linspace(-1, 1, WIDTH, dtype=np.float32)
        for layer in self.layers[:WARM_LAYERS]:
            x = np.tanh(layer.astype(np.float32) @ x[: layer.shape[1]] / 1024)
            x = np.resize(x, WIDTH)
        return float(x.sum())

    def checksum(self):
        """Over 64 weights spread evenly over the first layer and the last."""
        digest = hashlib.sha256()
        for layer in (self.layers[0], self.layers[-1]):
            digest.update(layer.reshape(-1)[:: max(1, layer.size // 64)].tobytes())
        return digest.hexdigest()[:16]

    def touch(self, mib, write):
        """Reads or writes a byte in each page of the first `mib` MiB; how many MiB there were."""
        left = mib << 20
        total = 0
        for layer in self.layers:
            if left <= 0:
                break
            pages = layer.reshape(-1)[: min(left, layer.size) : PAGE]
            if write:
                np.negative(pages, out=pages)
                np.negative(pages, out=pages)
            total += int(pages.sum(dtype=np.int64))
            left -= layer.size
        return mib - max(left, 0) // (1 << 20), total


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address):
        self.model = None  # set once it is loaded and warm
        self.stopping = False
        self.requests = 0
        self.in_flight = 0
        self.changed = threading.Condition()
        super().__init__(address, Handler)

    def server_bind(self):
        socketserver.TCPServer.server_bind(self)  # HTTPServer's asks DNS for a name first
        self.server_name, self.server_port = self.server_address[:2]

    def stop(self, *_):
        if self.stopping:
            return
        self.stopping = True
        self.socket.shutdown(socket.SHUT_RDWR)  # wakes the accepting thread

    def drain(self, seconds):
        with self.changed:
            self.changed.wait_for(lambda: self.in_flight == 0, seconds)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body leave in one segment
    disable_nagle_algorithm = True

    def do_GET(self):
        server = self.server
        with server.changed:
            server.requests += 1
            server.in_flight += 1
        try:
            self.answer(server)
        finally:
            with server.changed:
                server.in_flight -= 1
                server.changed.notify_all()

    def answer(self, server):
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        model = server.model
        if model is None:
            self.send(503, "text/plain", b"loading\n")
        elif url.path == "/health":
            self.send(200, "text/plain", b"ok\n")
        elif url.path == "/":
            self.send_json(self.describe(server, model))
        elif url.path == "/infer":
            self.send_json({"result": model.infer()})
        elif url.path == "/sample":
            self.send_json({"number": random.getrandbits(64)})
        elif url.path == "/reseed" and self.client_address[0] == "127.0.0.1":
            random.seed(os.urandom(32))
            self.send(200, "text/plain", b"ok\n")
        elif url.path == "/touch":
            try:
                mib = int(query.get("mib", "0"))
            except ValueError:
                self.send(400, "text/plain", b"mib must be a whole number\n")
                return
            begun = time.monotonic()
            touched, total = model.touch(mib, query.get("write") == "1")
            took = (time.monotonic() - begun) * 1000
            self.send_json({"mib": touched, "sum": total, "ms": round(took, 3)})
        else:
            self.send(404, "text/plain", b"not found\n")

    @staticmethod
    def describe(server, model):
        try:
            with open(IDENTITY, encoding="utf-8") as file:
                identity = json.load(file)
        except (OSError, ValueError):
            identity = {}
        return {
            "pod": identity.get("pod"),
            "replica": identity.get("replica"),
            "identity": identity,
            "hostname": socket.gethostname(),
            "checksum": model.checksum(),
            "requests": server.requests,
            "heap_mib": sum(layer.nbytes for layer in model.layers) >> 20,
            "pid": os.getpid(),
        }

    def send_json(self, value):
        self.send(200, "application/json", json.dumps(value).encode() + b"\n")

    def send(self, status, kind, body):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if self.server.stopping:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()  # before the request counts as done

    def log_message(self, format, *args):
        if self.path != "/health":  # probes would drown the rest
            log.info("%s %s", self.address_string(), format % args)


def load(server, heap_mib):
    begun = time.monotonic()
    model = Model(heap_mib)
    log.info("loaded %d MiB of weights in %.2f s", heap_mib, time.monotonic() - begun)
    result = model.infer()
    log.info("warm: the first inference says %.6f, %.2f s after the start", result, time.monotonic() - begun)
    server.model = model


def main():
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(asctime)s %(message)s")
    heap_mib = int(os.environ.get("HEAP_MIB", "200"))
    if heap_mib < 1:
        sys.exit("HEAP_MIB must be at least 1")
    server = Server(("0.0.0.0", int(os.environ.get("PORT", "8000"))))
    signal.signal(signal.SIGTERM, server.stop)
    signal.signal(signal.SIGINT, server.stop)
    log.info("listening on port %d, loading %d MiB", server.server_port, heap_mib)

    def loaded(future):
        if future.exception() is not None:
            log.error("could not load the model", exc_info=future.exception())
            os._exit(1)

    with concurrent.futures.ThreadPoolExecutor(1, "load") as pool:
        pool.submit(load, server, heap_mib).add_done_callback(loaded)
        while not server.stopping:
            server.handle_request()
        log.info("stopping")
        server.drain(10)
    server.server_close()
    log.info("stopped after %d requests", server.requests)


if __name__ == "__main__":
    main()
