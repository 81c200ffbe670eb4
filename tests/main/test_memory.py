"""Memory that comes back while the program runs: every byte is the right one, whoever dies."""

import json
import os
import random
import signal
import struct
import time

import thawtest
from common import Pod, children, process_state, shim_of
from thawtest import check, equal, wait_for

KILLS = 100


def pattern(daemon, name="memory", mib=64, wait=True, **checkpoint):
    pod = Pod(daemon, name, when={"http": {}}, checkpoint=checkpoint, env={"MIB": str(mib)})
    pod.spec.update(command=["python3", "-S", "-E", "/app/pattern.py"], resources={"memory": "1GiB"}, replicas={"min": 1, "max": 3})
    pod.deploy()
    if wait:
        pod.wait_checkpoint()
    return pod


def no_wrong_byte(pod):
    wrong = pod.ctl / "wrong"
    check(not wrong.exists(), f"wrong bytes: {wrong.read_text()[:500] if wrong.exists() else ''}")


def all_pages(daemon, row):
    equal(daemon.http(row["id"], "/all", timeout=120), "ok\n", "answer to /all")


def test_a_shim_dies(daemon):
    """SIGKILL of the shim, whose page service is in the middle of answering faults, at random moments: the replica ends, is reported
    and replaced; no page reads as anything but what it was, and nothing hangs."""
    seed = int(os.environ.get("THAW_TEST_SEED", "0")) or random.randrange(1 << 30)
    print(f"     THAW_TEST_SEED={seed}")
    choice = random.Random(seed)
    pod = pattern(daemon)
    restored = 0
    daemon.scale(pod.name, 0)
    with daemon.follow(daemon.last_event(), pod.name) as events:
        for turn in range(KILLS):
            asked = daemon.last_event()
            daemon.scale(pod.name, 1, wait=False)
            # The last ones die while they are validated: their successors start cold for a while.
            moment = "replica.ready" if turn < KILLS - 3 else "replica.validating"
            started = next_event(events, asked, (moment, "replica.warming"))
            row = daemon.replica(started["replica"])
            restored += row["started_from"] != "cold"
            # Most of the memory is asked for in the first moments.
            time.sleep(choice.random() ** 2 * 0.2)
            os.kill(shim_of(daemon, row), signal.SIGKILL)
            killed = time.monotonic()
            ended = next_event(events, asked, ("replica.failed", "replica.preparing"), row["id"])
            check(time.monotonic() - killed < 60, f"turn {turn}: it took {time.monotonic() - killed:.1f} s until the replica's end was seen")
            check(ended["message"], f"turn {turn}: the event does not say why it ended: {ended}")
            wait_for(lambda pid=row["pid"]: process_state(pid) in ("", "Z"), f"turn {turn}: process {row['pid']} is gone")
            daemon.scale(pod.name, 0)
            no_wrong_byte(pod)
    check(restored >= KILLS - 3, f"only {restored} of {KILLS} were restored")
    wait_for(lambda: restorable(daemon, pod), "the checkpoint is used again", timeout=120, step=1)
    all_pages(daemon, daemon.replicas(pod.name)[0])
    no_wrong_byte(pod)


def restorable(daemon, pod):
    daemon.scale(pod.name, 0)
    return daemon.scale(pod.name, 1)[0]["outcome"] == "Restored"


def next_event(events, after, types, replica=None):
    while True:
        event = events.next(90)
        check(event is not None, f"no event of {types} within 90 s")
        if event["id"] > after and event["type"] in types and replica in (None, event["replica"]):
            return event


