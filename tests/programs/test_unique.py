"""What docs/uniqueness.md says of generators: two replicas of one checkpoint draw the same from those that lie in memory, and, after the hook
that it advises, different numbers."""

import thawtest
from roundtrip import APPS, HTTP, Replica
from thawtest import equal, rootfs

COMMANDS = {"python": ["python3", "/app/unique.py"], "node": ["node", "/app/unique.js"], "java": ["java", "-Xmx64m", "/app/Unique.java"]}


def test_generators(daemon):
    for name, command in COMMANDS.items():
        since = daemon.last_event()
        daemon.deploy({
            "name": name, "rootfs": rootfs("programs"), "command": command, "ports": [8000], "replicas": {"min": 1, "max": 3}, "stop_grace": "1s",
            "mounts": [{"source": str(APPS), "target": "/app", "readonly": True}], "env": {"PYTHONDONTWRITEBYTECODE": "1"},
            "checkpoint": {"when": HTTP, "after_restore": ["curl", "-fsS", "http://127.0.0.1:8000/reseed"]},
        })  # fmt: skip
        daemon.wait_checkpoint(name, after=since)
        rows = daemon.scale(name, 3)
        equal([row["outcome"] for row in rows[1:]], ["Restored"] * 2, f"how the others of {name} started")
        one, other = (Replica(daemon, row).json("/state") for row in rows[1:])
        equal(one["kept"], other["kept"], f"{name}: what two draw that share their state")
        same = [key for key in one["fresh"] if one["fresh"][key] == other["fresh"][key]]
        equal(same, [], f"{name}: generators that draw the same after the hook")
        daemon.remove(name)


if __name__ == "__main__":
    thawtest.main(globals())
