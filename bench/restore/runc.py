"""runc by itself: a cold start, `runc restore`, and CRIU alone on images that runc made."""

import json
import os
import subprocess
import time

from . import host, http_probe
from .host import BenchError
from .system import System

PORT = 8000


class RuncBundle(System):
    """A bundle of `runc spec`'s own default configuration, changed only where the program needs it.

    The network namespace is made ahead, as container engines do: one of runc's own comes back with its loopback down.
    """

    def __init__(self, bench, heap_mib):
        super().__init__(bench, heap_mib)
        self.id = f"thaw-bench-{os.getpid()}-{self.name}-{heap_mib}"
        self.rootfs = self.folder / "rootfs"
        self.images = self.folder / "images"
        self.pid_file = self.folder / "pid"
        self.log = self.folder / "runc.log"
        self.state = bench.folder / "runc"
        self.pid = None
        self.netns = None

    def runc(self, *arguments):
        return ["runc", "--root", str(self.state), "--log", str(self.log), *map(str, arguments)]

    def write_bundle(self):
        for part in ("upper", "work", "rootfs", "images"):
            (self.folder / part).mkdir()
        host.mount(
            "overlay", self.rootfs, "overlay", 0,
            f"lowerdir={self.bench.rootfs},upperdir={self.folder}/upper,workdir={self.folder}/work",
        )
        host.run(["runc", "spec", "--bundle", self.folder])
        path = self.folder / "config.json"
        config = json.loads(path.read_text())
        process = config["process"]
        process["terminal"] = False
        process["args"] = ["python3", "/app/server.py"]
        process["env"] = [
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", f"HEAP_MIB={self.heap_mib}", f"PORT={PORT}",
        ]
        config["root"] = {"path": str(self.rootfs), "readonly": False}
        config["hostname"] = "bench"
        config["mounts"].append(
            {"destination": "/app", "type": "bind", "source": str(self.bench.app), "options": ["rbind", "ro"]}
        )
        self.netns = host.NetworkNamespace.create()
        for namespace in config["linux"]["namespaces"]:
            if namespace["type"] == "network":
                namespace["path"] = self.netns.path
        self.adapt(config)
        path.write_text(json.dumps(config, indent=1))

    def adapt(self, config):
        pass

    def prepare(self):
        self.write_bundle()

    def run_cold(self):
        self.launch(self.runc("run", "--detach", "--bundle", self.folder, "--pid-file", self.pid_file, self.id))

    def launch(self, command):
        """Starts a command that writes the pid file, and waits for the pid, not for the command's end."""
        self.pid_file.unlink(missing_ok=True)
        # The container inherits these three, and CRIU cannot dump a file of the host's.
        quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        self.command = subprocess.Popen(command, env=self.bench.environment, **quiet)
        end = time.monotonic() + 60
        while True:
            try:
                text = self.pid_file.read_text()
                if text.strip():
                    self.pid = int(text)
                    return
            except FileNotFoundError:
                pass
            if self.command.poll() not in (None, 0) or time.monotonic() > end:
                if self.command.poll() is None:
                    self.command.kill()
                self.command.wait()
                raise BenchError(f"`{' '.join(command[:8])} …` failed: {self.why()}")
            time.sleep(http_probe.REFUSED_PAUSE)

    def why(self):
        """runc's own message hides CRIU's: the first error of its log says more."""
        for name in ("restore.log", "dump.log"):
            path = self.images / name
            if path.exists():
                for line in path.read_text(errors="replace").splitlines():
                    if "Error" in line and "RLIMIT_NOFILE" not in line:  # that one is harmless
                        return line
        return self.log.read_text(errors="replace").strip()[-300:]

    def answer(self):
        return http_probe.first_200(
            PORT, self.bench.path, self.ready_seconds, self.netns.socket, lambda: os.path.exists(f"/proc/{self.pid}")
        )

    def checkpoint(self):
        self.run_cold()
        self.answer().connection.close()
        self.command.wait(timeout=30)
        time.sleep(0.2)  # the server's end of that connection closes, too
        try:
            host.run(
                self.runc("checkpoint", "--image-path", self.images, "--work-path", self.images, self.id),
                timeout=120, env=self.bench.environment,
            )
        except BenchError as error:
            raise BenchError(f"{error}; CRIU: {self.why()}") from error
        host.reap_orphans()

    def image(self):
        return self.images if any(self.images.iterdir()) else None

    def processes(self):
        return host.tree(self.pid)

    def stop(self):
        command = getattr(self, "command", None)
        if command and command.poll() is None:
            try:
                command.wait(timeout=20)
            except subprocess.TimeoutExpired:
                command.kill()
                command.wait()
        if self.pid:
            host.end(self.pid)
        self.pid = None
        subprocess.run(self.runc("delete", "--force", self.id), capture_output=True, timeout=30, check=False)

    def close(self):
        self.stop()
        if self.netns:
            self.netns.close()
            self.netns = None


class RuncCold(RuncBundle):
    name = "cold-runc"
    note = "`runc run`, default configuration, network namespace made ahead; asked inside it, the server polled every 5 ms while it loads"

    def start(self):
        begun = time.monotonic()
        self.run_cold()
        return begun, self.answer()


class RuncRestore(RuncBundle):
    name = "runc"
    note = "`runc restore`, default configuration, network namespace made ahead; asked inside it"

    def prepare(self):
        super().prepare()
        self.checkpoint()

    def start(self):
        begun = time.monotonic()
        self.launch(
            self.runc("restore", "--detach", "--bundle", self.folder, "--pid-file", self.pid_file,
                      "--image-path", self.images, "--work-path", self.images, self.id)
        )  # fmt: skip
        return begun, self.answer()


class CriuRestore(RuncBundle):
    """As little as CRIU can be asked to do: few mounts, a network namespace made ahead, no network lock."""

    name = "criu"
    note = "`criu restore` of runc's images: few mounts, no network lock, network namespace made ahead; asked inside it"

    def adapt(self, config):
        # An image without /dev mounts gets its device nodes from runc, in the overlay.
        config["mounts"] = [m for m in config["mounts"] if m["destination"] in ("/proc", "/app")]
        config["linux"]["maskedPaths"] = []
        config["linux"]["readonlyPaths"] = []
        settings = self.folder / "criu.conf"
        settings.write_text("network-lock skip\n")
        config.setdefault("annotations", {})["org.criu.config"] = str(settings)

    def prepare(self):
        super().prepare()
        self.checkpoint()

    def start(self):
        begun = time.monotonic()
        os.set_inheritable(self.netns.fd, True)
        self.pid_file.unlink(missing_ok=True)
        # Waiting for its end is waiting for the resumed tree: it is told to leave that alone.
        host.run(
            [*self.bench.criu, "restore", "--images-dir", self.images, "--work-dir", self.images, "--log-file", "restore.log",
             "-v1", "--root", self.rootfs, "--manage-cgroups=ignore", "--network-lock", "skip", "--restore-sibling",
             "--restore-detached", "--pidfile", self.pid_file, "--inherit-fd", f"fd[{self.netns.fd}]:extRootNetNS",
             "--external", f"mnt[/app]:{self.bench.app}"],
            pass_fds=(self.netns.fd,),
        )  # fmt: skip
        self.pid = int(self.pid_file.read_text())
        return begun, self.answer()
