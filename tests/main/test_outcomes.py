"""How a restore can end, each by a real cause, told wherever it is to be told. test_fallback.py has Corrupt, Refused and AppFailed, too."""

import os
import pathlib
import signal

import thawtest
from common import Pod, resign, sql
from thawtest import check, equal

GO = {"file": "/ctl/go"}


def checkpointed(daemon, **more):
    pod = Pod(daemon, when=GO, **more)
    pod.warm()
    checkpoint = pod.wait_checkpoint()
    daemon.scale(pod.name, 0)
    return pod, checkpoint


def count(daemon, outcome):
    _, text = daemon.api("GET", "/metrics", raw=True)
    for line in text.splitlines():
        if line.startswith(f'thaw_restores_total{{outcome="{outcome}"}}'):
            return int(line.split()[1])
    return 0


def check_told(pod, row, outcome, words, since, metric, fallback=True):
    """In the replica, in `thaw ps -a`, in the events and in the metrics."""
    daemon = pod.daemon
    equal(row["outcome"], outcome, f"the outcome (the reason is: {row['reason']})")
    table = daemon.cli("ps", "-a").stdout
    events = [e for e in pod.events(after=since, replica=row["id"]) if not fallback or e["data"].get("outcome") == outcome]
    check(events, f"no event with the outcome {outcome}: {[(e['type'], e['data']) for e in pod.events(after=since)]}")
    for word in words:
        check(word in (row["reason"] or ""), f"the reason does not tell of '{word}': {row['reason']}")
        check(word in table, f"`thaw ps -a` does not tell of '{word}': {table}")
        check(any(word in e["message"] for e in events), f"no event tells of '{word}': {[e['message'] for e in events]}")
    # One that ended may have had a successor meanwhile, which ended the same way.
    ids = {e["replica"] for e in pod.events(after=since)}
    wanted = len([r for r in daemon.replicas(pod.name, ended=True) if r["id"] in ids and r["outcome"] == outcome])
    equal(count(daemon, outcome) - metric, wanted, f"thaw_restores_total of {outcome}")


def test_out_of_memory(daemon):
    """A restored program that needs more than it may have: the checkpoint stays, the replica fails and says so."""
    pod, checkpoint = checkpointed(daemon, env={"AT_START": "busy-when-restored:200"}, resources={"memory": "96MiB"}, checkpoint={"verify": False})
    pod.halt()
    since, metric = daemon.last_event(), count(daemon, "OutOfMemory")
    daemon.scale(pod.name, 1, wait=False)
    event = pod.wait_event("replica.failed", since)
    daemon.scale(pod.name, 0)
    row = daemon.replica(event["replica"])
    equal((row["state"], row["started_from"]), ("failed", checkpoint["id"]), "the replica")
    check_told(pod, row, "OutOfMemory", ("out of memory", "resources.memory"), since, metric, fallback=False)
    equal(daemon.api("GET", f"/v1/checkpoints/{checkpoint['id']}")["status"], "available", "the checkpoint")

    # The same when it has served already.
    (pod.ctl / "calm").touch()
    pod.go()
    row = daemon.scale(pod.name, 1)[0]
    since = daemon.last_event()
    (pod.ctl / "calm").unlink()
    pod.wait_event("replica.failed", since, row["id"])
    daemon.scale(pod.name, 0)
    row = daemon.replica(row["id"])
    equal((row["state"], row["outcome"]), ("failed", "OutOfMemory"), "one that was ready")
    check("out of memory" in row["reason"], f"its reason: {row['reason']}")
    equal(daemon.api("GET", f"/v1/checkpoints/{checkpoint['id']}")["status"], "available", "the checkpoint after that")


def test_killed_by_somebody(daemon):
    """A SIGKILL that nobody asked Thaw for, soon after a restore, says nothing about the checkpoint, however often."""
    pod, checkpoint = checkpointed(daemon)
    for _ in range(2):
        row = daemon.scale(pod.name, 1)[0]
        equal(row["started_from"], checkpoint["id"], "how it started")
        since = daemon.last_event()
        os.kill(row["pid"], signal.SIGKILL)
        pod.wait_event("replica.failed", since, row["id"])
        daemon.scale(pod.name, 0)
        row = daemon.replica(row["id"])
        equal((row["outcome"], row["exit_code"]), ("Restored", 137), f"how it is told ({row['reason']})")
    equal(daemon.api("GET", f"/v1/checkpoints/{checkpoint['id']}")["status"], "available", "the checkpoint")


def test_host_incompatible():
    """CRIU was replaced since the dump: nothing of the checkpoint is started, what differs is told, and a new one is made."""
    home = pathlib.Path(os.environ.get("THAW_CRIU_HOME") or "/usr/local/lib/thaw/criu")
    check((home / "VERSION").exists(), f"{home} holds no CRIU: the test needs one in a folder of its own (scripts/setup)")
    with thawtest.Daemon() as daemon:
        pod, checkpoint = checkpointed(daemon)
        other = daemon.data / "criu"
        other.mkdir()
        for name in os.listdir(home):
            if name != "VERSION":
                (other / name).symlink_to(home / name)
        (other / "VERSION").write_text("4.2.99\n")
        daemon.stop()
        daemon.arguments += ["--criu", str(other)]
        daemon.start()
        since, metric = daemon.last_event(), count(daemon, "HostIncompatible")
        row = daemon.scale(pod.name, 1)[0]
        equal(row["started_from"], "cold", "how it started")
        check_told(pod, row, "HostIncompatible", ("CRIU is 4.2.99 here", checkpoint["id"]), since, metric)
        equal(daemon.api("GET", f"/v1/checkpoints/{checkpoint['id']}")["status"], "available", "the old checkpoint")
        check("replica.restoring" not in [e["type"] for e in pod.events(after=since)], "it was tried")
        fresh = pod.wait_checkpoint(after=since)
        row = daemon.scale(pod.name, 2)[1]
        equal((row["started_from"], row["outcome"], row["reason"]), (fresh["id"], "Restored", None), "the next one")
        daemon.remove(pod.name)
        equal(daemon.destroy(), [], "what had to be ended by force")


