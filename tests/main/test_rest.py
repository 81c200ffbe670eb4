"""Memory of checkpoints that nobody uses: compressed, inflated again by the next start, and every byte is the right one."""

import subprocess
import threading
import time

import thawtest
from common import Pod
from thawtest import ApiError, check, equal, wait_for


def pattern(daemon, name="memory", mib=64, **env):
    """A pod of inside/pattern.py with an available checkpoint and no replica; both."""
    pod = Pod(daemon, name, when={"http": {}}, env={"MIB": str(mib), **env})
    pod.spec.update(command=["python3", "-S", "-E", "/app/pattern.py"], resources={"memory": "1GiB"}, replicas={"min": 1, "max": 3}, stop_grace="1s")
    pod.deploy()
    checkpoint = pod.wait_checkpoint()
    daemon.scale(pod.name, 0)
    return pod, checkpoint


def folder(daemon, checkpoint):
    return daemon.data / "checkpoints" / checkpoint["id"]


def files(daemon, checkpoint):
    """Names of its plain memory images, and of those at rest."""
    top = folder(daemon, checkpoint)
    return sorted(p.name for p in top.glob("images/pages-*")), sorted(p.name for p in top.glob("rest/*"))


def row_of(daemon, checkpoint):
    return daemon.api("GET", f"/v1/checkpoints/{checkpoint['id']}")


def restores_right(pod, checkpoint, inflated=True):
    """A replica starts from it and finds each of its pages."""
    daemon, since = pod.daemon, pod.daemon.last_event()
    row = daemon.scale(pod.name, 1)[0]
    equal((row["started_from"], row["outcome"]), (checkpoint["id"], "Restored"), f"the replica (its reason is: {row['reason']})")
    equal(daemon.http(row["id"], "/all", timeout=120), "ok\n", "answer to /all")
    wrong = pod.ctl / "wrong"
    check(not wrong.exists(), f"wrong bytes: {wrong.read_text()[:500] if wrong.exists() else ''}")
    phases = [phase["name"] for phase in daemon.replica(row["id"])["phases"]]
    equal("preparing/inflate" in phases, inflated, f"whether a phase tells of it: {phases}")
    equal([e["checkpoint"] for e in pod.events("memory.inflated", after=since)], [checkpoint["id"]] if inflated else [], "events that tell of it")
    return row


