"""Clients that never stop, while their pod is scaled, gets new versions, or is at zero again and again. No request may fail, and at the end
nothing may be left. tests/main/test_zero.py and test_rollout.py have short forms. The last line has the figures."""

import argparse
import collections
import pathlib
import random
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "lib"), str(HERE.parent / "main")]

import thawtest  # noqa: E402
import traffic  # noqa: E402
from thawtest import check, equal  # noqa: E402

PORT = thawtest.free_port()
WARM = {"when": {"all": [{"tcp": 8000}, {"tcp": 9000}]}}
OFF = {**WARM, "enabled": False}

# A version of the pod: what it declares, and what becomes of it.
TAKES_OVER = {
    "plain": {"checkpoint": OFF},
    "checkpointed": {"checkpoint": WARM},
    "slow": {"checkpoint": OFF, "env": {"STARTS_IN": "1"}},
    "another port": {"checkpoint": {"when": {"tcp": 8001}}, "container": 8001},
    "standby": {"checkpoint": WARM, "standby": 1},
    "cannot be dumped": {"checkpoint": WARM, "env": {"HOLDS": "landlock"}},
    "cannot be restored": {"checkpoint": {"when": {"http": {"path": "/seen"}}}, "env": {"LEAVES": "1"}},
}
BROKEN = {
    "exits": {"command": ["sh", "-c", "exit 3"]},
    "is not there": {"command": ["/nowhere"]},
    "never warm": {"checkpoint": {"when": {"file": "/never"}, "timeout": "1s", "on_timeout": "fail"}},
}
NO_CHECKPOINT = ("cannot be dumped", "cannot be restored")


class Figures(collections.Counter):
    """Of all that was run, for the last line."""

    def __init__(self):
        super().__init__()
        self.took = []

    def add(self, daemon, load, since):
        self.update(answers=len(load.took), errors=len(load.errors))
        self.took += load.took
        for error in load.errors[:10]:
            print(f"soak: {error}", flush=True)
        self.count_starts(daemon, since)

    def count_starts(self, daemon, since):
        for event in daemon.events(since):
            if event["type"] == "replica.ready":
                start = event["data"].get("from")
                self[{"validating": "restores", "standby": "standbys taken"}.get(start, "cold starts")] += 1
            elif event["type"] in ("replica.fallback", "checkpoint.available", "checkpoint.failed"):
                self[{"replica.fallback": "fallbacks", "checkpoint.available": "checkpoints", "checkpoint.failed": "failed checkpoints"}[event["type"]]] += 1

    def __str__(self):
        took = sorted(self.took) or [0.0]
        counts = ", ".join(f"{count} {name}" for name, count in self.items() if name != "errors")
        return f"{counts}; ms: p50 {took[len(took) // 2] * 1000:.1f}, p99 {took[len(took) * 99 // 100] * 1000:.1f}, most {took[-1] * 1000:.0f}; {self['errors']} errors"


FIGURES = Figures()


def say(text):
    print(f"soak: {text}", flush=True)


class Pace:
    """Says how far it is, twice a minute."""

    def __init__(self, load):
        self.load, self.next = load, time.monotonic() + 30

    def __call__(self, text):
        if time.monotonic() > self.next:
            self.next += 30
            say(f"{text}, {len(self.load.took)} answers, {len(self.load.errors)} errors")


def bursts(daemon, rounds):
    """200 clients at once to a pod at zero."""
    more = {"routes": [{"host": "b.example.com"}], "replicas": {"min": 0, "max": 2, "concurrency": 150}, "checkpoint": WARM}
    traffic.deploy(daemon, "b", wait=False, **more)
    since = daemon.last_event()
    starts = collections.Counter()
    took = []
    for number in range(rounds):
        if number:
            daemon.scale("b", 0)
        try:
            answers = traffic.burst([daemon.port("b", 8000), PORT], "b.example.com")
        except thawtest.Failure:
            FIGURES["errors"] += 1
            raise
        took += [seconds for seconds, _ in answers]
        starts.update(start for _, start in answers if start)
        if number == 0:
            daemon.wait_checkpoint("b")
    FIGURES.update({"bursts": rounds, "answers": len(took)})
    FIGURES.took += took
    FIGURES.count_starts(daemon, since)
    say(f"{rounds} bursts of 200 clients to a pod at zero: {len(took)} answers; those of the shared port were told: {dict(starts)}")


