"""What can be seen of all this: metrics, the timeline of a start, and why a pod is not dumped."""

import json
import re

import thawtest
from common import Client, Pod
from thawtest import check, equal, wait_equal, wait_for

GO = {"file": "/ctl/go"}


def metrics(daemon):
    """Sample → value; every line must be one of Prometheus' text format."""
    status, text = daemon.api("GET", "/metrics", raw=True)
    equal(status, 200, "status of /metrics")
    found, typed = {}, set()
    for line in text.splitlines():
        if line.startswith("#"):
            check(re.fullmatch(r"# (HELP \w+ .+|TYPE \w+ (counter|gauge|histogram))", line), f"not Prometheus' format: {line}")
            typed.add(line.split()[2])
            continue
        match = re.fullmatch(r'([a-z_]+)(\{(?:[a-z_]+="[^"]*",?)*\})? (-?[0-9.e+-]+)', line)
        check(match, f"not Prometheus' format: {line}")
        family = re.sub("_(bucket|sum|count)$", "", match[1])
        check(match[1] in typed or family in typed, f"{match[1]} has no TYPE")
        check(match[1] + (match[2] or "") not in found, f"{line} comes twice")
        found[match[1] + (match[2] or "")] = float(match[3])
    return found


def test_metrics(daemon):
    before = metrics(daemon)
    pod = Pod(daemon, when=GO, name="counted")
    pod.deploy()
    pod.wait_note("up")
    client = Client(pod.port)
    client.wait_connected()
    wait_for(lambda: metrics(daemon).get('thaw_connections_held{pod="counted"}') == 1, "a client that waits is counted")
    pod.go()
    checkpoint = pod.wait_checkpoint()
    client.wait_answer()
    daemon.scale(pod.name, 3)
    now = metrics(daemon)

    def more(name):
        return now.get(name, 0) - before.get(name, 0)

    equal(more('thaw_restores_total{outcome="Restored"}'), 2, "restores")
    equal(more('thaw_start_seconds_count{started_from="cold"}'), 1, "cold starts")
    equal(more('thaw_start_seconds_count{started_from="checkpoint"}'), 2, "starts from a checkpoint")
    equal(more('thaw_checkpoint_changes_total{status="available"}'), 1, "checkpoints that became available")
    equal(now['thaw_replicas{pod="counted",state="ready"}'], 3, "replicas that are ready")
    equal(now['thaw_pod_desired{pod="counted"}'], 3, "replicas that are wanted")
    equal(now['thaw_checkpoints{pod="counted",status="available"}'], 1, "available checkpoints")
    check(now["thaw_store_bytes"] >= checkpoint["bytes"] > 0 and now["thaw_store_free_bytes"] > 0, "bytes of the store")
    equal(now['thaw_connections_held{pod="counted"}'], 0, "clients that wait")
    # A histogram's buckets rise, and the last one is the count.
    for phase in ("restoring", "validating", "restoring/criu restore"):
        buckets = [value for name, value in now.items() if name.startswith(f'thaw_phase_seconds_bucket{{phase="{phase}",started_from="checkpoint"')]
        equal(buckets, sorted(buckets), f"buckets of {phase}")
        check(buckets and buckets[-1] == now[f'thaw_phase_seconds_count{{phase="{phase}",started_from="checkpoint"}}'] >= 2, f"the count of {phase}: {buckets}")
    rows = daemon.replicas(pod.name)
    seconds = sum(row["ready_in_us"] for row in rows if row["started_from"] != "cold") / 1e6
    equal(round(more('thaw_start_seconds_sum{started_from="checkpoint"}'), 4), round(seconds, 4), "seconds of starts, as against `thaw ps`")
    daemon.scale(pod.name, 0)
    now = metrics(daemon)
    equal(more('thaw_replica_ends_total{state="stopped"}'), 3, "replicas that were stopped")
    equal(more('thaw_replica_ends_total{state="failed"}'), 0, "replicas that failed")


def test_trace(daemon):
    pod = Pod(daemon, when=GO)
    pod.warm()
    pod.wait_checkpoint()
    rows = daemon.scale(pod.name, 2)
    for row, phases in zip(rows, (("preparing", "starting", "warming", "checkpointing", "ready"), ("preparing", "restoring", "validating", "ready"))):
        text = daemon.cli("trace", row["id"]).stdout
        for phase in phases:
            check(re.search(rf"^\S+ +\S+ +{phase}\b", text, re.M), f"`thaw trace` does not show {phase}:\n{text}")
        trace = json.loads(daemon.cli("trace", "--chrome", row["id"]).stdout)
        events = [e for e in trace["traceEvents"] if e["ph"] != "M"]
        equal([e["name"] for e in events if e["cat"] == "phase"], list(phases), "phases of the Chrome trace")
        for event in events:
            check(event["ph"] == "i" or (event["ph"] == "X" and event["dur"] >= 0), f"an event of the Chrome trace: {event}")
            check(event["ts"] >= 0 and event["pid"] == 1 and event["tid"] in (1, 2), f"an event of the Chrome trace: {event}")
        wanted = next(p["start_us"] for p in daemon.replica(row["id"])["phases"] if p["name"] == "ready")
        equal(next(e["ts"] for e in events if e["name"] == "ready"), wanted, "when it was ready")
    equal(daemon.cli("trace", "nobody", check_exit=False).returncode, 4, "exit code of `thaw trace` for a replica that is none")


