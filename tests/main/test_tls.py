"""The API over the network: only with TLS, only with a token, and only what the token's scope allows."""

import http.client
import json
import socket
import sqlite3
import ssl
import subprocess

import certificates
import thawtest
from common import Pod
from thawtest import check, equal


def tls_daemon():
    daemon = thawtest.Daemon(slots=1)
    cert, key = daemon.data / "cert.pem", daemon.data / "key.pem"
    certificates.make(cert, key)
    port = thawtest.free_port()
    daemon.arguments += ["--listen", f"tls:127.0.0.1:{port}", "--tls-cert", str(cert), "--tls-key", str(key)]
    daemon.start()
    return daemon, port, cert


def ask(port, cert, method, path, token=None, body=None, headers=None):
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=90, context=ssl.create_default_context(cafile=cert))
    try:
        more = {"Authorization": f"Bearer {token}"} if token else {}
        if body is not None:
            more["Content-Type"] = "application/json"
        connection.request(method, path, None if body is None else json.dumps(body), {**more, **(headers or {})})
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def test_tokens_and_scopes():
    daemon, port, cert = tls_daemon()
    with daemon:
        tokens = {scope: daemon.cli("token", "create", f"a-{scope}", "--scope", scope).stdout.strip() for scope in ("read", "deploy", "admin")}
        pod = Pod(daemon, env={"SIGNING_KEY": "kT7-of-the-environment", "STORE": "db://me:kT7-too@host", "OTHER": "plain"})
        pod.deploy(wait=True)
        for token in (None, "", "thaw_" + "0" * 64, tokens["read"][:-1], tokens["read"] + "0", "x" * 5000):
            status, text = ask(port, cert, "GET", "/v1/pods", token)
            equal(status, 401, f"status with the token {token!r}: {text}")
        calls = (("GET", "/v1/pods", None, "read"), ("GET", "/metrics", None, "read"), ("GET", "/v1/events", None, "read"),
                 ("POST", "/v1/pods/web/scale", {"replicas": 1}, "deploy"), ("POST", "/v1/pods/web/checkpoint/retry", None, "deploy"),
                 ("GET", "/v1/tokens", None, "admin"), ("POST", "/v1/tokens", {"name": "", "scope": "read"}, "admin"),
                 ("DELETE", "/v1/images/none", None, "admin"))  # fmt: skip
        scopes = ("read", "deploy", "admin")
        for method, path, body, needed in calls:
            for scope in scopes:
                status, text = ask(port, cert, method, path, tokens[scope], body)
                if scopes.index(scope) < scopes.index(needed):
                    equal(status, 403, f"{method} {path} with scope {scope}: {text}")
                else:
                    check(status not in (401, 403), f"{method} {path} with scope {scope}: {status} {text}")
        for scope, seen in (("read", ["(hidden)", "(hidden)", "plain"]), ("deploy", ["kT7-of-the-environment", "db://me:kT7-too@host", "plain"])):
            for path in ("/v1/pods", "/v1/pods/web"):
                shown = json.loads(ask(port, cert, "GET", path, tokens[scope])[1])
                env = (shown[0] if path == "/v1/pods" else shown)["spec"]["env"]
                equal([env[key] for key in ("SIGNING_KEY", "STORE", "OTHER")], seen, f"variables that {path} shows with scope {scope}")
        equal(ask(port, cert, "GET", "/v1/pods", tokens["admin"], headers={"Origin": "https://evil.example"})[0], 403, "status for a web page")

        # The command, with streams and exec, which leaves HTTP behind.
        env = {**daemon.env, "THAW_HOST": f"tls:127.0.0.1:{port}", "THAW_TOKEN": tokens["deploy"], "THAW_CA": str(cert)}

        def thaw(*words, input=None, **more):  # noqa: A002
            return subprocess.run([daemon.binary, *words], env={**env, **more}, capture_output=True, text=True, timeout=60, input=input, check=False)

        equal(thaw("ps", "-q").stdout.split(), [pod.only_replica()["id"]], "`thaw ps` over TLS")
        big = "x" * 3_000_000
        done = thaw("exec", "-i", "web", "--", "cat", input=big)
        equal((done.returncode, len(done.stdout)), (0, len(big)), f"`thaw exec` over TLS ({done.stderr[:200]})")
        equal(done.stdout, big, "what came through")
        equal(thaw("exec", "web", "--", "sh", "-c", "exit 7").returncode, 7, "the exit code of `thaw exec` over TLS")
        check("pod.deployed" in thaw("events").stdout, "`thaw events` over TLS")
        check(thaw("ps", THAW_CA="").returncode != 0, "a certificate that nobody has signed is trusted")
        check("token" in thaw("ps", THAW_TOKEN="").stderr, "the message without a token does not tell of one")

        # Nothing is kept of a token but its hash, and nothing is told.
        equal(sorted(row["name"] for row in daemon.cli_json("token", "ls")), ["a-admin", "a-deploy", "a-read"], "`thaw token ls`")
        database = sqlite3.connect(f"file:{daemon.data}/thaw.db?mode=ro", uri=True)
        kept = "\n".join(database.iterdump())
        database.close()
        check('"sha256"' in kept and not any(token in kept for token in tokens.values()), "the tokens lie in the database")
        check(not any(token in daemon.log.read_text() for token in tokens.values()), "the tokens are in the log")
        daemon.cli("token", "rm", "a-read")
        equal(ask(port, cert, "GET", "/v1/pods", tokens["read"])[0], 401, "status with a token that was removed")
        # They outlive the daemon.
        daemon.restart(kill=True)
        equal(ask(port, cert, "GET", "/v1/pods", tokens["deploy"])[0], 200, "status after a restart")
        daemon.remove(pod.name)
        equal(daemon.destroy(), [], "what had to be ended by force")


