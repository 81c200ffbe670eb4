"""What CRIU cannot dump: the dump fails and says why, the pod serves on, the next replica starts cold."""

import contextlib
import os
import socket
import subprocess
import threading

import thawtest
from roundtrip import APPS, Program, deploy, round_trip
from thawtest import check, equal


def compile_program(daemon):
    """apps/landlock.c as a mount for a pod; it goes with the daemon's data."""
    folder = daemon.data / "compiled"
    folder.mkdir(exist_ok=True)
    command = ["gcc", "-static", "-O1", "-Wall", "-Wextra", "-Werror", "-o", folder / "program", APPS / "landlock.c"]
    subprocess.run(command, check=True, timeout=60)
    return [{"source": str(folder), "target": "/compiled", "readonly": True}]


def answer(replica):
    return replica.text("/")


def test_landlock(daemon):
    pod = Program("landlock", ["/compiled/program"])
    original = deploy(daemon, pod, mounts=compile_program(daemon))
    row = daemon.wait_checkpoint(pod.name, status="failed")
    check("landlock" in row["reason"], f"the reason does not name it: {row['reason']}")
    table = daemon.cli("checkpoint", "ls").stdout
    check(row["id"] in table and "failed" in table and "landlock" in table, f"`thaw checkpoint ls` does not say why:\n{table}")
    events = [e for e in daemon.cli_json("events", "--pod", pod.name) if e["type"] == "checkpoint.failed"]
    logs = [event["data"]["log"] for event in daemon.events(pod="landlock") if event["type"] == "criu.failed"]
    check(len(logs) == 1 and "Error (" in logs[0], f"no event carries the end of CRIU's log: {logs}")
    check(len(events) == 1 and "landlock" in events[0]["message"], f"the events do not say why: {events}")

    # It serves on, past the gate and through it.
    equal(answer(original), '"ok"', "the program's answer after the dump")
    equal(daemon.http_published(pod.name, "/"), '"ok"', "the answer through the published port")
    equal(daemon.api("GET", f"/v1/pods/{pod.name}")["checkpoint"]["id"], None, "the checkpoint that the next replica starts from")
    for count in (2, 3):
        replicas = daemon.scale(pod.name, count)
        equal([r["started_from"] for r in replicas], ["cold"] * count, "how the replicas started")
        equal([r["outcome"] for r in replicas], [None] * count, "the outcomes of restores that were not made")
    for replica in replicas:
        equal(daemon.http(replica, "/"), '"ok"', "a replica's answer")
    # The failure is remembered: not each replica tries again.
    rows = daemon.api("GET", f"/v1/checkpoints?pod={pod.name}")
    equal([r["id"] for r in rows], [row["id"]], "checkpoints that were tried")
    equal(original.refresh()["state"], "ready", "the original's state")
    equal(original.row["pid"], daemon.replicas(pod.name)[0]["pid"], "the original's process")
    daemon.remove(pod.name)


HOLDS_A_DEVICE = r"""
import http.server, socket
with socket.socket(socket.AF_UNIX) as giver:
    giver.connect("/giver/socket")
    device = socket.recv_fds(giver, 1, 1)[1][0]
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'"ok"')
http.server.HTTPServer(("", 8000), Handler).serve_forever()
"""


def test_device(daemon):
    """A program can open no device of the host, but it can be handed one."""
    folder = daemon.data / "giver"
    folder.mkdir()
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(f"{folder}/socket")
        listener.listen()

        def give():
            with contextlib.suppress(OSError):  # until it is closed
                while True:
                    client = listener.accept()[0]
                    device = os.open("/dev/fuse", os.O_RDWR)
                    socket.send_fds(client, [b"x"], [device])
                    os.close(device)
                    client.close()

        giver = threading.Thread(target=give)
        giver.start()
        pod = Program("device", ["python3", "-c", HOLDS_A_DEVICE])
        deploy(daemon, pod, mounts=[{"source": str(folder), "target": "/giver"}])
        row = daemon.wait_checkpoint(pod.name, status="failed")
        check("/dev/fuse" in row["reason"], f"the reason does not name it: {row['reason']}")
        replicas = daemon.scale(pod.name, 2)
        equal([r["started_from"] for r in replicas], ["cold"] * 2, "how the replicas started")
        for replica in replicas:
            equal(daemon.http(replica, "/"), '"ok"', "a replica's answer")
        equal(daemon.http_published(pod.name, "/"), '"ok"', "the answer through the published port")
        daemon.remove(pod.name)
        listener.shutdown(socket.SHUT_RDWR)
        giver.join()


def test_the_same_without(daemon):
    """It is the ruleset, not the program."""
    program = Program("no-landlock", ["/compiled/program", "plain"], when={"http": {}}, state=answer, change=None, published=False)
    program.spec = {"mounts": compile_program(daemon)}
    round_trip(daemon, program)


if __name__ == "__main__":
    thawtest.main(globals())