def calls(daemon, count):
    """Scale-ups and downs at random, as far as zero."""
    traffic.deploy(daemon, "a", routes=[{}], checkpoint=WARM, stop_grace="500ms")
    daemon.wait_checkpoint("a")
    since = daemon.last_event()
    with traffic.Load(daemon.port("a", 8000), PORT, pause=0.01) as load:
        pace = Pace(load)
        try:
            for number in range(count):
                daemon.scale("a", random.randrange(5), wait=False)
                FIGURES["scale calls"] += 1
                time.sleep(random.uniform(0, 0.6))
                pace(f"{number + 1} scale calls")
        finally:
            load.end()
            FIGURES.add(daemon, load, since)


def deploys(daemon, seconds):
    """New versions, one in three of them broken, and a scaling in between now and then."""
    host, number = thawtest.free_port(), 0

    def deploy(container=8000, standby=0, env=None, **more):
        nonlocal number
        number += 1
        ports = [{"container": container, "host": host, "protocol": "http"}]
        command = {"command": ["python3", "-S", "-E", "/app/traffic.py", str(container)]}
        traffic.deploy(daemon, "a", wait=False, routes=[{}], ports=ports, replicas={"min": 1, "max": 4, "standby": standby}, stop_grace="500ms",
                       **{**command, **more}, env={**(env or {}), "NUMBER": str(number)})  # fmt: skip
        return daemon.api("GET", "/v1/pods/a")["version"]

    serves = deploy(checkpoint=OFF)
    traffic.settle(daemon, "a", serves)
    begin, since = time.monotonic(), daemon.last_event()
    with traffic.Load(host, PORT, pause=0.01) as load:
        pace = Pace(load)
        try:
            while time.monotonic() - begin < seconds:
                broken = random.random() < 1 / 3
                kind = random.choice([*(BROKEN if broken else TAKES_OVER)])
                before = daemon.last_event()
                version = deploy(**(BROKEN if broken else TAKES_OVER)[kind])
                FIGURES["broken deploys" if broken else "deploys"] += 1
                if random.random() < 0.5:
                    daemon.scale("a", random.randrange(1, 4), wait=False)
                if broken:
                    daemon.wait_event(lambda e: e["type"] == "replica.failed", f"a replica of the version that {kind} fails", before, "a")
                    equal({row["version"] for row in daemon.replicas("a", "ready")}, {serves}, f"versions that serve beside one that {kind}")
                else:
                    traffic.settle(daemon, "a", version)
                    serves = version
                if kind in NO_CHECKPOINT:
                    daemon.wait_event(lambda e: e["type"] == "checkpoint.failed", f"no checkpoint of one that {kind}", before, "a")
                check(not load.errors, "a request failed")
                time.sleep(random.uniform(0, 1))
                pace(f"{time.monotonic() - begin:.0f} s, {number} versions")
        finally:
            load.end()
            FIGURES["seconds of deploys"] += round(time.monotonic() - begin)
            FIGURES.add(daemon, load, since)


def main():
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__.replace("\n", " "))
    parser.add_argument("--bursts", type=int, default=50, help="of 200 clients to a pod at zero (50)")
    parser.add_argument("--calls", type=int, default=1000, help="scale-ups and downs under load (1000)")
    parser.add_argument("--seconds", type=int, default=600, help="of deploys under load (600)")
    parser.add_argument("-k", action="store_true", help="keep the data directory when something fails")
    options = parser.parse_args()
    sys.argv[1:] = ["-k"] if options.k else []
    chosen = {}

    def part(name, function, amount):
        def run(daemon):
            function(daemon, amount)

        if amount:
            chosen[f"test_{name}"] = run

    part("bursts", bursts, options.bursts)
    part("calls", calls, options.calls)
    part("deploys", deploys, options.seconds)
    begin, status = time.monotonic(), "not clean"
    try:
        thawtest.main(chosen, daemon_arguments=("--front", f"127.0.0.1:{PORT}"))
    except SystemExit as end:
        if not end.code:
            status = "clean"
        raise
    finally:
        print(f"soak: {time.monotonic() - begin:.0f} s, {status}: {FIGURES}", flush=True)


if __name__ == "__main__":
    main()
