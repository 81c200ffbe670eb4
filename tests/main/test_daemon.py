"""What outlives a daemon that is killed, stops, many restores at once, every condition, bad input."""

import contextlib
import json
import signal
import socket
import urllib.request

import thawtest
from openapi import Described
from thawtest import ApiError, Failure, check, equal, rootfs, wait_for

SERVER = r"""
import http.server, json, os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN if "IGNORE_TERM" in os.environ else lambda *_: os._exit(9))
time.sleep(float(os.environ.get("DELAY", "0")))
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/exit": os._exit(7)
        body = open("/run/thaw/identity.json").read().encode()
        self.send_response(200); self.end_headers(); self.wfile.write(body)
    def log_message(self, *a): print("asked", flush=True)
http.server.ThreadingHTTPServer(("0.0.0.0", 8000), H).serve_forever()
"""


def spec(name, when=None, env=None, code=SERVER, **more):
    return {
        "name": name,
        "rootfs": rootfs("example"),
        "command": ["python3", "-c", code],
        "ports": [8000],
        "env": env or {},
        "replicas": {"min": 1, "max": 8},
        "checkpoint": {"when": when or {"http": {"path": "/"}}},
        "stop_grace": "0s",
        **more,
    }


def get(port, path="/", timeout=90):
    return json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=timeout))


def test_eight_at_once(daemon):
    daemon.deploy(spec("eight"))
    checkpoint = daemon.wait_checkpoint("eight")
    daemon.scale("eight", 0)
    rows = daemon.scale("eight", 8)
    equal(len(rows), 8, "ready replicas")
    equal({row["started_from"] for row in rows}, {checkpoint["id"]}, "what they started from")
    for key in ("id", "address", "hostname", "slot"):
        equal(len({row[key] for row in rows}), 8, f"different values of {key}")
    port, seen = daemon.port("eight"), {}
    for _ in range(64):
        who = get(port)
        seen[who["replica"]] = who["hostname"]
    equal(seen, {row["id"]: row["hostname"] for row in rows}, "who answered")
    for row in rows:
        equal(daemon.exec(row["id"], "hostname").strip(), row["hostname"], "the hostname inside")


def test_a_program_that_holds_its_identity_open(daemon):
    """CRIU compares the sizes of open files: who a replica is must not change that of its file."""
    daemon.deploy(spec("holds", code="held = open('/run/thaw/identity.json')\n" + SERVER))
    checkpoint = daemon.wait_checkpoint("holds")
    rows = daemon.scale("holds", 2)
    equal([row["started_from"] for row in rows], ["cold", checkpoint["id"]], "how they started")


def test_a_killed_daemon_takes_ready_replicas_back(daemon):
    daemon.deploy(spec("kept"))
    daemon.wait_checkpoint("kept")
    before = daemon.scale("kept", 2)
    port = daemon.port("kept")
    daemon.restart(kill=True)
    after = daemon.wait_ready("kept", 2)
    for old, new in zip(before, after):
        for key in ("id", "pid", "address", "started_from", "ready_us"):
            equal(new[key], old[key], key)
    equal({get(port)["replica"] for _ in range(8)}, {row["id"] for row in before}, "who answers after it")
    wait_for(lambda: "asked" in daemon.logs(before[0]["id"]), "the log goes on")


def test_a_network_that_another_daemon_has_taken():
    """Only living replicas bind a daemon to the number of its network: without any it takes another."""
    with thawtest.Daemon() as first, contextlib.ExitStack() as later:
        number = first.locks()
        first.stop()
        others = []
        # Others take every number up to that one.
        while not any(other.locks() & number for other in others):
            check(len(others) < 8, f"number {number} is not given out again")
            others.append(later.enter_context(thawtest.Daemon()))
        first.start()
        equal(first.locks() & number, set(), "the numbers that both have")
        first.deploy(spec("other"))


def test_a_killed_daemon_learns_how_a_replica_ended(daemon):
    daemon.deploy(spec("ended"))
    daemon.wait_checkpoint("ended")
    row = daemon.replicas("ended", "ready")[0]
    daemon.kill9()
    daemon.inside(row, ["curl", "-s", "-m", "60", "http://10.77.0.2:8000/exit"], check_exit=False)
    daemon.start()
    wait_for(lambda: daemon.replica(row["id"])["state"] == "failed", "the replica is known to have ended")
    equal(daemon.replica(row["id"])["exit_code"], 7, "its exit code")
    daemon.wait_ready("ended", 1, daemon.last_event())


def test_a_daemon_killed_while_a_replica_warms_up(daemon):
    daemon.deploy(spec("warming", env={"DELAY": "2"}), wait=False)
    daemon.wait_event(lambda event: event["type"] == "replica.warming", "it warms up", 0, "warming")
    daemon.restart(kill=True)
    row = daemon.wait_ready("warming", 1)[0]
    equal(get(daemon.port("warming"))["replica"], row["id"], "who answers")