def record_of(daemon, checkpoint):
    """(whether service was seen, ranges before it, ranges in it) of a checkpoint's record (src/checkpoint/record.cc)."""
    file = daemon.data / "checkpoints" / checkpoint / "record"
    if not file.exists():
        return (0, 0, 0)
    data = file.read_bytes()[64 + 8:]
    served, start = struct.unpack("<QQ", data[:16])
    return (served, start // 24, (len(data) - 16 - start) // 24)


def record_and_keeper(daemon, pod, row):
    """A program that reads memory all over is recorded once and no longer. Who holds its page faults for the case that the shim dies lets
    go of children that have ended, and is not missed in silence when it dies itself."""
    served, _, serving = wait_for(lambda: (found := record_of(daemon, row["started_from"]))[0] and found, "the record knows of service")
    check(served and serving, "nothing is recorded of a program that reads all its memory")
    keeper = next(pid for pid in children(shim_of(daemon, row)) if thawtest._read(f"/proc/{pid}/comm") == b"thaw-keeper\n")
    daemon.http(row["id"], "/forks", timeout=600)
    wait_for(lambda: len(os.listdir(f"/proc/{keeper}/fd")) < 100, "less than 100 descriptors are held after a thousand children")
    os.kill(keeper, signal.SIGKILL)
    ended = pod.wait_event("replica.failed", replica=row["id"])
    check("keeps its page faults waiting" in ended["message"], ended["message"])
    wait_for(lambda: process_state(row["pid"]) in ("", "Z"), "its process is gone")


def test_a_lazy_replica_is_dumped_whole(daemon):
    """Pages that were never read are read before a dump: what is restored from the second checkpoint has them all."""
    pod = pattern(daemon, "again")
    row = daemon.scale(pod.name, 2)[1]
    equal(row["outcome"], "Restored", "how the second was started")
    first = next(r for r in daemon.replicas(pod.name) if r["id"] != row["id"])
    daemon.cli("stop", first["id"])
    pod.wait_event("replica.stopped", replica=first["id"])
    asked = daemon.last_event()
    # What a session leaves behind is one of the program's own processes from then on, in all of its namespaces.
    leave = "setsid sh -c 'touch /tmp/left; exec sleep 100000' </dev/null >/dev/null 2>&1 & until [ -e /tmp/left ]; do sleep 0.01; done"
    daemon.exec(row["id"], "sh", "-c", leave)
    made = daemon.cli_json("checkpoint", "create", pod.name, "--json")
    equal(made["status"], "available", "the second checkpoint")
    daemon.scale(pod.name, 0)
    row = daemon.scale(pod.name, 1)[0]
    equal(row["started_from"], made["id"], "what the next one starts from")
    check("sleep\n" in daemon.exec(row["id"], "ps", "-eo", "comm="), "what the session left behind was not restored")
    all_pages(daemon, row)
    no_wrong_byte(pod)
    equal(pod.events("replica.fallback", after=asked), [], "fallbacks")
    record_and_keeper(daemon, pod, row)
    no_wrong_byte(pod)


def test_what_need_not_be_stored(daemon):
    """Zeros, and pages that a private mapping's file has, are not in the checkpoint; every restore has them, lazy and eager."""
    pod = Pod(daemon, "regions", when={"http": {}})
    pod.spec.update(command=["python3", "-S", "-E", "/app/regions.py"], stop_grace="100ms")
    pod.deploy()
    made = pod.wait_checkpoint()["id"]
    left = json.loads(daemon.cli("checkpoint", "inspect", made).stdout)["manifest"]["left_out"]
    check(left["zero_bytes"] > 30 << 20, f"zeros that were left out: {left}")
    check(left["file_bytes"] > 100 * 4096, f"what files have and was left out: {left}")
    images = daemon.data / "checkpoints" / made / "images"
    stored = sum(file.stat().st_blocks * 512 for file in images.glob("pages-*"))
    check(stored < 50 << 20, f"{stored >> 20} MiB are stored")
    for way in ("lazy", "eager"):
        daemon.scale(pod.name, 0)
        pod.spec["checkpoint"]["memory"] = way
        pod.spec["replicas"]["min"] = 0
        pod.deploy()
        row = daemon.scale(pod.name, 1)[0]
        equal(row["started_from"], made, f"what the {way} one starts from")
        equal(daemon.http(row["id"], "/all", timeout=120), "ok", f"what is wrong in a {way} restore")


def test_a_dump_after_another(daemon):
    """The second begins while the first is still in memory only: it gets its own images."""
    pod = pattern(daemon, "twice", mib=300, wait=False)
    pod.wait_event("replica.ready")
    made = daemon.cli_json("checkpoint", "create", pod.name, "--json")
    equal(made["status"], "available", f"the second checkpoint ({made['reason']})")
    row = daemon.scale(pod.name, 2)[1]
    equal(row["started_from"], made["id"], "what the next one starts from")
    all_pages(daemon, row)
    no_wrong_byte(pod)
    daemon.remove(pod.name)


def test_background(daemon):
    """checkpoint.memory: background. Nobody asks for the rest, and it comes all the same."""
    pod = pattern(daemon, "rest", memory="background")
    row = daemon.scale(pod.name, 2)[1]

    def unread():
        return sum(int(line.split()[1]) for line in thawtest._read(f"/proc/{row['pid']}/smaps_rollup").decode().splitlines() if line.startswith("Rss:"))

    wait_for(lambda: unread() > 60 << 10, "most of 64 MiB is in memory", timeout=180)
    all_pages(daemon, row)
    no_wrong_byte(pod)


if __name__ == "__main__":
    thawtest.main(globals())
