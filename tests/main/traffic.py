"""Pods and clients of the traffic tests."""

import contextlib
import http.client
import json
import socket
import ssl

import common
import thawtest
from thawtest import check, equal, wait_for


def spec(name, **more):
    """A pod of inside/traffic.py."""
    return {
        "name": name,
        "rootfs": thawtest.rootfs("programs"),
        "command": ["python3", "-S", "-E", "/app/traffic.py"],
        "mounts": [{"source": str(common.HERE / "inside"), "target": "/app", "readonly": True}],
        "ports": [{"container": 8000, "protocol": "http"}, {"container": 9000}],
        "replicas": {"min": 1, "max": 4},
        "stop_grace": "3s",
        **more,
    }


def deploy(daemon, name, wait=True, **more):
    """Ready means that it listens: it has a condition, but makes no checkpoint."""
    checkpoint = {"enabled": False, "when": {"all": [{"tcp": 8000}, {"tcp": 9000}]}}
    return daemon.deploy(spec(name, **{"checkpoint": checkpoint, **more}), wait=wait)


class Front:
    """A client of the shared port."""

    def __init__(self, port, tls=None):
        self.port, self.tls = port, tls

    def connect(self, timeout=30):
        connection = socket.create_connection(("127.0.0.1", self.port), timeout)
        return self.tls.wrap_socket(connection, server_hostname="a.example.com") if self.tls else connection

    def connection(self, timeout=30):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        connection.sock = self.connect(timeout)
        return connection

    def ask(self, path="/seen", method="GET", body=None, host="a.example.com", headers=None, timeout=30):
        """status, headers, body"""
        with contextlib.closing(self.connection(timeout)) as connection:
            connection.request(method, path, body, {"Host": host, **(headers or {})}, encode_chunked="Transfer-Encoding" in (headers or {}))
            response = connection.getresponse()
            return response.status, response.headers, response.read()

    def seen(self, path="/seen", **more):
        status, headers, body = self.ask(path, **more)
        equal(status, 200, f"status of {path}: {body[:200]!r}")
        return json.loads(body), headers


def trusting(certificate):
    context = ssl.create_default_context(cafile=str(certificate))
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


def hold(daemon, name):
    """Until the pod holds a connection."""
    return wait_for(lambda: daemon.api("GET", f"/v1/pods/{name}")["connections"]["held"], f"{name} holds a connection", step=0.01)


def raw(connection, text, size=1 << 20):
    """What comes back until the end; a reset is told."""
    connection.sendall(text)
    found = b""
    try:
        while len(found) < size and (piece := connection.recv(65536)):
            found += piece
    except ConnectionResetError:
        found += b"<reset>"
    return found


__all__ = ["Front", "check", "deploy", "hold", "raw", "spec", "trusting"]
