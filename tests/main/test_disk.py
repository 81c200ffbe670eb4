"""What checkpoints may take on disk: those used longest ago make room, none in use does, and what would not fit is not begun."""

import contextlib
import errno
import os
import pathlib
import signal
import socket
import sys
import tempfile

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "torture"))

import full_disk  # noqa: E402
import thawtest  # noqa: E402
from common import Pod, fill, run, small_disk  # noqa: E402
from thawtest import check, equal, wait_equal, wait_for  # noqa: E402

GO = {"file": "/ctl/go"}
MIB = 1 << 20


def pod_of(daemon, name, mib):
    pod = Pod(daemon, name, when=GO, env={"AT_START": f"busy:{mib}"})
    pod.since = max(1, daemon.last_event())
    pod.deploy()
    pod.wait_note("up")
    pod.go()
    return pod


def status_of(daemon, row):
    return {r["id"]: r["status"] for r in daemon.api("GET", "/v1/checkpoints")}.get(row["id"])


def test_quota():
    """Room for two: the third takes the place of the one that was used longest ago, and what runs keeps its own."""
    with thawtest.Daemon("--checkpoint-quota", "130MiB") as daemon:
        pods, rows = [], []
        for name in ("one", "two"):
            pods.append(pod_of(daemon, name, 40))
            rows.append(pods[-1].wait_checkpoint())
            daemon.scale(name, 0)
        # The first was used last, so the second is the oldest.
        daemon.scale("one", 1)
        daemon.scale("one", 0)
        pods.append(pod_of(daemon, "three", 40))
        rows.append(pods[-1].wait_checkpoint())
        equal([status_of(daemon, row) for row in rows], ["available", None, "available"], "the checkpoints")
        gone = next(e for e in daemon.events(pod="two") if e["type"] == "checkpoint.deleted")
        equal(gone["checkpoint"], rows[1]["id"], "which one went")
        check("room" in gone["message"], f"the event does not say why: {gone['message']}")
        wait_for(lambda: not (daemon.data / "checkpoints" / rows[1]["id"]).exists(), "its files are gone")
        _, text = daemon.api("GET", "/metrics", raw=True)
        values = dict(line.split() for line in text.splitlines() if line.startswith("thaw_store_"))
        check("thaw_checkpoint_evictions_total 1\n" in text, "the eviction is not counted")
        check('thaw_dump_seconds_count{part="frozen"} 3' in text and 'thaw_proof_seconds_count{result="passed"} 3' in text, "dumps and proofs are not counted")
        check(0 < int(values["thaw_store_bytes"]) <= int(values["thaw_store_quota_bytes"]) == 130 * MIB, f"the store: {values}")

        # Both are in use now: the fourth finds no room, serves without a checkpoint, and nobody loses one.
        for name, row in (("one", rows[0]), ("three", rows[2])):
            daemon.scale(name, 0)
            equal(daemon.scale(name, 1)[0]["started_from"], row["id"], f"what {name} runs from")
        fourth = pod_of(daemon, "four", 40)
        ready = fourth.wait_event("replica.ready")
        check("would not fit into the quota" in ready["message"] and "--checkpoint-quota" in ready["message"], f"the event does not say why: {ready['message']}")
        equal(daemon.api("GET", "/v1/checkpoints?pod=four"), [], "checkpoints of the fourth: a dump that would not fit is not begun")
        equal([status_of(daemon, row) for row in (rows[0], rows[2])], ["available"] * 2, "the checkpoints in use")
        equal(fourth.get()["identity"]["started_from"], "cold", "who serves")
        refused = daemon.cli("checkpoint", "create", "four", check_exit=False)
        check(refused.returncode == 1 and "quota" in refused.stderr, f"`thaw checkpoint create`: {refused.returncode}, {refused.stderr}")

        # A restored replica has read little of its memory, but a dump of it takes all.
        refused = daemon.cli("checkpoint", "create", "three", check_exit=False)
        check(refused.returncode == 1 and "quota" in refused.stderr, f"`thaw checkpoint create` of unread memory: {refused.returncode}, {refused.stderr}")

        # When one is not in use any more there is room.
        daemon.scale("one", 0)
        since = daemon.last_event()
        daemon.cli("checkpoint", "create", "four")
        fourth.wait_checkpoint(after=since)
        equal([status_of(daemon, row) for row in (rows[0], rows[2])], [None, "available"], "the checkpoints afterwards")

        # What it has written counts, not only what it holds in memory.
        replica = daemon.replicas("four", "ready")[0]["id"]
        daemon.exec(replica, "dd", "if=/dev/zero", "of=/var/tmp/big", "bs=1M", "count=140")
        refused = daemon.cli("checkpoint", "create", "four", check_exit=False)
        check(refused.returncode == 1 and "quota" in refused.stderr, f"`thaw checkpoint create` of a full layer: {refused.returncode}, {refused.stderr}")
        daemon.clear()
        equal(daemon.destroy(), [], "what had to be ended by force")