def test_stop_is_term_then_kill(daemon):
    daemon.deploy(spec("polite", stop_grace="1m"), wait=False)
    daemon.deploy(spec("deaf", env={"IGNORE_TERM": "1"}, stop_grace="1s"), wait=False)
    for name, code in (("polite", 9), ("deaf", 128 + signal.SIGKILL)):
        row = daemon.wait_ready(name, 1)[0]
        daemon.api("POST", f"/v1/pods/{name}/stop")
        wait_for(lambda: daemon.replica(row["id"])["state"] == "stopped", f"{name} has stopped")
        equal(daemon.replica(row["id"])["exit_code"], code, f"the exit code of {name}")


CONDITIONS = {
    "http": ({"http": {"path": "/"}}, SERVER),
    "tcp": ({"tcp": 8000}, SERVER),
    "exec": ({"exec": ["test", "-e", "/tmp/x"]}, "open('/tmp/x','w')\n" + SERVER),
    "file": ({"file": "/srv/deep/x"}, "import os,time\ntime.sleep(.3)\nos.makedirs('/srv/deep')\nopen('/srv/deep/x','w')\n" + SERVER),
    "log": ({"log": "warm in [0-9]+ ms"}, "import time\ntime.sleep(.3)\nprint('warm in 12 ms',flush=True)\n" + SERVER),
    "python": ({"python": "probe:warm"}, "open('/tmp/probe.py','w').write('import os\\ndef warm(): return os.path.exists(\"/tmp/x\")')\nopen('/tmp/x','w')\n" + SERVER),
    "notify": (
        {"notify": True},
        "import os,socket\nsocket.socket(socket.AF_UNIX,socket.SOCK_DGRAM).sendto(b'READY=1',os.environ['NOTIFY_SOCKET'])\n" + SERVER,
    ),
    "workers": ({"workers": 3}, "import os\nos.makedirs('/run/thaw/workers')\nfor i in range(3): open(f'/run/thaw/workers/{i}','w')\n" + SERVER),
    "after": ({"after": "300ms"}, SERVER),
    "all": ({"all": [{"tcp": 8000}, {"after": "100ms"}]}, SERVER),
    "any": ({"any": [{"file": "/never"}, {"tcp": 8000}]}, SERVER),
}


def test_every_condition(daemon):
    """All at once: most of each is waiting for a condition, a dump and its proof."""
    for name, (when, code) in CONDITIONS.items():
        daemon.deploy(spec(name, when, code=code, workdir="/tmp"), wait=False)
    for name in CONDITIONS:
        checkpoint = daemon.wait_checkpoint(name)
        rows = daemon.scale(name, 2)
        equal([row["started_from"] for row in rows], ["cold", checkpoint["id"]], f"the replicas of {name} started from")


def test_a_condition_that_never_holds(daemon):
    ends = (("serves", "serve", "ready"), ("fails", "fail", "failed"))
    for name, policy, _ in ends:
        wish = {"when": {"file": "/never"}, "timeout": "1s", "on_timeout": policy}
        daemon.deploy(spec(name, checkpoint=wish), wait=False)
    for name, _, state in ends:
        daemon.wait_event(lambda event: event["type"] == f"replica.{state}", f"{name} is {state}", 0, name)
        equal(daemon.api("GET", f"/v1/checkpoints?pod={name}"), [], "its checkpoints")


def test_what_the_program_is_told(daemon):
    pods = (
        ("on", {}, "true"),
        ("off", {"checkpoint": {"enabled": False, "when": {"http": {"path": "/"}}}}, "false"),
        ("gpus", {"resources": {"gpu": 2}}, "false"),
    )
    for name, change, _ in pods:
        warnings = daemon.deploy(spec(name, **change), wait=False)["warnings"]
        equal(bool(warnings), name == "gpus", f"warnings of {name}: {warnings}")
    for name, _, told in pods:
        row = daemon.wait_ready(name, 1)[0]
        variables = dict(line.split("=", 1) for line in daemon.exec(row["id"], "env").splitlines() if "=" in line)
        equal(variables["THAW_CHECKPOINT_ENABLED"], told, f"THAW_CHECKPOINT_ENABLED of {name}")
        equal((variables["THAW_POD"], variables["THAW_REPLICA"], variables["NOTIFY_SOCKET"]), (name, row["id"], "/run/thaw/notify"), "its variables")


# {words}, exit code, what the sentence names
BAD_CALLS = [
    (["scale", "nothing", "1"], 4, "nothing"),
    (["scale", "bad", "99"], 2, "replicas.max"),
    (["scale", "bad", "-1"], 2, "-1"),
    (["rm", "nothing"], 4, "nothing"),
    (["rm", "bad"], 5, "run"),
    (["logs", "nothing"], 4, "nothing"),
    (["exec", "bad", "--", "/no/such/program"], 4, "/no/such/program"),
    (["checkpoint", "rm", "nothing"], 4, "nothing"),
    (["checkpoint", "inspect", "nothing"], 4, "nothing"),
    (["image", "import", "nothing"], 2, "nothing"),
    (["deploy", "/no/such/file.yaml"], 4, "/no/such/file.yaml"),
    (["deploy", "--name", "x", "--rootfs", "/no/such/dir", "--", "true"], 2, "/no/such/dir"),
    (["nonsense"], 2, "nonsense"),
]