def test_workspaces():
    """Two workspaces with pods of one name, on one daemon: each has its own, in every call, and the machine's owner has both."""
    daemon, port, cert = tls_daemon()
    with daemon:
        folder = daemon.data / "given"
        folder.mkdir()
        tokens = {}
        for name in ("a", "b"):
            words = ("token", "create", f"of-{name}", "--scope", "deploy", "--workspace", name, "--folder", thawtest.rootfs("programs"))
            tokens[name] = daemon.cli(*words).stdout.strip()

        def call(name, method, path, body=None):
            status, text = ask(port, cert, method, path, tokens[name], body)
            return status, json.loads(text) if text.startswith(("{", "[")) else text

        spec = {"name": "web", "rootfs": thawtest.rootfs("programs"), "command": ["sh", "-c", "touch /run/thaw/ready; exec sleep 100000"],
                "replicas": {"min": 1, "max": 2}, "stop_grace": "0s", "checkpoint": {"when": {"file": "/run/thaw/ready"}}}  # fmt: skip
        ids = {}
        for name in ("a", "b"):
            status, answer = call(name, "POST", "/v1/pods", spec)
            equal((status, answer.get("pod", {}).get("name")), (201, "web"), f"the deploy in {name}: {answer}")
            ids[name] = daemon.wait_checkpoint(f"{name}--web")["id"]
        equal(sorted(p["name"] for p in daemon.api("GET", "/v1/pods")), ["a--web", "b--web"], "what the machine's owner sees")
        for name, other in (("a", "b"), ("b", "a")):
            equal([p["name"] for p in call(name, "GET", "/v1/pods")[1]], ["web"], f"pods that {name} sees")
            rows = call(name, "GET", "/v1/replicas")[1]
            theirs = daemon.replicas(f"{other}--web")[0]["id"]
            equal(len(rows), 1, f"replicas that {name} sees")
            equal([c["id"] for c in call(name, "GET", "/v1/checkpoints")[1]], [ids[name]], f"checkpoints that {name} sees")
            for method, path in (("GET", f"/v1/replicas/{theirs}"), ("GET", f"/v1/replicas/{theirs}/logs"), ("POST", f"/v1/replicas/{theirs}/stop"),
                                 ("GET", f"/v1/checkpoints/{ids[other]}"), ("DELETE", f"/v1/checkpoints/{ids[other]}"),
                                 ("GET", f"/v1/pods/{other}--web"), ("DELETE", f"/v1/pods/{other}--web?force=true")):  # fmt: skip
                equal(call(name, method, path)[0], 404, f"{method} {path} of {name}")
            told = json.dumps([call(name, "GET", path)[1] for path in ("/v1/events", "/v1/replicas?all=true", "/v1/checkpoints", "/metrics")])
            check(f"{other}--" not in told and theirs not in told and ids[other] not in told, f"{name} is told of {other}")
            check('pod=\\"web\\"' in told, "metrics of its own pod")
            equal(call(name, "GET", "/v1/doctor")[0], 403, f"doctor for {name}")
            equal(call(name, "PUT", "/v1/secrets/key", name)[0], 201, f"a secret of {name}")
            equal([s["name"] for s in call(name, "GET", "/v1/secrets")[1]], ["key"], f"secrets that {name} sees")
            equal(call(name, "DELETE", f"/v1/secrets/{other}--key")[0], 404, f"the other's secret for {name}")
            taken = call(name, "POST", "/v1/pods?dry_run=true", {**spec, "secrets": [{"name": "x", "secret": f"{other}--key"}]})
            equal(taken[0], 200, f"a specification with such a name ({taken[1]})")
            equal(call(name, "POST", "/v1/pods", {**spec, "secrets": [{"name": "x", "secret": f"{other}--key"}]})[0], 400, f"the other's secret in a pod of {name}")
            equal(call(name, "POST", "/v1/pods", {**spec, "mounts": [{"source": str(folder), "target": "/x", "readonly": True}]})[0], 403, "another folder")
        # Started from its own checkpoint, executed in by its short name, and gone without the other.
        status, pod = call("a", "POST", "/v1/pods/web/scale", {"replicas": 2, "wait": "60s"})
        equal((status, pod["ready"]), (200, 2), "a scales its own")
        equal(daemon.replicas("a--web")[1]["started_from"], ids["a"], "where its second came from")
        equal(len(daemon.replicas("b--web")), 1, "replicas of b")
        env = {**daemon.env, "THAW_HOST": f"tls:127.0.0.1:{port}", "THAW_TOKEN": tokens["b"], "THAW_CA": str(cert)}
        done = subprocess.run([daemon.binary, "exec", "web", "--", "sh", "-c", "echo $THAW_POD"], env=env, capture_output=True, text=True, timeout=60, check=False)
        equal(done.stdout.strip(), "b--web", f"which one `thaw exec web` of b is in ({done.stderr})")
        equal(call("a", "DELETE", "/v1/pods/web?force=true")[0], 200, "a removes its own")
        equal([p["name"] for p in daemon.api("GET", "/v1/pods")], ["b--web"], "what is left")
        equal(daemon.api("GET", f"/v1/checkpoints/{ids['b']}")["status"], "available", "the checkpoint of b")
        daemon.remove("b--web")
        equal(daemon.destroy(), [], "what had to be ended by force")