def test_full_disk():
    """A disk without room: no dump is begun, the pod serves, and the event says what to do."""
    with thawtest.Daemon() as daemon:
        daemon.stop()
        with small_disk(daemon.data / "checkpoints", 320, "-N", "64"):
            daemon.start()
            pod = pod_of(daemon, "large", 100)
            ready = pod.wait_event("replica.ready")
            check("would not fit on the disk" in ready["message"] and "make room" in ready["message"], f"the event does not say why: {ready['message']}")
            equal(daemon.api("GET", "/v1/checkpoints"), [], "checkpoints: a dump that would not fit is not begun")
            equal(pod.get()["identity"]["started_from"], "cold", "who serves")
            equal(daemon.api("GET", "/v1/pods/large")["checkpoint"]["backoff"], None, "a full disk is not held against the program")

            # Room for bytes, none for files: the dump cannot begin, which costs nobody anything.
            small = Pod(daemon, "small", when=GO)
            small.deploy()
            small.wait_note("up")
            files = daemon.data / "checkpoints" / "files"
            files.mkdir()
            with contextlib.suppress(OSError):
                for number in range(10000):
                    (files / str(number)).touch()
            small.go()
            ready = small.wait_event("replica.ready")
            check("No space left" in ready["message"], f"the event does not say why: {ready['message']}")
            equal(small.get()["identity"]["started_from"], "cold", "who serves")
            equal(len(small.events("replica.preparing")), 0, "replicas that were started anew")
            run("rm", "-r", files)
            daemon.cli("checkpoint", "create", "small")
            equal([row["status"] for row in daemon.api("GET", "/v1/checkpoints")], ["available"], "the checkpoints when there is room")
            daemon.clear()
            daemon.stop()


def test_logs():
    """A log goes with its pod, and one that nobody knows any more at the next start."""
    with thawtest.Daemon() as daemon:
        pod = Pod(daemon)
        pod.deploy(wait=True)
        logs = daemon.data / "logs"
        equal(os.listdir(logs), [pod.only_replica()["id"]], "logs of what runs")
        daemon.stop()
        (logs / "stray").mkdir()
        daemon.start()
        wait_equal(lambda: os.listdir(logs), [pod.only_replica()["id"]], "logs after a restart")
        daemon.remove("web")
        wait_equal(lambda: os.listdir(logs), [], "logs of a pod that is gone")
        equal(daemon.destroy(), [], "what had to be ended by force")


