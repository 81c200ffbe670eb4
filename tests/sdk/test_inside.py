"""The library inside the container: workers, waiters, and what releases them; conditions that are functions; other languages."""

import importlib.util
import json
import subprocess
import time

import thawtest
from common import APP, ask, base, client, equal, lines, own_cache, thaw, wait_for, wait_line
from thaw import callables
from thawtest import check

own_cache()
SERVERS = APP.parent / "servers"
_found = importlib.util.spec_from_file_location("main_common", thawtest.REPOSITORY / "tests/main/common.py")
main_common = importlib.util.module_from_spec(_found)
_found.loader.exec_module(main_common)


def deploy(daemon, name, command, condition, add=SERVERS, wait=True, **more):
    pod = thaw.Pod(name, base().add(str(add)), entrypoint=command, ports=[8000], min_replicas=1, max_replicas=2, checkpoint_condition=condition,
                   stop_grace=0, client=client(daemon), **more)  # fmt: skip
    pod.deploy(wait=wait, timeout=240)
    return pod


def only(pod):
    wait_for(pod.replicas, f"{pod.name} has a replica")
    return pod.replicas()[0]


CALLS = "/tmp/calls"  # where the functions of app.py leave word


def function(name):
    return callables.load(f"app:{name}", str(APP))


def hold_dump(daemon, pod):
    """The dump begins by itself, when the last worker is ready; it takes longer than the time-out of gunicorn's workers."""
    with main_common.HeldDump(Held(daemon, pod), armed=True):
        time.sleep(4)  # what is tested is a freeze of this length
    pod.scale(1)


def pids(pod, replica):
    """Of gunicorn's and uvicorn's processes."""
    text = replica.exec(["sh", "-c", "for p in /proc/[0-9]*; do read -r line <$p/comm && echo ${p#/proc/} $line; done"]).stdout
    return sorted(line.split()[0] for line in text.splitlines() if "gunicorn" in line or "python3" in line)


class Held:
    """What HeldDump needs of a pod: here the dump begins by itself, when the last worker is ready."""

    def __init__(self, daemon, pod):
        self.daemon, self.name = daemon, pod.name

    def only_replica(self):
        return self.daemon.replicas(self.name)[0]

    def go(self):
        pass


def test_gunicorn(daemon):
    """Four workers, the last one late; waiting and frozen for longer than the worker time-out of 2 s, and none is killed for it."""
    daemon.hold_next()
    pod = deploy(daemon, "gunicorn", ["gunicorn", "-c", "wsgi.py", "wsgi:app"], thaw.workers(4), wait=False)
    replica = only(pod)
    wait_line(replica, "ready 3")
    hold_dump(daemon, pod)
    checkpointed = next(event for event in pod.events() if event.type == "replica.checkpointing")
    late = next(line for line in replica.logs() if line.text == "ready 4")
    check(late.time <= checkpointed.time, f"the dump began at {checkpointed.time}, and the last worker was ready at {late.time}")
    wait_line(replica, "waited: False", 3)
    workers = pids(pod, replica)
    equal(pod.wait_checkpoint(180).status, "available", "the checkpoint")
    second = next(found for found in pod.scale(2) if found.id != replica.id)
    check(second.restored, "the second replica starts from the checkpoint")
    wait_line(second, "waited: True", 3)
    time.sleep(4)  # gunicorn looks at its workers once a second, and kills after 2
    for which in (replica, second):
        equal(lines(which, "WORKER TIMEOUT"), [], f"what gunicorn of {which} said")
        equal(pids(pod, which), workers, f"gunicorn's processes in {which}")
    equal({ask(pod.urls[0])["restored"] for _ in range(20)} - {True, False}, set(), "answers")
    pod.remove()


