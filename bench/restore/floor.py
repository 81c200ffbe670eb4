"""The machine's own floor: fork and exec of a static program into namespaces made ahead, and a copy of the working set."""

import os
import pathlib
import subprocess
import time

from . import host, http_probe
from .system import System

PORT = 8000
WORKING_SET_MIB = 8


class Floor(System):
    name = "floor"
    note = f"a static C server executed into a network namespace made ahead, {WORKING_SET_MIB} MiB copied from the page cache; no container"
    checks_body = False

    def prepare(self):
        self.binary = self.folder / "floor"
        self.weights = self.folder / "weights"
        self.weights.write_bytes(os.urandom(WORKING_SET_MIB << 20))
        host.run(["gcc", "-O2", "-static", "-o", self.binary, pathlib.Path(__file__).with_name("floor.c")])
        self.netns = host.NetworkNamespace.create()
        self.process = None

    def image(self):
        return self.weights

    def start(self):
        begun = time.monotonic()
        self.process = subprocess.Popen(
            [str(self.binary), self.netns.path, str(PORT), str(self.weights), str(WORKING_SET_MIB)], stdin=subprocess.DEVNULL
        )
        return begun, http_probe.first_200(PORT, "/", 10, self.netns.socket, lambda: self.process.poll() is None)

    def processes(self):
        return [self.process.pid]

    def stop(self):
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    def close(self):
        self.stop()
        if hasattr(self, "netns"):
            self.netns.close()