BAD_REQUESTS = [
    ("GET", "/v1/nothing", None, 404),
    ("PUT", "/v1/pods", {}, 405),
    ("POST", "/v1/pods", {"name": "x"}, 400),
    ("POST", "/v1/pods", {"name": "x", "rootfs": "/", "command": ["true"], "nonsense": 1}, 400),
    ("POST", "/v1/pods/bad/scale", {"replicas": "two"}, 400),
    ("POST", "/v1/pods/bad/scale", {"replicas": 1, "more": 2}, 400),
    ("GET", "/v1/pods/nothing", None, 404),
    ("GET", "/v1/replicas?nonsense=1", None, 400),
]


def test_bad_input_changes_nothing(daemon):
    daemon.deploy(spec("bad"))
    daemon.wait_checkpoint("bad")

    daemon.wait_idle(replicas=1)

    def everything():
        pods = daemon.api("GET", "/v1/pods")
        return [pods, daemon.replicas(ended=True), daemon.api("GET", "/v1/checkpoints"), daemon.last_event()]

    before = everything()
    for words, code, named in BAD_CALLS:
        done = daemon.cli(*words, check_exit=False)
        equal(done.returncode, code, f"exit code of `thaw {' '.join(words)}` ({done.stderr.strip()})")
        check(named in done.stderr, f"`thaw {' '.join(words)}` does not name {named}: {done.stderr}")
    for method, path, body, status in BAD_REQUESTS:
        try:
            daemon.api(method, path, body)
            raise Failure(f"{method} {path} was accepted")
        except ApiError as error:
            equal(error.status, status, f"status of {method} {path}")
    equal(everything(), before, "what there is afterwards")


def test_answers_are_as_described(daemon):
    """docs/openapi.yaml beside a daemon that has done all that; api/openapi_test.cc holds it against what a daemon could answer."""
    described = Described(daemon)
    api = described.api
    wish = spec("told", replicas={"min": 1, "max": 2})
    equal(api("POST", "/v1/pods", wish)["pod"]["name"], "told", "the deployed pod")
    checkpoint = daemon.wait_checkpoint("told")["id"]
    api("POST", "/v1/pods/told/scale", {"replicas": 2, "wait": "1m"})
    first, second = (row["id"] for row in daemon.replicas("told"))
    for target in ("version", "doctor", "pods", "pods/told", "replicas?all=true", f"replicas/{first}", f"replicas/{second}", f"replicas/{first}/logs",
                   "events?limit=1000", "checkpoints", f"checkpoints/{checkpoint}", "images", "tokens"):  # fmt: skip
        check(api("GET", f"/v1/{target}") or target in ("images", "tokens"), f"an empty answer to /v1/{target}")
    check("thaw_" in api("GET", "/metrics"), "metrics")
    api("POST", "/v1/tokens", {"name": "reader", "scope": "read"})
    api("GET", "/v1/tokens")
    api("DELETE", "/v1/tokens/reader")
    for _ in range(2):
        api("PUT", "/v1/secrets/key", b"hunter2")
    check(api("GET", "/v1/secrets"), "an empty answer to /v1/secrets")
    api("DELETE", "/v1/secrets/key")
    api("POST", f"/v1/checkpoints/{checkpoint}/verify")
    check("uses" in api("POST", f"/v1/checkpoints/{checkpoint}/compress")["error"]["cause"], "a checkpoint in use is compressed")
    api("POST", "/v1/images", {"source": "oci:/no/such/layout"})
    api("DELETE", "/v1/images/nothing")
    api("POST", f"/v1/replicas/{first}/stop")
    api("POST", f"/v1/replicas/{first}/exec", {"argv": []})
    api("POST", "/v1/pods/told/checkpoint")
    api("POST", "/v1/pods/told/checkpoint/retry")
    api("POST", "/v1/pods/told/stop")
    api("GET", f"/v1/replicas/{first}")
    api("DELETE", f"/v1/checkpoints/{checkpoint}")
    api("DELETE", "/v1/pods/told?force=true")
    for method, target, body, _ in BAD_REQUESTS:
        if target in ("/v1/pods/bad/scale", "/v1/pods/nothing") or (method, target) == ("POST", "/v1/pods"):
            check("error" in api(method, target, body), f"{method} {target} is accepted")
    equal(described.operations() - described.asked, set(), "what was not asked for")


def test_nothing_reaches_a_replica_from_the_host(daemon):
    daemon.deploy(spec("closed"))
    row = daemon.replicas("closed", "ready")[0]
    probe = socket.socket()
    probe.settimeout(1)
    try:
        probe.connect((row["address"], 8000))
        raise Failure("the host could connect to a replica's own address")
    except (TimeoutError, OSError):
        pass
    finally:
        probe.close()
    equal(get(daemon.port("closed"))["replica"], row["id"], "who answers through the gateway")


if __name__ == "__main__":
    thawtest.main(globals())