def test_by_hand():
    """`thaw checkpoint compress`: what it shows, what verify and zstd say, a restart, and the start that inflates it."""
    with thawtest.Daemon() as daemon:
        pod, checkpoint = pattern(daemon)
        equal((checkpoint["compressed"], checkpoint["stored_bytes"]), (False, checkpoint["bytes"]), "a fresh one")
        digests = {f["path"]: f["sha256"] for f in row_of(daemon, checkpoint)["manifest"]["files"]}

        # One that is in use is left alone.
        daemon.scale(pod.name, 1)
        refused = daemon.cli("checkpoint", "compress", checkpoint["id"], check_exit=False)
        check(refused.returncode != 0 and "a replica uses it" in refused.stderr, f"one in use: {refused.returncode}, {refused.stderr}")
        equal(files(daemon, checkpoint)[1], [], "what is at rest of it")
        daemon.scale(pod.name, 0)

        plain = files(daemon, checkpoint)[0]
        printed = daemon.cli("checkpoint", "compress", checkpoint["id"][:6]).stdout
        check(printed.startswith(checkpoint["id"][:6] + " "), f"`thaw checkpoint compress`: {printed}")
        now = row_of(daemon, checkpoint)
        check(now["compressed"] and now["stored_bytes"] < now["bytes"] // 2, f"what it takes: {now['stored_bytes']} of {now['bytes']}")
        equal(now["bytes"], checkpoint["bytes"], "its size")
        check("zstd" in daemon.cli("checkpoint", "ls").stdout, "`thaw checkpoint ls` does not tell of it")
        on_disk = sum(p.stat().st_size for p in folder(daemon, checkpoint).glob("*/*") if p.parent.name in ("images", "rest"))
        equal(now["stored_bytes"], on_disk, "what it takes")
        left, rests = files(daemon, checkpoint)
        check(rests and not [name for name in left if name + ".zst" in rests], f"both are there: {left}, {rests}")
        event = pod.events("memory.compressed")[0]["data"]
        check(event["plain_bytes"] > event["stored_bytes"] and event["took_us"] > 0, f"the event: {event}")
        _, text = daemon.api("GET", "/metrics", raw=True)
        check(f"thaw_store_bytes {now['stored_bytes']}\n" in text, "the store counts what is on the disk")
        check("thaw_checkpoints_compressed 1\n" in text and 'thaw_rest_seconds_count{way="compress"} 1' in text, "metrics do not tell of it")

        # zstd's own program reads the same.
        for name in rests:
            data = subprocess.run(["zstd", "-q", "-d", "-c", folder(daemon, checkpoint) / "rest" / name], capture_output=True, timeout=60, check=True).stdout
            digest = subprocess.run(["sha256sum"], input=data, capture_output=True, timeout=60, check=True).stdout.decode().split()[0]
            equal(digest, digests["images/" + name.removesuffix(".zst")], f"contents of {name}")
        daemon.cli("checkpoint", "verify", checkpoint["id"])
        equal(files(daemon, checkpoint), (left, rests), "verify puts nothing on the disk")
        # Again: it is so already.
        daemon.cli("checkpoint", "compress", checkpoint["id"])

        daemon.restart(kill=True)
        equal(files(daemon, checkpoint), (left, rests), "files after a restart")
        restores_right(pod, checkpoint)
        equal(files(daemon, checkpoint), (plain, []), "files after the start")
        check(not row_of(daemon, checkpoint)["compressed"], "it is not compressed any more")
        # The next one has nothing to inflate.
        daemon.scale(pod.name, 0)
        restores_right(pod, checkpoint, inflated=False)
        daemon.clear()
        equal(daemon.destroy(), [], "what had to be ended by force")


def test_by_itself():
    """What nobody has used for a while is compressed; what is used is not, and counts anew when that is over."""
    with thawtest.Daemon("--checkpoint-compress-after", "2s") as daemon:
        pod, checkpoint = pattern(daemon)
        wait_for(lambda: row_of(daemon, checkpoint)["compressed"], "it is compressed")
        restores_right(pod, checkpoint)
        time.sleep(5)
        check(not row_of(daemon, checkpoint)["compressed"], "one that a replica runs from is compressed")
        daemon.scale(pod.name, 0)
        check(not row_of(daemon, checkpoint)["compressed"], "it is compressed at once")
        wait_for(lambda: row_of(daemon, checkpoint)["compressed"], "it is compressed again")
        # Many at once: one inflates, all restore.
        rows = daemon.scale(pod.name, 3)
        equal([row["outcome"] for row in rows], ["Restored"] * 3, "three at once")
        for row in rows:
            equal(daemon.http(row["id"], "/all", timeout=120), "ok\n", "answer to /all")
        daemon.scale(pod.name, 0)
        daemon.stop()
        daemon.arguments[1] = "never"
        daemon.start()
        restores_right(pod, checkpoint, inflated=row_of(daemon, checkpoint)["compressed"])
        daemon.scale(pod.name, 0)
        time.sleep(4)
        check(not row_of(daemon, checkpoint)["compressed"], "it is compressed though it shall not be")


def held(daemon, step):
    """The daemon again, which waits at this step once; the file that appears there."""
    daemon.stop()
    mark = daemon.data / f"mark-{step}"
    daemon.env |= {"THAW_FAULT": f"{step}:hold", "THAW_FAULT_MARK": str(mark)}
    daemon.start()
    return mark


def test_needed_meanwhile():
    """A start that comes while its checkpoint is being compressed does not wait, and keeps the plain files."""
    with thawtest.Daemon() as daemon:
        pod, checkpoint = pattern(daemon)
        for step in ("rest.begun", "rest.written"):
            mark = held(daemon, step)
            answers = []

            def compress(answers=answers):
                try:
                    answers.append(daemon.api("POST", f"/v1/checkpoints/{checkpoint['id']}/compress"))
                except ApiError as error:
                    answers.append(error)

            thread = threading.Thread(target=compress)
            thread.start()
            wait_for(mark.exists, f"it comes to {step}")
            restores_right(pod, checkpoint, inflated=False)
            (daemon.data / f"{mark.name}.go").touch()
            thread.join(60)
            check(len(answers) == 1 and isinstance(answers[0], ApiError) and answers[0].status == 409, f"{step}: the answer: {answers}")
            daemon.scale(pod.name, 0)
            equal(files(daemon, checkpoint)[1], [], f"{step}: what is left at rest")
            restores_right(pod, checkpoint, inflated=False)
            daemon.scale(pod.name, 0)

        # A removal meanwhile: nothing is left of it.
        mark = held(daemon, "rest.begun")
        thread = threading.Thread(target=compress)
        answers.clear()
        thread.start()
        wait_for(mark.exists, "it comes to rest.begun")
        daemon.cli("checkpoint", "rm", checkpoint["id"])
        (daemon.data / f"{mark.name}.go").touch()
        thread.join(60)
        wait_for(lambda: not folder(daemon, checkpoint).exists(), "its files go")


if __name__ == "__main__":
    thawtest.main(globals())
