"""Fills the disk of the data directory at every named step (`thaw debug faults`), and lets the work go on: what runs runs on, nobody is blamed,
and when there is room again all is as it should be. A daemon that ends or starts meanwhile does so. As a program: every step, or those whose
names contain the words given; tests/main/test_disk.py takes a few. `make torture` runs it."""

import contextlib
import http.client
import pathlib
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "lib"), str(HERE.parent / "main")]

import kill_anywhere  # noqa: E402
import thawtest  # noqa: E402
from common import fill, small_disk  # noqa: E402
from kill_anywhere import REACHED_S, SETTLED_S, answers, wait_or_none  # noqa: E402
from thawtest import ApiError, Failure, wait_for  # noqa: E402

FULL_S = 1.5  # how long the disk stays full when the step was reached


def cases(words=()):
    for step, victim, path in kill_anywhere.cases():
        if victim == "self" and (not words or any(word in step for word in words)):
            yield step, path


class FullDisk(kill_anywhere.Torture):
    """The data directory lies on a disk of its own; what pods write beside it does not."""

    def __init__(self, daemon, folder):
        self.folder = folder
        super().__init__(daemon)

    def start_over(self):
        """On the same disk."""
        self.healthy()
        self.daemon.clear()
        self.pods = {}

    def fresh(self, name, env=None, **more):
        return super().fresh(name, env, folder=self.folder, **more)

    def held(self, step, path):
        """The daemon again, which is held at the step. One that comes to it while it starts does not answer yet."""
        self.mark = self.daemon.data / f"mark-{self.number}"
        self.daemon.stop()
        self.daemon.env |= {"THAW_FAULT": f"{step}:hold", "THAW_FAULT_MARK": str(self.mark)}
        if path == "adopt":
            self.daemon.launch()
        else:
            self.daemon.start()

    def walk(self, step, victim, path):
        daemon = self.daemon
        pod = getattr(self, "before_" + path)()
        self.since = daemon.last_event()
        self.held(step, path)
        filler = daemon.data / "filler"
        with contextlib.suppress(ApiError, OSError, http.client.HTTPException, Failure), kill_anywhere.aside(getattr(self, "walk_" + path), pod):
            if self.hold(wait_or_none(self.mark.exists, REACHED_S), "the step was not reached"):
                fill(filler)
                self.killed += 1
            pathlib.Path(f"{self.mark}.go").touch()
            time.sleep(FULL_S)
            if path == "shutdown" and self.hold(wait_or_none(lambda: not daemon.running(), SETTLED_S), "the daemon does not end"):
                fill(filler)  # what it has given up, too
                self.attempt(daemon.start, "another starts on the full disk")
            self.hold(daemon.running(), "the daemon has ended")
            self.attempt(lambda: wait_for(lambda: answers(daemon), "the API answers"), "the API answers")
            filler.unlink(missing_ok=True)
        filler.unlink(missing_ok=True)
        self.attempt(lambda: wait_for(self.settled, "everything is settled", SETTLED_S, 0.1), "everything is settled")
        pods = {p["name"]: p for p in daemon.api("GET", "/v1/pods")}
        if pod.name in pods:
            backoff = pods[pod.name]["checkpoint"]["backoff"]
            # A program that falls back ends itself with 3 when it is restored: that is its own.
            self.hold(not backoff or (pod.name == "falls" and "exit code 3" in backoff["reason"]), f"a full disk is held against the program: {backoff}")
        getattr(self, "after_" + path)(pod)
        self.finish(pod)


@contextlib.contextmanager
def full_disk():
    daemon = thawtest.Daemon(slots=1)
    # Compressing begins only where 512 MiB stay free.
    with small_disk(daemon.data, 1500), tempfile.TemporaryDirectory(prefix="thaw-ctl-", dir="/var/tmp") as folder, daemon:
        daemon.mark.touch()
        yield FullDisk(daemon, folder)
        daemon.clear()
        daemon.stop()


def run(chosen):
    """The figures' object."""
    with full_disk() as work:
        for step, path in chosen:
            work.run(step, "full", path)
    return work


if __name__ == "__main__":
    words, sys.argv[1:] = sys.argv[1:], []
    chosen = list(cases(words))
    if not chosen:
        sys.exit("there are no such steps: see `thaw debug faults`")

    def test_full_disk():
        work = run(chosen)
        print(f"the disk was full at {work.killed} steps, {work.checked} invariants checked, {len(work.broken)} broken", flush=True)
        thawtest.check(not work.broken, f"{len(work.broken)} invariants are broken:\n" + "\n".join(work.broken))

    thawtest.main({"test_full_disk": test_full_disk})