def test_retry(daemon):
    """A dump that failed backs off, visibly; `thaw checkpoint retry` or a new version ends that."""
    pod = Pod(daemon, when=GO, env={"AT_START": "landlock"})
    pod.warm()
    failed = pod.wait_checkpoint("failed")
    backoff = daemon.api("GET", f"/v1/pods/{pod.name}")["checkpoint"]["backoff"]
    equal(backoff["failures"], 1, "failures")
    check("landlock" in backoff["reason"], f"the back-off's reason: {backoff['reason']}")
    seconds = (backoff["until_us"] - failed["updated_us"]) / 1e6
    check(55 < seconds < 65, f"the first pause is {seconds} s")
    rows = daemon.scale(pod.name, 2)
    equal(len(daemon.api("GET", f"/v1/checkpoints?pod={pod.name}")), 1, "checkpoints tried: the second replica makes none")
    check("1 dumps of this version failed" in pod.events("replica.ready", rows[1]["id"])[0]["message"], "the second replica's event does not say why it made none")
    since = daemon.last_event()
    daemon.cli("checkpoint", "retry", pod.name)
    equal(daemon.api("GET", f"/v1/pods/{pod.name}")["checkpoint"]["backoff"], None, "the back-off after retry")
    pod.halt()
    daemon.scale(pod.name, 3, wait=False)
    pod.wait_note("landlock", count=3)
    pod.go()
    pod.wait_event("checkpoint.failed", since)
    backoff = daemon.api("GET", f"/v1/pods/{pod.name}")["checkpoint"]["backoff"]
    equal(backoff["failures"], 1, "failures after the next")
    # Two in a row: twice as long.
    since = daemon.last_event()
    daemon.cli("checkpoint", "create", pod.name, check_exit=False)
    pod.wait_event("checkpoint.failed", since)
    backoff = daemon.api("GET", f"/v1/pods/{pod.name}")["checkpoint"]["backoff"]
    equal(backoff["failures"], 2, "failures after two in a row")
    pod.spec["env"] = {"AT_START": "landlock", "VERSION": "2"}
    daemon.deploy(pod.spec, wait=False)
    backoff = daemon.api("GET", f"/v1/pods/{pod.name}")["checkpoint"]["backoff"]
    check(backoff is None or backoff["failures"] == 1, f"the back-off of a new version: {backoff}")
    equal(daemon.cli("checkpoint", "retry", "nobody", check_exit=False).returncode, 4, "exit code of retry for a pod that is none")


def test_who_asked(daemon):
    """A request's id is in its answer, in the events that it makes happen and in the log's lines; a replica's lines name it."""
    pod = Pod(daemon, "asked", when=GO)
    pod.warm()
    pod.wait_checkpoint()

    def ask(headers):
        connection = thawtest._UnixConnection(daemon.socket, 30)
        since = daemon.last_event()
        connection.request("POST", "/v1/pods/asked/scale", json.dumps({"replicas": 2}), {"Content-Type": "application/json", **headers})
        response = connection.getresponse()
        response.read()
        connection.close()
        event = next(e for e in daemon.events(since, pod.name) if e["type"] == "pod.scaled")
        return response.headers["X-Request-Id"], event["data"].get("request")

    equal(ask({"X-Request-Id": "mine-17"}), ("mine-17", "mine-17"), "a client's own id, in the answer and the event")
    for bad in ("x" * 129, "a b"):
        answered, told = ask({"X-Request-Id": bad})
        check(answered and answered != bad and answered == told, f"an id of ours in place of {bad[:10]}: {answered}, {told}")
    check(ask({})[0] != ask({})[0], "two requests have one id")
    row = daemon.wait_ready(pod.name, 2)[1]

    def moved():  # a line is written after the event
        return [line for line in daemon.log_lines() if " replica moved " in line]

    wait_equal(lambda: [re.search(r" to=(\w+)", line)[1] for line in moved() if f"replica={row['id']}" in line], ["restoring", "validating", "ready"],
               f"the states of {row['id']} that the log has")  # fmt: skip
    check(all(" replica=" in line and " pod=" in line for line in moved()), "a line does not name its replica")


if __name__ == "__main__":
    thawtest.main(globals())
