"""What a replica is given and what it sees: alone, as one of eight, cold and restored."""

import collections
import json
import os

import common
import thawtest
from common import Knocker, Pod, ask
from thawtest import check, equal, wait_for

GO = {"file": "/ctl/go"}


def test_eight_at_once(daemon):
    """Eight restored beside the first, at once: each is one of its own in every respect, and all answer."""
    pod = Pod(daemon, when=GO, max=9)
    pod.warm()
    checkpoint = pod.wait_checkpoint()
    with Knocker(daemon):
        rows = daemon.scale(pod.name, 9)
        equal([row["started_from"] for row in rows], ["cold"] + [checkpoint["id"]] * 8, "how they started")
        seen = [ask(daemon, row, "who") for row in rows]
        for row, who in zip(rows, seen):
            started_from = row["started_from"]
            expected = {"pod": "web", "replica": row["id"], "hostname": row["hostname"], "generation": row["id"], "started_from": started_from}
            equal(who["identity"], expected, "identity.json")
            equal((who["hostname"], who["etc_hostname"]), (row["hostname"], row["hostname"]), "hostname and /etc/hostname")
            check(f"10.77.0.2 {row['hostname']}" in who["hosts"], f"/etc/hosts does not name {row['hostname']}: {who['hosts']}")
            equal(who["restored"], started_from != "cold", "/run/thaw/restored is there")
            pod.check_gate(row["id"])
        for name, values in (("ids", [r["id"] for r in rows]), ("addresses", [r["address"] for r in rows]), ("v6", [r["address6"] for r in rows]),
                             ("hostnames", [r["hostname"] for r in rows]), ("slots", [r["slot"] for r in rows]), ("pids", [r["pid"] for r in rows]),
                             ("namespaces", [os.readlink(f"/proc/{r['pid']}/ns/{kind}") for r in rows for kind in ("net", "uts", "ipc", "mnt", "pid")])):  # fmt: skip
            equal([v for v, n in collections.Counter(values).items() if n > 1], [], f"{name} that two have")
        answered = collections.Counter(pod.get()["identity"]["replica"] for _ in range(90))
        equal(set(answered), {row["id"] for row in rows}, f"who answers at the published port ({answered})")
        # What one writes, the others do not see.
        for row in rows:
            daemon.exec(row["id"], "sh", "-c", f"echo {row['id']} > /var/tmp/mine; echo {row['id']} > /dev/shm/mine; echo {row['id']} > /run/thaw/mine")
        for row in rows:
            equal(daemon.exec(row["id"], "cat", "/var/tmp/mine", "/dev/shm/mine", "/run/thaw/mine").split(), [row["id"]] * 3, "what it wrote")
        # One of them dies; the others do not notice, and another takes its place from the checkpoint.
        since = daemon.last_event()
        ask(daemon, rows[4], "exit/9", answer=False)
        event = pod.wait_event("replica.failed", since, rows[4]["id"])
        equal(daemon.replica(event["replica"])["exit_code"], 9, "its exit code")
        ready = daemon.wait_ready(pod.name, 9, event["id"])
        equal({row["id"] for row in rows} - {row["id"] for row in ready}, {rows[4]["id"]}, "who is gone")
        equal(next(row for row in ready if row["id"] not in {r["id"] for r in rows})["started_from"], checkpoint["id"], "how the new one started")


# podman's default capabilities (containers/common).
CAPABILITIES = sum(1 << n for n in (0, 1, 3, 4, 5, 6, 7, 8, 10, 18, 31))


