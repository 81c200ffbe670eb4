"""`podman container restore` from an archive."""

import json
import os
import pathlib
import subprocess
import time

from . import host, http_probe
from .host import BenchError
from .system import System

IMAGE = "thaw-bench:latest"

# Nothing of podman's is shared with the machine's own: storage, locks and cgroups are this run's. The limits lie below
# what root may have on machines that withhold CAP_SYS_RESOURCE.
SETTINGS = """[containers]
default_ulimits = ["nofile=20000:20000", "nproc=4096:4096"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
lock_type = "file"
"""


class PodmanStore:
    """The storage of one run, with the example's root filesystem as an image."""

    def __init__(self, bench):
        self.folder = bench.folder / "podman"
        self.folder.mkdir()
        self.cgroup = f"/thaw-bench-{os.getpid()}"
        settings = self.folder / "containers.conf"
        settings.write_text(SETTINGS)
        self.environment = dict(bench.environment, CONTAINERS_CONF=str(settings))
        archive = subprocess.Popen(["tar", "-C", bench.rootfs, "-c", "."], stdout=subprocess.PIPE)
        try:
            self.run("import", "--quiet", "-", IMAGE, timeout=300, stdin=archive.stdout)
        finally:
            archive.stdout.close()
            if archive.wait() != 0:
                raise BenchError(f"could not pack {bench.rootfs}")

    def command(self, *arguments):
        return [
            "podman", "--root", str(self.folder / "root"), "--runroot", str(self.folder / "runroot"),
            "--tmpdir", str(self.folder / "tmp"), "--storage-driver", "overlay", "--runtime", "/usr/sbin/runc",
            *map(str, arguments),
        ]  # fmt: skip

    def run(self, *arguments, timeout=120, **options):
        return host.run(self.command(*arguments), timeout=timeout, env=self.environment, **options)

    def close(self):
        subprocess.run(
            self.command("rm", "--all", "--force", "--time", "0"), env=self.environment, capture_output=True, timeout=120, check=False
        )
        host.reap_orphans()
        for hierarchy in ("/sys/fs/cgroup", *map(str, pathlib.Path("/sys/fs/cgroup").iterdir())):
            for folder, _, _ in os.walk(f"{hierarchy}{self.cgroup}", topdown=False):
                try:
                    os.rmdir(folder)
                except OSError:
                    pass


class PodmanRestore(System):
    name = "podman"
    compression = "none"
    note = "`podman container restore --import`, uncompressed archive, on the host's network (podman has no bridge set up to pay for)"

    def __init__(self, bench, heap_mib):
        super().__init__(bench, heap_mib)
        self.port = host.free_port()
        self.container = f"{self.name}-{heap_mib}"
        self.archive = self.folder / "checkpoint.tar"
        self.store = None
        self.command = None

    def prepare(self):
        self.store = self.bench.podman_store()
        try:
            self.store.run(
                "run", "--detach", "--name", self.container, "--network", "host", "--cgroup-parent", self.store.cgroup,
                "--env", f"PORT={self.port}", "--env", f"HEAP_MIB={self.heap_mib}", "--volume", f"{self.bench.app}:/app:ro",
                IMAGE, "python3", "/app/server.py",
            )  # fmt: skip
            http_probe.first_200(self.port, self.bench.path, self.ready_seconds).connection.close()
            time.sleep(0.2)  # the server's end of that connection closes, too
            self.store.run(
                "container", "checkpoint", self.container, "--export", self.archive, "--compress", self.compression, timeout=300
            )
        finally:
            self.remove()

    def image(self):
        return self.archive

    def start(self):
        begun = time.monotonic()
        quiet = dict.fromkeys(("stdin", "stdout"), subprocess.DEVNULL)
        with open(self.folder / "said", "wb") as said:
            self.command = subprocess.Popen(
                self.store.command("container", "restore", "--import", self.archive, "--name", self.container),
                env=self.store.environment, stderr=said, **quiet,
            )  # fmt: skip
        try:
            return begun, http_probe.first_200(
                self.port, self.bench.path, self.ready_seconds, alive=lambda: self.command.poll() in (None, 0)
            )
        except BenchError as error:
            raise BenchError(f"{error}: {(self.folder / 'said').read_text(errors='replace').strip()[-500:]}") from error

    def processes(self):
        # Only now is its own end waited for: the answer came before it.
        self.command.wait(timeout=60)
        pid = json.loads(self.store.run("container", "inspect", self.container))[0]["State"]["Pid"]
        return [*host.tree(pid), host.parent_of(pid)]

    def stop(self):
        if self.command and self.command.poll() is None:
            try:
                self.command.wait(timeout=60)
            except subprocess.TimeoutExpired:
                self.command.kill()
                self.command.wait()
        self.remove()

    def remove(self):
        subprocess.run(
            self.store.command("rm", "--force", "--ignore", "--time", "0", self.container),
            env=self.store.environment, capture_output=True, timeout=120, check=False,
        )  # fmt: skip


class PodmanZstdRestore(PodmanRestore):
    name = "podman-zstd"
    compression = "zstd"
    note = "`podman container restore --import`, zstd archive, on the host's network"
