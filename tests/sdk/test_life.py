"""A pod's whole life through the Python package, against a real daemon: deployed from a file, warm by a function, restored, used, gone."""

import concurrent.futures
import contextlib
import http.client
import json
import os
import shutil
import subprocess
import sys

import thawtest
from common import APP, ask, base, client, equal, lines, own_cache, raises, thaw, wait_equal, wait_for, wait_line
from thaw import callables
from thawtest import check

CACHE = own_cache()


def load(daemon):
    """The pod of app.py, as `thaw deploy app.py:pod` loads it."""
    pod = callables.load("app:pod", str(APP))
    pod._client = client(daemon)
    return pod


def several_at_once(pod):
    """Two threads and another process ask for a replica at the same time: each gets one of its own."""
    pod.stop()
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        here = [pool.submit(lambda: pod.create().id) for _ in range(2)]
        there = pool.submit(subprocess.run, [sys.executable, "-B", "-c", "import app; print(app.pod.create().id)"], cwd=APP, check=True, capture_output=True, text=True,
                            env={**os.environ, "THAW_HOST": pod.client.address}, timeout=240)  # fmt: skip
        made = [*(one.result() for one in here), there.result().stdout.strip()]
    equal(len(set(made)), 3, f"replicas that three callers made ({made})")
    equal({replica.id for replica in pod.replicas()}, set(made), "the pod's replicas")


def test_life(daemon):
    """Deploy, condition in the container, checkpoint, restore, on_restore, logs, exec, events, scale, stop, remove."""
    pod = load(daemon)
    said = []
    deployment = pod.deploy(progress=said.append)
    check(deployment.created and deployment.urls, f"a deployment with a URL: {deployment}")
    check(any("building" in line for line in said) and any("replica.ready" in line for line in said), f"progress of build and start: {said}")
    equal(deployment.warnings, [], "warnings")
    first = pod.replicas()[0]
    answer = ask(deployment.urls[0])
    equal((answer["mode"], answer["enabled"], answer["restored"], answer["identity"]["replica"]), ("test", True, False, first.id), "the first replica")
    wait_line(first, "waited: False")  # released by the end of the dump
    equal(pod.wait_checkpoint(180).status, "available", "the checkpoint")

    ready = pod.scale(2)
    second = next(replica for replica in ready if replica.id != first.id)
    check(second.restored and not first.restored, "the second replica starts from the checkpoint")
    wait_line(second, "waited: True")
    equal(wait_line(second, "restored as"), [f"restored as {second.id}"], "what on_restore saw, once")
    first.stop()
    wait_for(lambda: first.id not in [replica.id for replica in pod.replicas() if replica.state != "stopped"], "the first replica is gone")

    result = second.exec(["sh", "-c", "cat; echo oops >&2; exit 3"], input="to stdin")
    equal((result.exit_code, result.stdout, result.stderr), (3, "to stdin", "oops\n"), "exec")
    raises(thaw.ThawError, lambda: second.exec(["false"], check=True), "exit code 1")
    big = "x" * 3_000_000
    equal(len(second.exec(["cat"], input=big, timeout=180).stdout), len(big), "what comes back of 3 MB")
    types = [event.type for event in pod.events()]
    check("checkpoint.available" in types and "replica.restoring" in types, f"events: {types}")
    followed = next(event for event in pod.events(follow=True) if event.type == "replica.ready")
    equal(followed.replica, first.id, "the first ready replica of the followed events")

    follower = second.logs(follow=True)
    check(next(follower).text, "the log's first line")
    pod.stop()
    followed = [line.text for line in follower]  # ends with the replica
    check("waited: True" in followed, f"the followed log has what came later: {followed}")
    equal(pod.replicas(), [], "replicas after stop")
    third = pod.create()
    check(third.restored, f"a replica after stop is restored: {third}")
    equal(ask(third.url)["identity"]["replica"], third.id, "who answers at the replica's URL")
    wait_equal(lambda: ask(third.url)["restores"], [third.id], "restores that its processes saw")
    several_at_once(pod)
    made = pod.checkpoint()
    equal(made.status, "available", f"a checkpoint on demand ({made.reason})")
    pod.remove()
    raises(thaw.ThawError, lambda: pod.urls, "life")
    equal(daemon.api("GET", "/v1/checkpoints"), [], "checkpoints after remove")


