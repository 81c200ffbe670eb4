"""The way to the daemon: over TLS with a token, and over connections that break."""

import os
import signal
import subprocess
import threading

import thawtest
from common import base, check, client, equal, own_cache, raises, thaw, wait_for

own_cache()


def pod_of(daemon_client, name="web", code="import time; print('up', flush=True); time.sleep(1000)"):
    return thaw.Pod(name, base(), entrypoint=["python3", "-c", code], min_replicas=1, stop_grace=0, client=daemon_client)


def test_tls():
    """Everything that works over the socket does over TLS: requests, streams, exec; and `thaw deploy app.py:pod`."""
    daemon = thawtest.Daemon(slots=1)
    cert, key, port = daemon.data / "cert.pem", daemon.data / "key.pem", thawtest.free_port()
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=thaw",
                    "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert], check=True, capture_output=True, timeout=180)  # fmt: skip
    daemon.arguments += ["--listen", f"tls:127.0.0.1:{port}", "--tls-cert", str(cert), "--tls-key", str(key)]
    with daemon:
        address = f"tls:127.0.0.1:{port}"
        tokens = {scope: daemon.cli("token", "create", f"a-{scope}", "--scope", scope).stdout.strip() for scope in ("read", "deploy")}
        pod = pod_of(thaw.Client(address, token=tokens["deploy"], ca=str(cert)))
        pod.deploy(timeout=180)
        equal(next(pod.logs(follow=True)).text, "up", "a followed log")
        check(any(event.type == "replica.ready" for event in pod.events()), "events")
        equal(next(event for event in pod.events(follow=True) if event.type == "replica.ready").pod, "web", "followed events")
        big = os.urandom(1 << 20).hex()
        check(pod.exec(["cat"], input=big, timeout=180).stdout == big, "what comes back of 2 MB")
        equal(pod.exec(["sh", "-c", "echo oops >&2; exit 3"]), (3, "", "oops\n"), "exec")
        raises(thaw.ThawError, lambda: thaw.Client(address, token=tokens["read"], ca=str(cert)).post("/v1/pods/web/stop"), "scope")
        raises(thaw.ThawError, lambda: thaw.Client(address, ca=str(cert)).get("/v1/pods"), "token")
        raises(thaw.UnreachableError, lambda: thaw.Client(address, token=tokens["read"]).get("/v1/pods"), "THAW_CA")
        folder = daemon.data / "app"
        folder.mkdir()
        (folder / "app.py").write_text(f"import thaw\npod = thaw.Pod('web', thaw.Image.from_rootfs({os.environ['TEST_ROOTFS']!r}), entrypoint=['sleep', '999'], stop_grace=0)\n")
        env = {**daemon.env, "THAW_HOST": address, "THAW_TOKEN": tokens["deploy"], "THAW_CA": str(cert)}
        done = subprocess.run([daemon.binary, "deploy", "-q", f"{folder}/app.py:pod"], env=env, capture_output=True, text=True, timeout=180, check=False)
        equal((done.returncode, done.stdout), (0, "web\n"), f"`thaw deploy app.py:pod` over TLS ({done.stderr})")
        pod.remove()
        equal(daemon.destroy(), [], "what had to be ended by force")