def restored_workers(daemon, pod, quiet=""):
    """Two workers of uvicorn: both are ready before the dump, frozen for longer than gunicorn's time-out, both are told of the restore."""
    first = only(pod)
    hold_dump(daemon, pod)
    wait_line(first, "worker waited: False", 2)
    workers = pids(pod, first)
    equal(pod.wait_checkpoint(180).status, "available", "the checkpoint")
    second = next(found for found in pod.scale(2) if found.id != first.id)
    check(second.restored, "the second replica starts from the checkpoint")
    wait_line(second, "worker waited: True", 2)
    equal(json.loads(daemon.http(second.id, "/"))["restored"], True, "what the restored replica answers")
    if quiet:
        time.sleep(4)  # gunicorn looks at its workers once a second, and kills after 2
    for which in (first, second):
        check(not quiet or not lines(which, quiet), f"{which} said: {lines(which, quiet)}")
        equal(pids(pod, which), workers, f"processes in {which}")
    pod.remove()


def test_uvicorn(daemon):
    daemon.hold_next()
    pod = deploy(daemon, "uvicorn", ["python3", "-m", "uvicorn", "asgi:app", "--host", "0.0.0.0", "--port", "8000", "--workers", "2"], thaw.workers(2), wait=False)
    restored_workers(daemon, pod)


def test_gunicorn_with_uvicorn_workers(daemon):
    daemon.hold_next()
    pod = deploy(daemon, "both", ["gunicorn", "-k", "uvicorn.workers.UvicornWorker", "-w", "2", "-t", "2", "-b", "0.0.0.0:8000", "asgi:app"], thaw.workers(2), wait=False)
    restored_workers(daemon, pod, "WORKER TIMEOUT")


def test_many_workers(daemon):
    """Processes of two users and their threads say it at the same time; who has died does not count; every process that was forked after
    on_restore calls what was given to it, though some of it fails."""
    pod = deploy(daemon, "counted", ["python3", "counted.py"], thaw.workers(20))
    first = only(pod)
    checkpointed = next(event for event in pod.events() if event.type == "replica.checkpointing")
    late = next(line for line in first.logs() if line.text == "the last one")
    check(late.time <= checkpointed.time, f"the dump began at {checkpointed.time}, before the last worker was there at {late.time}")
    equal(pod.wait_checkpoint(180).status, "available", "the checkpoint")
    second = next(found for found in pod.scale(2) if found.id != first.id)
    check(second.restored, "the second replica starts from the checkpoint")
    equal(len(set(wait_line(second, "restored in", 21))), 21, "processes that were told of the restore")
    for text in ("on_restore function fails failed", "Odd object at"):
        equal(len(wait_line(second, text, 21)), 21, f"lines with '{text}'")
    equal(lines(first, "restored in"), [], "what is called where nothing was restored")
    pod.remove()


def test_condition_that_raises(daemon):
    """Ten exceptions are ten events, and then it holds."""
    pod = deploy(daemon, "raises", ["python3", "app.py"], function("raises_ten_times"), add=APP)
    first = only(pod)
    equal(len(first.exec(["cat", "/tmp/calls"]).stdout), 11, "how often it was called")
    said = [event.message for event in pod.events() if event.type == "replica.condition"]
    told = [text for text in said if "not yet, call " in text]
    equal([int(text.partition("not yet, call ")[2].split()[0]) for text in told], list(range(1, 11)), "the calls whose exceptions are told")
    check(all("app.py" in text for text in told), f"where they were raised is told: {told}")
    equal(pod.wait_checkpoint(180).status, "available", "the checkpoint")
    pod.remove()


def test_condition_that_never_holds(daemon):
    """Time-out: the pod serves, there is no checkpoint, and who waits is released."""
    pod = deploy(daemon, "never", ["python3", "app.py"], function("never"), add=APP, checkpoint_timeout=3, wait=False)
    replica = only(pod)
    wait_line(replica, "up")
    one_second = "import thaw; print(thaw.wait_for_restore(0.2))"
    equal(replica.exec(["python3", "-c", one_second]).stdout.strip(), "False", "a wait with a time-out of its own, while it warms up")
    pod.scale(1)
    wait_line(replica, "waited: False")
    equal(json.loads(replica.exec(["cat", "/run/thaw/started.json"]).stdout)["outcome"], "timed-out", "outcome")
    equal(ask(pod.urls[0])["identity"]["replica"], replica.id, "who serves")
    equal(pod.checkpoints(), [], "checkpoints")
    pod.remove()


