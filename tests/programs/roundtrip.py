"""The round trip that every program here makes: a cold start, a checkpoint at its condition that Thaw proves, a second replica that
starts from it beside the first. What differs from program to program is data: a row of a table in a test_*.py."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable

from thawtest import Failure, check, equal, rootfs, wait_for

APPS = pathlib.Path(__file__).parent / "apps"
HTTP = {"http": {"path": "/health"}}
MARKED = {"file": "/run/thaw/ready"}  # the program says itself when it is warm


class Replica:
    """One replica, asked past its gate."""

    def __init__(self, daemon, row):
        self.daemon, self.row = daemon, row

    id = property(lambda self: self.row["id"])

    def refresh(self):
        self.row = self.daemon.replica(self.id)
        return self.row

    def text(self, path, method="GET", body=None, **where):
        return self.daemon.http(self.row, path, method, body, **where)

    def json(self, path, **where):
        return json.loads(self.text(path, **where))

    def run(self, *argv):
        return self.daemon.exec(self.id, *argv).strip()


# How a program is asked and changed, unless its row says otherwise: apps/warm.py's protocol.
def http_state(replica):
    return replica.json("/state")


def http_change(replica, text):
    replica.text("/change", "POST", text)


def http_live(replica):
    return replica.json("/live")


@dataclasses.dataclass
class Program:
    """A row. Functions take a Replica."""

    name: str
    command: list
    when: dict = dataclasses.field(default_factory=lambda: HTTP)
    state: Callable = http_state       # what it had at the dump; stands still by itself
    change: Callable = http_change     # (replica, text); None: it cannot be changed
    live: Callable | None = None       # http_live where the program has something that ticks
    more: Callable | None = None       # (original, restored): what is worth a look beyond
    spec: dict = dataclasses.field(default_factory=dict)  # added to the specification
    published: bool = True             # it answers HTTP on port 8000 through the gateway


def app(name, *arguments):
    return ["python3", f"/app/{name}", *arguments]


def deploy(daemon, program, **more):
    spec = {
        "name": program.name,
        "rootfs": rootfs("programs"),
        "command": program.command,
        "mounts": [{"source": str(APPS), "target": "/app", "readonly": True}],
        "ports": [8000],
        "replicas": {"min": 1, "max": 4},
        "checkpoint": {"when": program.when, "timeout": "120s"},
        "stop_grace": "1s",
        **program.spec,
        **more,
    }
    spec.setdefault("env", {})["PYTHONDONTWRITEBYTECODE"] = "1"
    daemon.deploy(spec)
    return Replica(daemon, daemon.replicas(program.name, "ready")[0])


def goes_on(program, replica, who):
    """All that ticks still does, and nothing went wrong."""
    before = program.live(replica)
    equal(before["errors"], [], f"errors in {who}")

    still = dict(before["ticks"])

    def rose():
        now = program.live(replica)
        equal(now["errors"], [], f"errors in {who}")
        for name in [name for name, count in still.items() if now["ticks"][name] > count]:
            del still[name]
        return not still

    try:
        wait_for(rose, "", 90)
    except Failure:
        names = sorted(set(still) & set(before["ticks"]))
        raise Failure(f"in {who} these stand still: {', '.join(f'{name} at {still[name]}' for name in names)}; errors: {before['errors']}") from None


def same_state(found, wanted, what):
    """Like equal(), but a difference of large states is shown where it is."""

    def differences(a, b, path):
        if isinstance(a, dict) and isinstance(b, dict):
            for key in sorted({*a, *b}, key=str):
                yield from differences(a.get(key, "(absent)"), b.get(key, "(absent)"), [*path, str(key)])
        elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
            for number, (x, y) in enumerate(zip(a, b)):
                yield from differences(x, y, [*path, str(number)])
        elif a != b:
            yield f"{' / '.join(path) or 'all'}: {str(a)[:300]} instead of {str(b)[:300]}"

    lines = list(differences(found, wanted, []))
    check(not lines, what + ":\n" + "\n".join(lines[:12]))


def round_trip(daemon, program):
    original = deploy(daemon, program)
    equal(original.row["started_from"], "cold", "the first replica's start")
    checkpoint = daemon.wait_checkpoint(program.name)
    dumped = program.state(original)
    check(dumped, "the program told nothing")
    if program.live:
        goes_on(program, original, "the original after the dump")
    # What happens after the dump is the original's own.
    if program.change:
        program.change(original, "first")
    mine = program.state(original)
    check(not program.change or mine != dumped, "a change does not show in the program's state")

    replicas = daemon.scale(program.name, 2)
    restored = Replica(daemon, next(row for row in replicas if row["id"] != original.id))
    equal(restored.row["started_from"], checkpoint["id"], f"the second replica's start ({restored.row['reason']})")
    equal(restored.row["outcome"], "Restored", "the restore's outcome")
    same_state(program.state(restored), dumped, "the restored program's state")
    if program.live:
        goes_on(program, restored, "the restored replica")
        goes_on(program, original, "the original beside it")
    same_state(program.state(original), mine, "the original's state beside the restored one")
    if program.change:
        program.change(restored, "second")
        theirs = program.state(restored)
        check(theirs != dumped and theirs != mine, "a change of the restored program does not show in its state")
        program.change(original, "third")
        same_state(program.state(restored), theirs, "the restored program's state after a change of the original")
    if program.more:
        program.more(original, restored)
    if program.published:
        daemon.http_published(program.name, "/health")

    before, after = original.row, original.refresh()
    equal([after["pid"], after["state"], after["started_from"]], [before["pid"], "ready", "cold"], "the original's process")
    row = restored.refresh()
    equal(row["state"], "ready", f"the restored replica's state ({row['reason']})")
    check(row["hostname"] != after["hostname"] and row["address"] != after["address"], "both have one name or address")
    equal(restored.run("hostname") if row["hostname"] else None, row["hostname"], "the restored replica's own hostname")
    identity = json.loads(restored.run("cat", "/run/thaw/identity.json"))
    equal([identity["replica"], identity["started_from"]], [row["id"], checkpoint["id"]], "identity.json")
    listed = next(c for c in daemon.cli_json("checkpoint", "ls") if c["id"] == checkpoint["id"])
    equal([listed["status"], listed["restores"], listed["failures_in_a_row"]], ["available", 1, 0], "what `thaw checkpoint ls` says")
    daemon.remove(program.name)


def tests(programs):
    """test_* functions for a table, to put into a module's globals()."""

    def named(program):
        @functools.wraps(round_trip)
        def run(daemon):
            round_trip(daemon, program)

        del run.__wrapped__  # its signature is this one's
        return run

    return {f"test_{program.name.replace('-', '_')}": named(program) for program in programs}