def test_every_argument_reaches_the_daemon(daemon):
    """The whole specification, as the daemon understands it."""
    pod = thaw.Pod("all", base(), entrypoint=["sleep"], args=["1000"], ports=[{"container": 80, "protocol": "http", "client_address": "proxy", "idle_timeout": "90s"}, "9999:81"], cpu=1.5, memory="64MiB",
                   pids=50, env={"A": "b"}, secrets={"key": __file__, "other": thaw.Secret("kept")}, mounts=["/srv:/data:ro"], user="1000", workdir="/srv", network="nat", links=["other"],
                   routes=[{"host": "a.example", "path": "/x", "port": 80}], min_replicas=1, max_replicas=3, keep_warm=5, scale_down_delay=6, drain=30, concurrency=7, hard=True, standby=1,
                   standby_warm=False, ready=thaw.tcp(), alive={"probe": thaw.http("/up"), "every": 3, "timeout": 1, "failures": 2}, checkpoint_condition=thaw.http(),
                   before_checkpoint=["/before"], after_restore=["/after"], idle="freeze", stop_grace=1, client=client(daemon))  # fmt: skip
    found = client(daemon).post("/v1/pods?dry_run=true", pod.spec())["spec"]
    wanted = {"idle": "freeze", "args": ["1000"], "links": ["other"], "command": ["sleep"], "user": "1000", "workdir": "/srv", "secrets": [{"name": "key", "file": __file__}, {"name": "other", "secret": "kept"}]}
    equal({key: found.get(key) for key in wanted}, wanted, "simple values")
    replicas = {"min": 1, "max": 3, "concurrency": 7, "hard": True, "standby": 1, "standby_warm": False}
    equal({key: found["replicas"].get(key) for key in replicas}, replicas, "replicas")
    equal((found["replicas"]["keep_warm"], found["replicas"]["scale_down_delay"], found["replicas"]["drain"], found["stop_grace"]), ("5s", "6s", "30s", "1s"), "times")
    equal((found["ports"][0]["protocol"], found["ports"][0]["client_address"], found["ports"][0]["idle_timeout"], found["ports"][1]["host"]), ("http", "proxy", "1m30s", 9999), "ports")
    equal(found["routes"], [{"host": "a.example", "path": "/x", "port": 80}], "routes")
    equal((found["checkpoint"]["before_checkpoint"], found["checkpoint"]["after_restore"]), (["/before"], ["/after"]), "programs around a checkpoint")
    alone = thaw.Pod("alone", base(), entrypoint=["sleep"], network="none", client=client(daemon))
    equal(client(daemon).post("/v1/pods?dry_run=true", alone.spec())["spec"]["network"], "none", "network")
    equal((found["ready"], found["alive"]["failures"], found["alive"]["every"]), ({"tcp": {"port": 80}}, 2, "3s"), "probes")


class Proxy:
    """A socket whose connections can be cut in the middle, while new ones are let through."""

    def __init__(self, daemon):
        self.path = f"{daemon.data}/proxy.sock"
        self.process = subprocess.Popen(["socat", f"UNIX-LISTEN:{self.path},fork", f"UNIX-CONNECT:{daemon.socket}"], stdin=subprocess.DEVNULL)
        wait_for(lambda: os.path.exists(self.path), "socat listens")
        self.client = thaw.Client(f"unix:{self.path}")

    def cut(self):
        for pid in wait_for(self._children, "a connection"):
            os.kill(int(pid), signal.SIGKILL)

    def _children(self):
        with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children", encoding="utf-8") as file:
            return file.read().split()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(10)


def test_connections_that_break(daemon):
    """Events go on where they were; a log, a program, a wait end with an error that says what happened."""
    pod = pod_of(client(daemon))
    pod.deploy(timeout=180)
    with Proxy(daemon) as proxy:
        broken = pod_of(proxy.client)
        events = broken.events(follow=True)
        equal(next(events).type, "pod.deployed", "the first event")
        proxy.cut()
        last = daemon.last_event()
        seen = []
        while not seen or seen[-1] < last:
            seen.append(next(events).id)
        equal(seen, [event["id"] for event in daemon.events(pod="web")][1:], "the events after the cut: none twice, none missed")
        events.close()

        lines = broken.logs(follow=True)
        equal(next(lines).text, "up", "the first line")
        proxy.cut()
        raises(thaw.UnreachableError, lambda: list(lines), "broke off")

        cutter = threading.Thread(target=lambda: (wait_for(lambda: "\nsleep" in daemon.exec("web", "sh", "-c", "cat /proc/[0-9]*/comm"), "it runs"), proxy.cut()))
        cutter.start()
        raises(thaw.UnreachableError, lambda: broken.exec(["sleep", "1000"]), "sleep 1000", "broke off")
        cutter.join()
        raises(thaw.InvalidError, lambda: broken.exec(["cat"], input=3), "neither text nor bytes")
        error = raises(thaw.ThawError, lambda: broken.exec(["sleep", "1000"], timeout=0.2), "within 0.2 s")
        equal(error.code, "timeout", "the code")

    # The daemon goes while a deploy waits, and nobody keeps its socket for the next one: that is said at once, not when its time is over.
    own = thawtest.Daemon(slots=1).start()
    waits = thaw.Pod("waits", base(), entrypoint=["sleep", "1000"], min_replicas=1, stop_grace=0, checkpoint_condition=thaw.file("/never"), client=client(own))
    raises(thaw.UnreachableError, lambda: waits.deploy(progress=lambda line: "replica.warming" in line and own.kill9(holder=True), timeout=600), str(own.socket))
    own.start()
    own.destroy()
    pod.remove()


if __name__ == "__main__":
    thawtest.main(globals())