def test_end_before_its_files():
    """A replica that wrote much has ended before the last of its files is gone; a daemon that ends meanwhile leaves none."""
    with thawtest.Daemon() as daemon:
        for ends in (False, True):
            pod = Pod(daemon, f"writes-{int(ends)}")
            pod.deploy(wait=True)
            row = pod.only_replica()
            daemon.exec(row["id"], "python3", "-S", "-c", "for n in range(15000): open(f'/var/tmp/{n}', 'w').close()", timeout=120)
            since = daemon.last_event()
            daemon.api("POST", f"/v1/pods/{pod.name}/stop")
            daemon.wait_event(lambda e: e["type"] == "replica.stopped", "it has ended", since, pod.name)
            slot = daemon.data / "slots" / row["slot"]
            check(slot.exists(), "its files were waited for")
            check(not os.path.exists(f"/proc/{row['pid']}"), "its process runs")
            if ends:
                daemon.stop()
                check(not slot.exists(), "its files are left by a daemon that has ended")
                daemon.start()
            wait_for(lambda slot=slot: not slot.exists(), "its files go")
        equal(daemon.destroy(), [], "what had to be ended by force")


def test_full_while_it_dumps():
    """The disk runs full in the middle of a dump: the pod serves, and the program is not blamed. `make torture` fills it at every step."""
    work = full_disk.run([("shim.dump.criu", "cold")])
    check(not work.broken, "\n".join(work.broken))


TELL = "import os, socket; socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'READY=1', os.environ['NOTIFY_SOCKET'])"


def test_full_data_directory():
    """All of the data directory is full: what runs runs on, what cannot be written is refused and changes nothing, and a replica that ends
    meanwhile is replaced when there is room again. A daemon that starts then takes back what runs."""
    daemon = thawtest.Daemon()
    with small_disk(daemon.data, 100), tempfile.TemporaryDirectory(prefix="thaw-ctl-", dir="/var/tmp") as beside, daemon:
        daemon.mark.touch()
        pod = Pod(daemon, folder=beside)
        pod.deploy(wait=True)
        first = pod.only_replica()
        other = Pod(daemon, "other", folder=beside)
        filler = daemon.data / "filler"
        daemon.wait_idle(replicas=1)  # what is tidied up later would make room
        fill(filler)
        for words in (("scale", "web", "2"), ("stop", "web"), ("checkpoint", "create", "web")):
            refused = daemon.cli(*words, check_exit=False)
            check(refused.returncode == 1 and "disk" in refused.stderr or words[0] == "checkpoint", f"`thaw {words}`: {refused.returncode}, {refused.stderr}")
        try:
            other.deploy()
            check(False, "a deploy that cannot be written down is taken")
        except thawtest.ApiError as error:
            check("free some disk space" in str(error), f"the refusal: {error}")
        equal([p["name"] for p in daemon.api("GET", "/v1/pods")], ["web"], "the pods after a deploy that was refused")
        equal(socket.socket().connect_ex(("127.0.0.1", other.port)), errno.ECONNREFUSED, "its port")
        status = daemon.api("GET", "/v1/pods/web")
        equal((status["desired"], status["stopped"]), (1, False), "the pod after what was refused")
        daemon.exec(first["id"], "python3", "-S", "-c", TELL)
        equal(pod.get()["identity"]["replica"], first["id"], "who serves on a full disk")

        daemon.restart(kill=True)
        equal(pod.get()["identity"]["replica"], first["id"], "who serves after a restart on a full disk")
        os.kill(first["pid"], signal.SIGKILL)
        wait_for(lambda: not daemon.replica(first["id"])["pid"] or not os.path.exists(f"/proc/{first['pid']}"), "its program is gone")
        equal(daemon.cli("ls").returncode, 0, "the daemon answers")
        filler.unlink()
        second = pod.get(timeout=120)["identity"]["replica"]
        check(second != first["id"], "a program that is gone answers")
        row = daemon.replica(first["id"])
        equal((row["state"], row["exit_code"]), ("failed", 137), f"the first one ({row['reason']})")
        equal(pod.states(first["id"])[-2:], ["ready", "failed"], "its states")

        daemon.clear()
        daemon.stop()


if __name__ == "__main__":
    thawtest.main(globals())