def test_the_view_from_inside(daemon):
    """A restored replica sees what a cold one sees, and neither sees more than it should."""
    pod = Pod(daemon, when=GO, resources={"cpu": 0.5, "memory": "256MiB", "pids": 64})
    pod.warm()
    pod.wait_checkpoint()
    rows = daemon.scale(pod.name, 2)
    cold, restored = (ask(daemon, row, "view") for row in rows)
    equal(rows[1]["outcome"], "Restored", "how the second started")
    check("restored" in restored["run/thaw"] and "restored" not in cold["run/thaw"], "/run/thaw/restored")
    for view in cold, restored:
        view["run/thaw"] = [name for name in view["run/thaw"] if name != "restored"]
    for key in cold:
        equal(restored[key], cold[key], f"{key} in the restored replica, as against the cold one")

    status = cold["status"]
    for name in ("CapEff", "CapPrm", "CapBnd"):
        equal(f"{int(status[name], 16):x}", f"{CAPABILITIES:x}", name)
    equal((status["CapInh"].strip("0"), status["CapAmb"].strip("0"), status["NoNewPrivs"]), ("", "", "1"), "CapInh, CapAmb and NoNewPrivs")
    for path, found in cold["masked"].items():
        check(found in (0, []) or str(found).startswith("error"), f"{path} can be read: {found}")
    for path, found in cold["settings"].items():
        check(str(found).startswith("error"), f"{path} {found}")
    equal((status["Seccomp"], status["Seccomp_filters"]), ("2", "1"), "Seccomp and its filters")
    check_calls(cold["calls"], "its program")
    for row in rows:
        text = daemon.exec(row["id"], "python3", "-S", "-E", "/app/calls.py")
        check_calls(json.loads(text), f"an exec session in {row['started_from']}")
    check(cold["raw socket"] == "error 1" and cold["device node"] == "error 1", f"raw sockets and device nodes: {cold['raw socket']}, {cold['device node']}")
    names = sorted(name for name, *_ in cold["devices"])
    wanted = ["fd", "full", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty", "urandom", "zero"]
    equal(names, [f"/dev/{name}" for name in wanted], "/dev")
    equal(cold["links"], ["eth0", "lo"], "links")
    equal(cold["processes"], ["python3"], "processes")

    # The cgroups, from outside: the same limits, the same devices, everything of the container in them.
    for row in rows:
        groups = [line.split(":", 2) for line in thawtest._read(f"/proc/{row['pid']}/cgroup").decode().splitlines()]
        check(groups and all(f"/{row['slot']}" in path for _, _, path in groups if path != "/"), f"process {row['pid']} is in {groups}")
    found, other = limits(daemon, rows[0]), limits(daemon, rows[1])
    equal(other, found, "limits of the restored replica, as against the cold one")
    for name, value in (("memory", str(256 << 20)), ("pids.max", "64"), ("cpu", "50000")):
        check(any(name in key and value in text.split() for key, text in found.items()), f"no cgroup limits {name} to {value}: {found}")

    # The memory limit is real in both.
    for row in rows:
        done = daemon.exec(row["id"], "python3", "-S", "-c", "b = bytearray(400 << 20)\nfor i in range(0, len(b), 4096): b[i] = 1", check_exit=False)
        equal(done.returncode, 137, f"exit code of a program that needs more than the limit in replica {row['id']}")


# Answered as if the kernel did not know them: programs then do without.
UNKNOWN = ("io_uring_setup", "io_uring_enter", "io_uring_register", "add_key", "request_key", "personality of no randomness", "a call of the future")


def check_calls(calls, who):
    """What the seccomp profile answers: ENOSYS, EPERM, EINVAL to the audit socket, and nothing to what is allowed."""
    wanted = {name: 38 if name in UNKNOWN else 1 for name in calls}
    wanted |= {"personality asked": 0, "getpid": 0, "audit socket": 22}
    wanted |= {"mount": 1, "keyctl": calls["keyctl"]}  # allowed by the filter; of mount it is the capability that is missing
    check(calls["keyctl"] not in (1, 38), f"{who}: keyctl is answered with {calls['keyctl']}")
    equal(calls, wanted, f"system calls of {who}")


def limits(daemon, row):
    """What the cgroup controllers say of a replica, by file."""
    found = {}
    names = ("memory.limit_in_bytes", "memory.max", "pids.max", "cpu.cfs_quota_us", "cpu.cfs_period_us", "cpu.max", "devices.list", "cpuset.cpus")
    for top, _, files in os.walk("/sys/fs/cgroup"):
        if top.endswith(f"/{row['slot']}"):
            for name in set(names) & set(files):
                lines = thawtest._read(f"{top}/{name}").decode().splitlines()
                # runc's own addition, /dev/net/tun: there is no such node in a container, and no right to make one.
                found[f"{top.split('/')[4]}/{name}"] = " ".join(sorted(line for line in lines if line != "c 10:200 rwm"))
    return found


def test_variables(daemon):
    """Thaw's own variables, by each way in which checkpoints can be off, and the deploy says why."""
    for name, more, enabled, reason in (
        ("on", {"when": GO}, "true", None),
        ("off", {"when": GO, "checkpoint": {"enabled": False}}, "false", "checkpoint.enabled"),
        ("never", {}, "false", None),
        ("gpus", {"when": GO, "resources": {"gpu": 2}}, "false", "resources.gpu"),
    ):
        pod = Pod(daemon, name, **more)
        pod.go()
        file = daemon.data / f"{name}.json"
        file.write_text(json.dumps(pod.spec))
        done = daemon.cli("deploy", file)
        who = pod.get()
        row = pod.only_replica()
        mine = {key: value for key, value in who["env"].items() if key.startswith("THAW_") or key == "NOTIFY_SOCKET"}
        wanted = {"THAW_POD": name, "THAW_REPLICA": row["id"], "THAW_CHECKPOINT_ENABLED": enabled, "NOTIFY_SOCKET": "/run/thaw/notify"}
        if "when" in more:
            wanted["THAW_CHECKPOINT_CONDITION"] = "file"
        equal(mine, wanted, f"{name}: its variables")
        offered = daemon.api("GET", f"/v1/pods/{name}")["checkpoint"]
        equal(offered["effective"], enabled == "true", f"{name}: the effective value")
        if reason:
            check(reason in (offered["reason"] or ""), f"{name}: the pod does not say why it has no checkpoints: {offered['reason']}")
        if name == "gpus":
            check(reason in done.stderr, f"{name}: `thaw deploy` does not say why there are no checkpoints: {done.stderr}")
        daemon.remove(name)


def test_no_criu():
    """A host without CRIU: pods run, cold only, and the deploy, the pod and `thaw doctor` say why."""
    with thawtest.Daemon("--criu", "/var/empty/no-such-criu") as daemon:
        pod = Pod(daemon, when=GO)
        pod.go()
        file = daemon.data / "pod.json"
        file.write_text(json.dumps(pod.spec))
        done = daemon.cli("deploy", file)
        check("criu" in done.stderr.lower(), f"`thaw deploy` does not say why there are no checkpoints: {done.stderr}")
        equal(pod.get()["env"]["THAW_CHECKPOINT_ENABLED"], "false", "THAW_CHECKPOINT_ENABLED")
        equal(pod.states(pod.only_replica()["id"]), ["starting", "warming", "ready"], "states")
        failed = daemon.cli("checkpoint", "create", pod.name, check_exit=False)
        check(failed.returncode == 1 and "criu" in failed.stderr.lower(), f"`thaw checkpoint create`: {failed.returncode}, {failed.stderr}")
        daemon.remove(pod.name)
        equal(daemon.destroy(), [], "what had to be ended by force")


def test_users_and_folders(daemon):
    """user, workdir and env of the specification, cold and restored; the exec session is the same user."""
    pod = Pod(daemon, when=GO, user="app", workdir="/home/app", env={"PLAIN": "a b\"c'd=$e", "HOME": "/elsewhere"})
    pod.warm()
    pod.wait_checkpoint()
    rows = daemon.scale(pod.name, 2)
    for row in rows:
        who = ask(daemon, row, "who")
        equal((who["uid"], who["gid"], who["cwd"], who["env"]["PLAIN"], who["env"]["HOME"]),
              (1000, 1000, "/home/app", "a b\"c'd=$e", "/elsewhere"), "user, folder and variables")  # fmt: skip
        equal(daemon.exec(row["id"], "sh", "-c", "id -u; id -g; pwd; echo \"$PLAIN\"").splitlines(), ["1000", "1000", "/home/app", "a b\"c'd=$e"], "exec")
        status = ask(daemon, row, "view")["status"]
        equal((status["CapEff"].strip("0"), status["CapPrm"].strip("0"), status["NoNewPrivs"]), ("", "", "1"), "capabilities of an ordinary user")
        lines = daemon.exec(row["id"], "sh", "-c", "grep -E 'Cap(Eff|Prm|Bnd)|NoNewPrivs' /proc/self/status").split()
        equal(int(lines[1], 16) | int(lines[3], 16), 0, f"capabilities of an exec session ({lines})")
        equal(lines[-1], "1", f"NoNewPrivs of an exec session ({lines})")


def test_replicas_cannot_reach_each_other(daemon):
    """Neither over IPv4 nor over IPv6."""
    pod = Pod(daemon, when=GO)
    pod.warm()
    pod.wait_checkpoint()
    rows = daemon.scale(pod.name, 2)
    program = "import socket, sys\nfor address in sys.argv[1:]:\n    try:\n        socket.create_connection((address, 8000), timeout=0.5)\n        print(address)\n    except OSError: pass"
    for one, other in (rows, rows[::-1]):
        reached = daemon.exec(one["id"], "python3", "-S", "-c", program, other["address"], other["address6"]).split()
        equal(reached, [], f"what {one['id']} reaches of {other['id']}")
    for row in rows:
        pod.check_gate(row["id"])


if __name__ == "__main__":
    thawtest.main(globals())
