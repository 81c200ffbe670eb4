"""No checkpoint, or one that does not restore: an ordinary cold start, with the reason told, and nothing left of the attempt."""

import json
import os
import shutil
import signal
import time

import common
import thawtest
from common import Client, Knocker, Pod, sql
from thawtest import check, equal, wait_for

GO = {"file": "/ctl/go"}


def checkpointed(daemon, when=None, **more):
    """A pod with an available checkpoint and no replica; the checkpoint."""
    pod = Pod(daemon, when=when or GO, **more)
    pod.warm()
    checkpoint = pod.wait_checkpoint()
    daemon.scale(pod.name, 0)
    return pod, checkpoint


def expect_cold(pod, checkpoint, outcome, reason, status):
    """Starts a replica that falls back; it. `reason` is a word that must be told wherever reasons are."""
    daemon = pod.daemon
    since = daemon.last_event()
    client = Client(pod.port)
    client.wait_connected()
    row = daemon.scale(pod.name, 1)[0]
    equal(client.wait_answer()["identity"]["started_from"], "cold", "what the program is told")
    pod.check_gate(row["id"])
    equal((row["started_from"], row["outcome"]), ("cold", outcome), f"the replica (its reason is: {row['reason']})")
    check(reason in (row["reason"] or ""), f"the replica's reason does not tell of '{reason}': {row['reason']}")
    fallbacks = [e for e in pod.events(after=since, replica=row["id"]) if e["type"] in ("replica.fallback", "replica.preparing")]
    check(any(reason in e["message"] for e in fallbacks), f"no event tells of '{reason}': {[e['message'] for e in fallbacks]}")
    check(reason in daemon.cli("ps").stdout, "`thaw ps` does not tell of it")
    found = daemon.api("GET", f"/v1/checkpoints/{checkpoint['id']}")
    equal(found["status"], status, f"the checkpoint (its reason is: {found['reason']})")
    if status == "restore_failed":
        check(reason in (found["reason"] or ""), f"the checkpoint's reason does not tell of '{reason}': {found['reason']}")
        check(reason in daemon.cli("checkpoint", "ls").stdout, "`thaw checkpoint ls` does not tell of it")
    # The attempt is gone: what there is now is this replica's, and what waits for the next ones.
    wait_for(lambda: len(os.listdir(daemon.data / "slots")) == daemon.slots + 1, "only the slots in use and those prepared are there")
    return row