def test_changed_code_is_deployed(daemon):
    """Only what changed is copied; an unchanged folder changes nothing; another content is another checkpoint."""
    folder = daemon.data / "project"
    shutil.copytree(APP, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "big.bin").write_bytes(os.urandom(1 << 20))
    (folder / ".gitignore").write_text("*.log\n")
    (folder / "x.log").write_text("not for the container")

    def pod():
        return thaw.Pod("code", base().add(str(folder)), entrypoint=["python3", "app.py"], ports=[8000], min_replicas=1,
                        checkpoint_condition=thaw.http("/health"), stop_grace=0, client=client(daemon))  # fmt: skip

    url = pod().deploy().urls[0]
    equal(ask(url)["version"], 1, "version")
    equal(pod().exec(["sh", "-c", "ls /app"]).stdout.split(), ["app.py", "big.bin"], "files in the container")
    check(not pod().deploy().changed, "nothing changed, and the pod did")
    contents = set(CACHE.glob("images/content/*/*"))
    old = folder / "app.py"
    old.write_text(old.read_text().replace("VERSION = 1", "VERSION = 2"))  # of the same size
    check(pod().deploy().changed, "the code changed, and the pod did not")
    equal(ask(pod().urls[0])["version"], 2, "version after the change")
    equal(len(set(CACHE.glob("images/content/*/*")) - contents), 1, "files that were copied for one edited file")
    pod().remove()


def test_a_deploy_leaves_the_scale(daemon):
    """min_replicas=0 and a connection that is held: a deploy by the package, and one by the command, wait for what the connection calls
    for, and ask for no replica of their own."""
    def declared(mode):
        return thaw.Pod("zero", base().add(str(APP)), entrypoint=["python3", "app.py"], ports=[8000], env={"MODE": mode}, min_replicas=0, max_replicas=2,
                        keep_warm=1, stop_grace=0, client=client(daemon))  # fmt: skip

    def look():
        row = daemon.api("GET", "/v1/pods/zero")
        return row["scale"], row["version"], [replica["version"] for replica in daemon.replicas("zero", "ready")]

    url = declared("one").deploy().urls[0]
    equal(look(), (0, 1, []), "scale, version and replicas after the first deploy")
    with contextlib.closing(http.client.HTTPConnection(url.partition("//")[2], timeout=180)) as held:
        held.request("GET", "/")
        equal(json.loads(held.getresponse().read())["mode"], "one", "who answers")
        held.request("GET", "/hold")
        pod = declared("two")
        pod.deploy()
        wait_equal(look, (0, 2, [2]), "scale, version and replicas after a deploy")
    with contextlib.closing(http.client.HTTPConnection(url.partition("//")[2], timeout=180)) as held:
        held.request("GET", "/hold")
        file = daemon.data / "zero.json"
        file.write_text(json.dumps({**pod.spec(), "env": {**pod.spec()["env"], "MODE": "three"}}))
        daemon.cli("deploy", file)
        wait_equal(look, (0, 3, [3]), "scale, version and replicas after `thaw deploy`")
    wait_for(lambda: look() == (0, 3, []), "nothing runs when nobody calls")
    pod.remove()


def test_several_gpus(daemon):
    """gpu > 1: deployed, checkpointing off, a warning, and the container reads the effective value."""
    import warnings

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pod = thaw.Pod("gpus", base().add(str(APP)), entrypoint=["python3", "app.py"], ports=[8000], gpu=2, min_replicas=1, stop_grace=0,
                       checkpoint_enabled=True, checkpoint_condition=thaw.http("/health"), client=client(daemon))  # fmt: skip
    check(any("more than one GPU" in str(w.message) for w in caught), f"a warning: {[str(w.message) for w in caught]}")
    try:
        url = pod.deploy().urls[0]
    except thaw.ThawError as error:
        raise thawtest.Failure(f"a pod with two GPUs is not deployed: {error}") from error
    answer = ask(url)
    equal((answer["enabled"], answer["waited"]), (False, False), "checkpoint_enabled() and wait_for_restore() in the container")
    equal(json.loads(pod.exec(["cat", "/run/thaw/started.json"]).stdout)["outcome"], "uncheckpointed", "outcome")
    equal(pod.checkpoints(), [], "checkpoints")
    pod.remove()


if __name__ == "__main__":
    thawtest.main(globals())