def test_bad_peers():
    """Who does not speak TLS, stays silent, or leaves in the middle, harms nobody."""
    daemon, port, cert = tls_daemon()
    with daemon:
        token = daemon.cli("token", "create", "one", "--scope", "read").stdout.strip()
        silent = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(20)]
        for text in (b"GET /v1/pods HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\x16\x03\x01\xff\xff" + bytes(2000), b"\0" * 100):
            with socket.create_connection(("127.0.0.1", port), timeout=90) as plain:
                plain.sendall(text)
                answer = b""
                try:
                    while piece := plain.recv(4096):
                        answer += piece
                except ConnectionResetError:
                    pass
                check(b"HTTP" not in answer and b"pods" not in answer, f"it was answered without TLS: {answer[:80]}")
        for _ in range(50):
            context = ssl.create_default_context(cafile=cert)
            with context.wrap_socket(socket.create_connection(("127.0.0.1", port)), server_hostname="127.0.0.1") as half:
                half.sendall(b"GET /v1/pods HTTP/1.1\r\nHost")
        equal(ask(port, cert, "GET", "/v1/pods", token)[0], 200, "status in between")
        certificates.renewal(daemon, port, cert, daemon.data / "key.pem", "the API", "IP:127.0.0.1",
                             lambda: equal(ask(port, cert, "GET", "/v1/pods", token)[0], 200, "status with the renewed certificate"))  # fmt: skip
        for client in silent:
            client.close()
        daemon.stop()
        daemon.start()
        equal(daemon.destroy(), [], "what had to be ended by force")


def test_no_way_around():
    """No TCP without TLS, no TLS without a certificate, no group that is none."""
    for words, told in ((["--listen", "tcp:127.0.0.1:0"], "without TLS"), (["--listen", "tls:127.0.0.1:0"], "certificate"),
                        (["--listen", "tls:127.0.0.1:0", "--tls-cert", "/etc/hostname", "--tls-key", "/etc/hostname"], "/etc/hostname"),
                        (["--group", "no-such-group"], "no such group")):  # fmt: skip
        done = subprocess.run([thawtest.binary(), "daemon", "--data-dir", "/var/tmp/thaw-never", *words], capture_output=True, text=True, timeout=30, check=False)
        check(done.returncode == 2 and told in done.stderr, f"{words}: {done.returncode}, {done.stderr}")


if __name__ == "__main__":
    thawtest.main(globals())