def flip_a_byte(path):
    size = os.path.getsize(path)
    with open(path, "r+b") as file:
        file.seek(size // 2)
        byte = file.read(1)[0]
        file.seek(size // 2)
        file.write(bytes([byte ^ 0x5A]))


def pages(daemon, checkpoint):
    return next((daemon.data / "checkpoints" / checkpoint["id"] / "images").glob("pages-*.img"))


def truncate(daemon, checkpoint):
    file = pages(daemon, checkpoint)
    os.truncate(file, os.path.getsize(file) - 4096)


def flip(daemon, checkpoint):
    flip_a_byte(pages(daemon, checkpoint))


def test_verify():
    """What its disk has lost of a checkpoint that nobody starts from is found: by `thaw checkpoint verify`, and by the daemon itself."""
    with thawtest.Daemon() as daemon:
        pod, checkpoint = checkpointed(daemon)
        before = os.stat(daemon.data / "checkpoints" / checkpoint["id"] / "checked").st_mtime_ns
        equal(daemon.cli("checkpoint", "verify", checkpoint["id"][:6]).stdout, checkpoint["id"][:6] + "\n", "`thaw checkpoint verify`")
        check(os.stat(daemon.data / "checkpoints" / checkpoint["id"] / "checked").st_mtime_ns > before, "the time of the last look is not written down")
        flip(daemon, checkpoint)
        done = daemon.cli("checkpoint", "verify", "--all", check_exit=False)
        check(done.returncode == 1 and "contents have changed" in done.stderr, f"`thaw checkpoint verify --all`: {done.returncode}, {done.stderr}")
        equal(daemon.api("GET", f"/v1/checkpoints/{checkpoint['id']}")["status"], "restore_failed", "the checkpoint")
        since = daemon.last_event()
        equal(daemon.scale(pod.name, 1)[0]["started_from"], "cold", "what the next replica starts from")

        fresh = pod.wait_checkpoint(after=since)
        daemon.scale(pod.name, 0)
        since = daemon.last_event()
        daemon.stop()
        flip(daemon, fresh)
        daemon.arguments += ["--verify-every", "1s"]
        daemon.start()
        pod.wait_checkpoint("restore_failed", after=since)
        daemon.clear()
        equal(daemon.destroy(), [], "what had to be ended by force")


def flip_and_restart(daemon, checkpoint):
    """Nothing but the digest can tell: size and times are as they were."""
    file = pages(daemon, checkpoint)
    info = os.stat(file)
    daemon.stop()
    flip_a_byte(file)
    os.utime(file, ns=(info.st_atime_ns, info.st_mtime_ns))
    daemon.start()


def flip_in_layer(daemon, checkpoint):
    daemon.stop()
    layer = daemon.data / "checkpoints" / checkpoint["id"] / "fs.0"
    flip_a_byte(next(file for file in layer.rglob("*") if file.is_file() and file.stat().st_size))
    daemon.start()


def remove_image(daemon, checkpoint):
    next((daemon.data / "checkpoints" / checkpoint["id"] / "images").glob("core-*.img")).unlink()


def remove_layer(daemon, checkpoint):
    shutil.rmtree(daemon.data / "checkpoints" / checkpoint["id"] / "fs.0")


def change_manifest(daemon, checkpoint):
    file = daemon.data / "checkpoints" / checkpoint["id"] / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["pipes"][0] = "pipe:[1]"
    file.write_text(json.dumps(manifest))


def garble_manifest(daemon, checkpoint):
    (daemon.data / "checkpoints" / checkpoint["id"] / "manifest.json").write_text('{"version": 1, "mac"')


def add_image(daemon, checkpoint):
    (daemon.data / "checkpoints" / checkpoint["id"] / "images/apparmor.img").write_bytes(b"")


def remove_manifest(daemon, checkpoint):
    (daemon.data / "checkpoints" / checkpoint["id"] / "manifest.json").unlink()


def remove_all(daemon, checkpoint):
    shutil.rmtree(daemon.data / "checkpoints" / checkpoint["id"])


def test_broken_checkpoints(daemon):
    """Each is found before CRIU sees it, never offered again, and replaced by a new one."""
    pod, checkpoint = checkpointed(daemon, {"all": [GO, {"file": "/var/tmp/layer"}]}, env={"AT_START": "write:/var/tmp/layer"})
    with Knocker(daemon):
        for damage, reason in ((truncate, "bytes instead of"), (flip, "sha256"), (flip_and_restart, "sha256"), (flip_in_layer, "sha256"),
                               (remove_image, "missing"), (remove_layer, "missing"), (change_manifest, "MAC"), (garble_manifest, "MAC"), (add_image, "apparmor"),
                               (remove_manifest, "manifest"), (remove_all, "manifest")):  # fmt: skip
            since = daemon.last_event()
            try:
                damage(daemon, checkpoint)
                expect_cold(pod, checkpoint, "Corrupt", reason, "restore_failed")
            except Exception as error:
                raise thawtest.Failure(f"{damage.__name__}: {error}") from error
            checkpoint = daemon.wait_event(lambda e: e["type"] == "checkpoint.available", f"a new checkpoint after {damage.__name__}", since)
            checkpoint = daemon.api("GET", f"/v1/checkpoints/{checkpoint['checkpoint']}")
            daemon.scale(pod.name, 0)
        # What is learnt later is a hint only, and none that cannot be trusted is taken.
        (daemon.data / "checkpoints" / checkpoint["id"] / "record").write_text("00" * 100)
        row = daemon.scale(pod.name, 1)[0]
        equal((row["started_from"], row["outcome"]), (checkpoint["id"], "Restored"), "the replica after all that")
        equal(pod.get()["identity"]["started_from"], checkpoint["id"], "what the program is told")


def test_each_pod_its_own(daemon):
    """Two pods that are alike but for their names: each has its own checkpoint, which is never restored as the other's, nor goes with it."""
    spec = {"rootfs": thawtest.rootfs("programs"), "command": ["sh", "-c", "touch /run/thaw/ready; exec sleep 100000"],
            "replicas": {"min": 1, "max": 2}, "stop_grace": "0s", "checkpoint": {"when": {"file": "/run/thaw/ready"}}}  # fmt: skip
    names = ("one", "other")
    ids = []
    for name in names:
        daemon.deploy({**spec, "name": name})
        equal(daemon.replicas(name)[0]["started_from"], "cold", f"how the first of {name} started")
        ids.append(daemon.wait_checkpoint(name)["id"])
        daemon.scale(name, 0)
    # Whole, signed, and in each other's place.
    folders = [daemon.data / "checkpoints" / i for i in ids]
    folders[0].rename(aside := daemon.data / "aside")
    folders[1].rename(folders[0])
    aside.rename(folders[1])
    since = daemon.last_event()
    for name, other in zip(names, reversed(ids)):
        row = daemon.scale(name, 1)[0]
        equal((row["started_from"], row["outcome"]), ("cold", "Corrupt"), f"the replica of {name}")
        check("another one, " + other in row["reason"], f"the reason: {row['reason']}")
    fresh = [daemon.wait_event(lambda e: e["type"] == "checkpoint.available", f"a new one of {name}", since, name) for name in names]
    daemon.remove("one")
    equal(daemon.scale("other", 2)[1]["started_from"], fresh[1]["checkpoint"], "how it starts when the other pod is gone")


def test_program_dies_when_restored(daemon):
    """Once may be chance, twice is the checkpoint: then it is not offered any more."""
    pod, checkpoint = checkpointed(daemon, env={"AT_START": "leave-when-restored"}, checkpoint={"verify": False})
    # The probe passes only after a while, so that the program is gone by then.
    pod.halt()
    for status in ("available", "restore_failed"):
        since = daemon.last_event()
        daemon.scale(pod.name, 1, wait=False)
        event = pod.wait_event("replica.starting", since)
        pod.go()
        pod.wait_event("replica.ready", since)
        row = daemon.replica(event["replica"])
        equal((row["started_from"], row["outcome"], row["exit_code"]), ("cold", "AppFailed", None), f"the replica (its reason is: {row['reason']})")
        equal(pod.states(row["id"])[:4], ["restoring", "validating", "preparing", "starting"], "its states")
        check("exit" in row["reason"], f"the reason does not tell how the program ended: {row['reason']}")
        equal(daemon.api("GET", f"/v1/checkpoints/{checkpoint['id']}")["status"], status, "the checkpoint")
        pod.check_gate(row["id"])
        daemon.scale(pod.name, 0)
        pod.halt()
    # Its next checkpoint would be as bad: none is made before a pause is over, or somebody says so.
    equal(daemon.api("GET", f"/v1/pods/{pod.name}")["checkpoint"]["backoff"]["failures"], 1, "failures in a row")
    equal(pod.events("checkpoint.creating", after=since), [], "new checkpoints")
    daemon.cli("checkpoint", "retry", pod.name)
    since = daemon.last_event()
    pod.go()
    daemon.scale(pod.name, 1)
    check(pod.wait_event("checkpoint.available", since)["checkpoint"] != checkpoint["id"], "it was offered again")


def test_program_dies_soon_after(daemon):
    """A program that answers its probe and dies soon after: after two of those the pod starts cold instead of dying for ever."""
    pod, checkpoint = checkpointed(daemon, env={"AT_START": "leave-soon-after"}, checkpoint={"verify": False})
    since = daemon.last_event()
    daemon.scale(pod.name, 1, wait=False)
    event = daemon.wait_event(lambda e: e["type"] == "checkpoint.restore_failed", "the checkpoint is given up", since, pod.name)
    equal(event["checkpoint"], checkpoint["id"], "which checkpoint")
    check("after it was restored" in event["message"] and "exit code 3" in event["message"], f"the reason: {event['message']}")
    client = Client(pod.port)
    equal(client.wait_answer()["identity"]["started_from"], "cold", "how the one started that serves")
    dead = [row for row in daemon.replicas(pod.name, ended=True) if row["started_from"] == checkpoint["id"] and row["state"] == "failed"]
    equal([row["outcome"] for row in dead], ["AppFailed"] * 2, f"those that died ({[row['reason'] for row in dead]})")
    backoff = daemon.api("GET", f"/v1/pods/{pod.name}")["checkpoint"]["backoff"]
    check(backoff and backoff["failures"] == 1 and "after it was restored" in backoff["reason"], f"the back-off: {backoff}")
    equal(pod.events("checkpoint.creating", after=since), [], "new checkpoints")


def test_criu_dies(daemon):
    """CRIU killed where it waits in a prepared slot, or in the middle of a restore: that replica starts cold, the checkpoint stays."""
    pod, checkpoint = checkpointed(daemon)
    daemon.wait_idle()
    waiting = common.shims(daemon)
    equal(len(waiting), daemon.slots, "prepared slots")
    for shim in waiting.values():
        criu = wait_for(lambda shim=shim: common.criu_below(shim), "the slot's CRIU waits")
        os.kill(criu, signal.SIGKILL)
        wait_for(lambda criu=criu: common.process_state(criu) in ("Z", ""), "it is dead", step=0.001)
    with Knocker(daemon):
        rows = daemon.scale(pod.name, 2)
        check(all(len(restore_log(daemon, row)) < 2000 for row in rows), f"CRIU logs much where nothing has failed: {restore_log(daemon, rows[0])}")
        equal([row["started_from"] for row in rows], [checkpoint["id"]] * 2, f"how they started: another CRIU takes the place of one that is gone ({[row['reason'] for row in rows]})")
        daemon.scale(pod.name, 0)

        # Both slots again, stopped; the one that is taken goes on until it restores, which it shows by its title.
        daemon.wait_idle()
        since = daemon.last_event()
        waiting = {slot: wait_for(lambda shim=shim: common.criu_below(shim), "the slot's CRIU waits") for slot, shim in common.shims(daemon).items()}
        for pid in waiting.values():
            os.kill(pid, signal.SIGSTOP)
        daemon.scale(pod.name, 1, wait=False)
        replica = pod.wait_event("replica.restoring", since)["replica"]
        criu = waiting.pop(daemon.replica(replica)["slot"])
        for pid in waiting.values():
            os.kill(pid, signal.SIGCONT)

        def restores():
            os.kill(criu, signal.SIGCONT)
            time.sleep(0.0005)
            os.kill(criu, signal.SIGSTOP)
            return b"swrk" not in common.command_line(criu).split(b"\0")

        with common.before_others():
            wait_for(restores, "CRIU has begun", step=0)
        os.kill(criu, signal.SIGKILL)
        pod.wait_event("replica.ready", since)
        row = daemon.replica(replica)
        equal((row["started_from"], row["outcome"]), ("cold", "Unavailable"), f"the replica (its reason is: {row['reason']})")
        pod.check_gate(replica)
        daemon.scale(pod.name, 0)
    daemon.cli("checkpoint", "retry", pod.name)
    equal(daemon.scale(pod.name, 1)[0]["started_from"], checkpoint["id"], "the next one is restored")


def test_criu_refuses(daemon):
    """A file of a mount is gone that the program has open: CRIU cannot restore that. Once is held against nobody; the next is restored, and told of in full."""
    pod, checkpoint = checkpointed(daemon, env={"AT_START": "touch:/ctl/held open:/ctl/held"})
    (pod.ctl / "held").unlink()
    expect_cold(pod, checkpoint, "Refused", "held", "available")
    daemon.scale(pod.name, 0)
    row = daemon.scale(pod.name, 1)[0]  # the cold one has made the file again
    equal(row["started_from"], checkpoint["id"], "the next one is restored")
    check("Restore finished successfully" in restore_log(daemon, row), "after a failure CRIU does not write down all it does")


def restore_log(daemon, row):
    return (daemon.data / "slots" / row["slot"] / "criu/restore.log").read_text()


def test_proof_fails(daemon):
    """A program that works, but not when it is restored: its checkpoint is never offered, and the pod serves on."""
    pod = Pod(daemon, when=GO, env={"AT_START": "leave-when-restored"})
    since = daemon.last_event()
    pod.deploy()
    pod.wait_note("up")
    with common.HeldDump(pod) as dump:
        pod.halt()  # before the proof, whose probe would pass while the program is still there
    failed = pod.wait_event("checkpoint.failed", since)
    equal(failed["checkpoint"], dump.checkpoint, "which checkpoint failed")
    check("proof" in failed["message"] and "exit" in failed["message"], f"the reason does not tell how the proof went: {failed['message']}")
    pod.go()
    first = pod.get()["identity"]["replica"]
    equal(pod.only_replica()["id"], first, "who serves")
    pod.check_gate(first)
    row = daemon.api("GET", f"/v1/checkpoints/{failed['checkpoint']}")
    equal(row["status"], "failed", "the checkpoint")
    table = daemon.cli("checkpoint", "ls").stdout
    check("proof" in table and "next dump is tried in" in table, f"`thaw checkpoint ls` does not say why, or when it is tried again: {table}")
    wait_for(lambda: not (daemon.data / "checkpoints" / row["id"]).exists(), "its files are gone")
    rows = daemon.scale(pod.name, 2)
    equal([r["started_from"] for r in rows], ["cold", "cold"], "how they started")
    check("checkpoint.available" not in [e["type"] for e in pod.events()], "it was offered")
    equal(daemon.api("GET", f"/v1/pods/{pod.name}")["checkpoint"]["id"], None, "the pod's checkpoint")
    # A good dump is no success: the next proof that fails is the second in a row.
    daemon.scale(pod.name, 1)
    since = daemon.last_event()
    pod.halt()
    create = common.background(daemon, "checkpoint", "create", pod.name)
    pod.wait_event("checkpoint.failed", since)
    create.wait(120)
    equal(daemon.api("GET", f"/v1/pods/{pod.name}")["checkpoint"]["backoff"]["failures"], 2, "proofs that failed in a row")


def test_removed_while_it_is_restored():
    """A checkpoint that is removed when a replica has chosen it keeps its files as long as that needs them."""
    with thawtest.Daemon() as daemon:
        pod, checkpoint = checkpointed(daemon)
        mark = daemon.data / "found"
        daemon.stop()
        daemon.env |= {"THAW_FAULT": "restore.found:hold", "THAW_FAULT_MARK": str(mark)}
        daemon.start()
        since = daemon.last_event()
        daemon.scale(pod.name, 1, wait=False)
        wait_for(mark.exists, "a checkpoint is found", step=0.005)
        daemon.cli("checkpoint", "rm", checkpoint["id"])
        mark.with_name("found.go").touch()
        pod.wait_event("replica.ready", since)
        row = pod.only_replica()
        equal((row["started_from"], row["outcome"]), (checkpoint["id"], "Restored"), f"the replica (its reason is: {row['reason']})")
        folder = daemon.data / "checkpoints" / checkpoint["id"]
        check(folder.exists(), "the files of what it runs from are gone")
        daemon.scale(pod.name, 0)
        wait_for(lambda: not folder.exists(), "its files are gone")
        thawtest.wait_equal(lambda: sql(daemon, "SELECT id FROM checkpoints"), [], "rows of checkpoints")
        daemon.remove(pod.name)
        equal(daemon.destroy(), [], "what had to be ended by force")


def test_no_use_for_a_checkpoint(daemon):
    """One that no replica would ever start from is not made, and a sentence says why."""
    pod = Pod(daemon)
    pod.deploy(wait=True)
    done = daemon.cli("checkpoint", "create", pod.name, check_exit=False)
    check(done.returncode == 1 and "checkpoint.when is not given" in done.stderr, f"without a condition: {done.returncode}, {done.stderr}")
    equal(daemon.api("GET", "/v1/checkpoints"), [], "checkpoints")


def test_another_host_class(daemon):
    """A checkpoint of another program version, or a pod without one, is no error: a cold start without a complaint."""
    pod, checkpoint = checkpointed(daemon)
    pod.spec["env"] = {"ANOTHER": "version"}
    since = daemon.last_event()
    pod.deploy()
    row = daemon.scale(pod.name, 1)[0]
    equal((row["started_from"], row["outcome"], row["reason"]), ("cold", None, None), "the replica")
    equal(pod.events("replica.fallback", after=since), [], "fallbacks")
    equal(daemon.api("GET", f"/v1/checkpoints/{checkpoint['id']}")["status"], "available", "the checkpoint of the old version")


if __name__ == "__main__":
    thawtest.main(globals())