def test_condition_that_never_returns(daemon):
    """The function hangs: the time-out ends it, the pod serves, who waits is released, and no process of it is left."""
    pod = deploy(daemon, "hangs", ["python3", "app.py"], function("hangs"), add=APP, checkpoint_timeout=10, wait=False)
    replica = only(pod)
    wait_line(replica, "up")
    caller = wait_for(lambda: replica.exec(["sh", "-c", f"cat {CALLS} || true"]).stdout, "the function is called")
    check(replica.exec(["test", "-d", f"/proc/{caller}"]).exit_code == 0, "the function does not hang")
    pod.scale(1)
    wait_line(replica, "waited: False")
    equal(json.loads(replica.exec(["cat", "/run/thaw/started.json"]).stdout)["outcome"], "timed-out", "outcome")
    equal(ask(pod.urls[0])["identity"]["replica"], replica.id, "who serves")

    def ended():
        left = replica.exec(["sh", "-c", "for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline; echo; done 2>/dev/null"]).stdout
        return "app.py" in left and "hangs" not in left

    wait_for(ended, "only the program is left of the replica's processes")
    equal(pod.checkpoints(), [], "checkpoints")
    pod.remove()


def test_failed_dump_releases(daemon):
    """A program that CRIU cannot dump (it has a landlock ruleset) goes on, and who waits in it is released."""
    code = ("import ctypes, thaw; rules = ctypes.CDLL(None).syscall(444, ctypes.byref(ctypes.c_uint64(1)), 8, 0); print('rules', rules, flush=True); "
            "thaw.ready(); print('waited:', thaw.wait_for_restore(), flush=True); import signal; signal.pause()")  # fmt: skip
    pod = deploy(daemon, "rules", ["python3", "-c", code], thaw.file("/run/thaw/ready"))
    replica = only(pod)
    check(wait_line(replica, "rules")[0] != "rules -1", "this machine has no landlock, by which this test makes a dump fail")
    wait_line(replica, "waited: False")
    equal(json.loads(replica.exec(["cat", "/run/thaw/started.json"]).stdout)["outcome"], "failed", "outcome")
    equal(pod.checkpoints()[0].status, "failed", "the checkpoint")
    pod.remove()


def test_c_and_node(daemon):
    """The header and the module do the same."""
    built = daemon.data / "c"
    built.mkdir()
    # As C++ first: then as C, which is what runs.
    for compiler in (["g++", "-x", "c++", "-std=c++17"], ["gcc", "-std=c99"]):
        subprocess.run([*compiler, "-Wall", "-Wextra", "-Werror", "-pthread", "-I", thawtest.REPOSITORY / "sdk/c", "-o", built / "waiter", SERVERS / "waiter.c"], check=True, timeout=60)
    c = deploy(daemon, "c", ["/app/waiter"], thaw.notify(), add=built)
    first = only(c)
    equal(wait_line(first, "waited:"), [f"waited: 0 as {first.id}"], "the C program that was dumped")
    node = deploy(daemon, "node", ["node", "server.js"], thaw.all_(thaw.workers(1), thaw.tcp()), mounts=[f"{thawtest.REPOSITORY}/sdk/node:/opt/thaw/node:ro"])
    equal(c.wait_checkpoint(180).status, "available", "the C program's checkpoint")
    second = next(found for found in c.scale(2) if found.id != first.id)
    check(second.restored, "the second C replica starts from the checkpoint")
    equal(wait_line(second, "waited:"), [f"waited: 1 as {second.id}"], "the C program that was restored")
    equal(wait_line(second, "on_restore"), [f"on_restore as {second.id}"], "what thaw_on_restore called, once")
    equal(lines(first, "on_restore"), [], "what it called where nothing was restored")
    equal(node.wait_checkpoint(180).status, "available", "node's checkpoint")
    first = only(node)
    wait_for(lambda: json.loads(daemon.http(first.id, "/"))["waited"] is False, "node is released after the dump")
    second = next(found for found in node.scale(2) if found.id != first.id)
    wait_for(lambda: json.loads(daemon.http(second.id, "/"))["restores"] == [second.id], "node's onRestore is called")
    check(json.loads(daemon.http(first.id, "/"))["restores"] == [], "node's onRestore is not called where nothing was restored")
    c.remove()
    node.remove()


if __name__ == "__main__":
    thawtest.main(globals())
