"""Programs of the specification that run in a replica: before it is dumped, and after it was restored, before its gate opens."""

import thawtest
from common import Knocker, Pod
from thawtest import check, equal, wait_for

GO = {"file": "/ctl/go"}
ASK = "import http.client, sys\nc = http.client.HTTPConnection('127.0.0.1', 8000)\nc.request('GET', sys.argv[1])\nsys.exit(c.getresponse().status != 200)"


def ask_itself(path):
    return ["python3", "-S", "-c", ASK, path]


def test_unique(daemon):
    """Two replicas of one checkpoint share its random state; with a hook that reseeds each draws its own numbers."""
    draws = {}
    for name, hook in (("same", None), ("other", ask_itself("/reseed"))):
        pod = Pod(daemon, name, when=GO, checkpoint={"after_restore": hook} if hook else None)
        pod.warm()
        pod.wait_checkpoint()
        with Knocker(daemon):
            rows = daemon.scale(name, 3)
        draws[name] = [daemon.http(row, "/draw") for row in rows if row["started_from"] != "cold"]
        equal(len(draws[name]), 2, "restored replicas")
        # The gate opened after the hook, which the proof runs, too.
        for row in rows[1:]:
            noted = pod.notes("reseeded", row["id"])
            equal(len(noted), 1 if hook else 0, f"how often {row['id']} was reseeded")
            for note in noted:
                check(note["time_us"] <= pod.check_gate(row["id"])["time_us"], "the gate opened before the hook had run")
        equal([n for n in pod.notes("reseeded", rows[0]["id"])], [], "the cold one is not reseeded")
        daemon.remove(name)
    equal(draws["same"][0], draws["same"][1], "what two draw that share their state")
    check(draws["other"][0] != draws["other"][1], f"both drew {draws['other'][0]}")


def test_the_shipped_example(daemon):
    """examples/model-server as it is shipped: two replicas of its checkpoint draw different numbers, and the same ones without its hook."""
    folder = thawtest.REPOSITORY / "examples/model-server"
    text = (folder / "pod.yaml").read_text().replace("./rootfs", thawtest.rootfs("example")).replace("./app", str(folder / "app"))
    text = text.replace("host: 9000", f"host: {thawtest.free_port()}") + "env: { HEAP_MIB: 16 }\n"
    bare = "\n".join(line for line in text.splitlines() if "after_restore:" not in line)
    check("after_restore:" in text and bare != text, "the example has no after_restore")
    for spec, wanted in ((text, 2), (bare, 1)):
        since = daemon.last_event()
        daemon.api("POST", "/v1/pods", spec)
        daemon.wait_checkpoint("model-server", after=since)
        rows = daemon.scale("model-server", 3)
        equal([row["outcome"] for row in rows[1:]], ["Restored"] * 2, "how the others started")
        drawn = [daemon.http(row, "/sample") for row in rows[1:]]
        equal(len(set(drawn)), wanted, f"different numbers among {drawn}")
        daemon.remove("model-server")


def test_before_checkpoint(daemon):
    """What it does is in the checkpoint, and it has ended before the dump."""
    pod = Pod(daemon, when=GO, checkpoint={"before_checkpoint": ["sh", "-c", "echo tidy > /var/tmp/tidied"]})
    pod.warm()
    pod.wait_checkpoint()
    row = daemon.scale(pod.name, 2)[1]
    equal(row["outcome"], "Restored", "how the second started")
    equal(daemon.exec(row["id"], "cat", "/var/tmp/tidied").strip(), "tidy", "what the hook left")


def test_before_checkpoint_fails(daemon):
    """No dump, the replica serves, and the reason is told; it counts as a failed dump."""
    pod = Pod(daemon, when=GO, checkpoint={"before_checkpoint": ["sh", "-c", "echo not today >&2; exit 3"]})
    pod.warm()
    failed = pod.wait_checkpoint("failed")
    for word in ("before_checkpoint", "exit code 3", "not today"):
        check(word in failed["reason"], f"the reason does not tell of '{word}': {failed['reason']}")
    equal(pod.get()["identity"]["started_from"], "cold", "who serves")
    equal(daemon.api("GET", f"/v1/pods/{pod.name}")["checkpoint"]["backoff"]["failures"], 1, "failures")
    row = pod.only_replica()
    equal(pod.states(row["id"]), ["starting", "warming", "checkpointing", "ready"], "states")


def test_after_restore_fails(daemon):
    """Such a restore has failed: the replica starts cold, and after two in a row the checkpoint is not offered any more."""
    fails = ["sh", "-c", "test ! -e /ctl/fail || { echo cannot be unique >&2; exit 4; }"]
    pod = Pod(daemon, when=GO, checkpoint={"after_restore": fails})
    pod.warm()
    checkpoint = pod.wait_checkpoint()
    daemon.scale(pod.name, 0)
    (pod.ctl / "fail").touch()
    for status in ("available", "restore_failed"):
        row = daemon.scale(pod.name, 1)[0]
        equal((row["started_from"], row["outcome"]), ("cold", "AppFailed"), f"the replica (its reason is: {row['reason']})")
        for word in ("after_restore", "exit code 4", "cannot be unique"):
            check(word in row["reason"], f"the reason does not tell of '{word}': {row['reason']}")
        pod.check_gate(row["id"])
        equal(daemon.api("GET", f"/v1/checkpoints/{checkpoint['id']}")["status"], status, "the checkpoint")
        daemon.scale(pod.name, 0)


def test_stopped_in_a_hook(daemon):
    """A stop while a hook runs is a stop: no failure of the checkpoint, none of the pod."""
    pod = Pod(daemon, when=GO, checkpoint={"after_restore": ["sh", "-c", "test ! -e /ctl/wait || { touch /ctl/waits; sleep 300; }"]})
    pod.warm()
    checkpoint = pod.wait_checkpoint()
    daemon.scale(pod.name, 0)
    (pod.ctl / "wait").touch()
    daemon.scale(pod.name, 1, wait=False)
    wait_for((pod.ctl / "waits").exists, "the hook runs")
    row = pod.only_replica()
    daemon.scale(pod.name, 0)
    row = daemon.replica(row["id"])
    equal((row["state"], row["outcome"]), ("stopped", "StoppedByUser"), f"the replica (its reason is: {row['reason']})")
    equal(daemon.api("GET", f"/v1/checkpoints/{checkpoint['id']}")["status"], "available", "the checkpoint")


if __name__ == "__main__":
    thawtest.main(globals())