def test_another_machine():
    """A checkpoint of a processor with a feature that this one lacks, and of another kernel: found before anything is started."""
    with thawtest.Daemon() as daemon:
        pod, checkpoint = checkpointed(daemon)

        def change(manifest):
            manifest["host"]["features"] += " avx9000"
            manifest["host"]["kernel"] = "5.0.0-other"

        resign(daemon, checkpoint, change)
        sql(daemon, "UPDATE checkpoints SET fingerprint = 'of that machine'")
        since, metric = daemon.last_event(), count(daemon, "HostIncompatible")
        row = daemon.scale(pod.name, 1)[0]
        equal(row["started_from"], "cold", "how it started")
        check_told(pod, row, "HostIncompatible", ("this processor lacks avx9000", "was 5.0.0-other"), since, metric)
        check("replica.restoring" not in [e["type"] for e in pod.events(after=since)], "it was tried")
        pod.wait_checkpoint(after=since)
        daemon.remove(pod.name)
        equal(daemon.destroy(), [], "what had to be ended by force")


def test_made_by_another_thaw(daemon):
    """One that cannot be used here at all is not tried again, and another takes its place: the pod is not cold for ever."""
    pod, checkpoint = checkpointed(daemon)
    resign(daemon, checkpoint, lambda manifest: manifest.update(version=99))
    since, metric = daemon.last_event(), count(daemon, "HostIncompatible")
    row = daemon.scale(pod.name, 1)[0]
    check_told(pod, row, "HostIncompatible", ("another version of Thaw",), since, metric)
    fresh = pod.wait_checkpoint(after=since)
    equal(daemon.api("GET", f"/v1/checkpoints/{checkpoint['id']}")["status"], "available", "the old checkpoint")
    equal(daemon.api("GET", f"/v1/pods/{pod.name}")["checkpoint"]["id"], fresh["id"], "what the pod offers")
    row = daemon.scale(pod.name, 2)[1]
    equal((row["started_from"], row["outcome"], row["reason"]), (fresh["id"], "Restored", None), "the next one")
    # Without the new one: the old is passed over, and a sentence tells why.
    daemon.scale(pod.name, 0)
    daemon.cli("checkpoint", "rm", fresh["id"])
    row = daemon.scale(pod.name, 1)[0]
    check("does not fit this host" in row["reason"], f"the reason: {row['reason']}")


def test_unavailable():
    """The shim dies in the middle of a restore: cold now, and the checkpoint is tried again later, or when somebody says so."""
    with thawtest.Daemon(slots=1) as daemon:
        pod, checkpoint = checkpointed(daemon)
        daemon.stop()
        daemon.env |= {"THAW_FAULT": "restore.asked:shim", "THAW_FAULT_MARK": str(daemon.data / "mark")}
        daemon.start()
        since, metric = daemon.last_event(), count(daemon, "Unavailable")
        row = daemon.scale(pod.name, 1)[0]
        equal(row["started_from"], "cold", "how it started")
        check_told(pod, row, "Unavailable", ("shim",), since, metric)
        equal(daemon.api("GET", f"/v1/checkpoints/{checkpoint['id']}")["status"], "available", "the checkpoint")
        rows = daemon.scale(pod.name, 2)
        check("is not tried for" in rows[1]["reason"], f"the reason of one that does not try it yet: {rows[1]['reason']}")
        # The clock is set back by days: that is not waited for. A good restore ends the waiting for good.
        pause = "restore-" + checkpoint["id"]
        sql(daemon, "UPDATE backoffs SET until_us = until_us + 864000000000 WHERE fingerprint = ?", pause)
        equal(daemon.scale(pod.name, 3)[2]["outcome"], "Restored", "how the one after the pause started")
        equal(sql(daemon, "SELECT * FROM backoffs WHERE fingerprint = ?", pause), [], "what is left of the pause")
        daemon.remove(pod.name)
        equal(daemon.destroy(), [], "what had to be ended by force")


def test_restored_and_stopped(daemon):
    """The two good ends."""
    pod, checkpoint = checkpointed(daemon)
    since, metric = daemon.last_event(), count(daemon, "Restored")
    row = daemon.scale(pod.name, 1)[0]
    check_told(pod, row, "Restored", (), since, metric, fallback=False)
    daemon.scale(pod.name, 0)
    pod.halt()  # the next one waits for its probe
    since, metric = daemon.last_event(), count(daemon, "StoppedByUser")
    daemon.scale(pod.name, 1, wait=False)
    event = pod.wait_event("replica.validating", since)
    daemon.scale(pod.name, 0)
    row = daemon.replica(event["replica"])
    equal(row["state"], "stopped", "the replica")
    check_told(pod, row, "StoppedByUser", (), since, metric, fallback=False)
    equal(daemon.api("GET", f"/v1/checkpoints/{checkpoint['id']}")["status"], "available", "the checkpoint")


if __name__ == "__main__":
    thawtest.main(globals())
