"""Real clients of real servers through a published port of a pod at zero: held, and served by a replica that is restored; what they keep open
lives on while the pod scales."""

import concurrent.futures
import contextlib
import pathlib
import queue
import subprocess

import grpc
import thawtest
from common import HERE, run
from thawtest import check, equal, wait_for

APPS = HERE.parent / "programs/apps"


def deploy(daemon, name, command, when, apps=HERE / "inside", container=8000, **more):
    """At zero; the port that is published."""
    spec = {
        "name": name,
        "rootfs": thawtest.rootfs("programs"),
        "command": command,
        "mounts": [{"source": str(apps), "target": "/app", "readonly": True}],
        "ports": [container],
        "replicas": {"min": 0, "max": 2},
        "checkpoint": {"when": when},
        "stop_grace": "1s",
        **more,
    }
    daemon.deploy(spec, wait=False)
    return daemon.port(name)


def twice(daemon, name, ask):
    """ask() with the pod at zero, before it has a checkpoint and when it has one."""
    since = daemon.last_event()
    equal(daemon.replicas(name), [], f"replicas of {name} before anybody asks")
    ask("cold")
    daemon.wait_checkpoint(name, after=since)
    daemon.scale(name, 0)
    equal(daemon.replicas(name, "ready"), [], f"ready replicas of {name} at zero")
    ask("restored")
    row = daemon.replicas(name, "ready")[0]
    check(row["started_from"] != "cold", f"{name} was not restored: {row['reason']}")


def test_grpc(daemon):
    """Many calls on one channel, and a stream in both directions that lives on while its replica drains."""
    port = deploy(daemon, "grpc", ["python3", "/app/grpc_server.py"], {"tcp": 8000})

    def ask(start):
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            once, stream = channel.unary_unary("/thaw.Test/Once"), channel.stream_stream("/thaw.Test/Stream")
            big = bytes(range(256)) * 4096
            equal(once(big, timeout=180), big, f"{start}: answer of a call")
            words = [b"%d" % n for n in range(200)]
            with concurrent.futures.ThreadPoolExecutor(20) as pool:
                equal([*pool.map(lambda word: once(word, timeout=180), words)], words, f"{start}: answers of many calls at once")
            equal([*stream(iter(words), timeout=180)], words, f"{start}: what came back of a stream")

    twice(daemon, "grpc", ask)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        said = queue.SimpleQueue()
        answers = channel.stream_stream("/thaw.Test/Stream")(iter(said.get, None), timeout=180)
        said.put(b"first")
        equal(next(answers), b"first", "what came back")
        drain(daemon, "grpc")
        said.put(b"second")
        equal(next(answers), b"second", "what came back of a replica that drains")
        said.put(None)
        equal([*answers], [], "what came after the end")


def test_http2(daemon):
    """With prior knowledge: a large file, an upload that comes back, many requests at once on one connection."""
    folder = pathlib.Path(thawtest.rootfs("programs"), "usr/sbin")
    port = deploy(daemon, "h2", ["nghttpd", "--no-tls", "--htdocs=/usr/sbin", "--echo-upload", "8000"], {"tcp": 8000})
    url, curl = f"http://127.0.0.1:{port}", ["curl", "-sS", "--http2-prior-knowledge", "--max-time", "150", "-w", "%{http_code} %{http_version} %{num_connects}\n"]
    file, back = folder / "nginx", daemon.data / "back"

    def ask(start):
        equal(run(*curl, "-o", back, f"{url}/nginx"), "200 2 1\n", f"{start}: a file")
        equal(back.read_bytes(), file.read_bytes(), f"{start}: its content")
        equal(run(*curl, "-o", back, "--data-binary", f"@{file}", f"{url}/up"), "200 2 1\n", f"{start}: an upload")
        equal(back.read_bytes(), file.read_bytes(), f"{start}: what came back")
        many = run("h2load", "-n", "200", "-c", "1", "-m", "50", f"{url}/nginx")
        check("200 succeeded, 0 failed, 0 errored, 0 timeout" in many, f"{start}: many at once on one connection: {many}")

    twice(daemon, "h2", ask)


def test_redis(daemon):
    """What was in memory at the dump, a pipeline, and a subscriber whose replica drains."""
    port = deploy(daemon, "redis", ["sh", "/app/redis.sh"], {"file": "/run/thaw/ready"}, APPS, 6379)
    words, tokens = ["redis-cli", "-p", str(port)], set()

    def ask(start):
        tokens.add(run(*words, "GET", "token"))
        pipe = subprocess.run([*words, "--pipe"], input="INCR counter\r\n" * 10000, capture_output=True, text=True, timeout=180, check=False)
        check("errors: 0, replies: 10000" in pipe.stdout, f"{start}: a pipeline: {pipe.stdout}{pipe.stderr}")
        equal(run(*words, "GET", "counter"), "10000\n", f"{start}: what it counted")

    twice(daemon, "redis", ask)
    equal(len(tokens), 1, "what was in memory at the dump")
    with client(*words) as redis, client(*words) as subscriber:
        subscriber.ask("SUBSCRIBE news", "1")
        redis.ask("PUBLISH news first", "1")
        subscriber.ask(None, "first")
        drain(daemon, "redis")
        redis.ask("PUBLISH news second", "1")
        subscriber.ask(None, "second")
    wait_for(lambda: not daemon.replicas("redis"), "the replica has ended, and no other has come for what it had")


def test_postgresql(daemon):
    """Rows that were there at the dump, bulk data both ways, and a transaction whose replica drains."""
    port = deploy(daemon, "sql", ["sh", "/app/postgres.sh"], {"file": "/run/thaw/ready"}, APPS, 5432, user="postgres")
    words, found = ["psql", "-h", "127.0.0.1", "-p", str(port), "-U", "postgres", "-XAtq", "-v", "ON_ERROR_STOP=1", "postgres"], set()

    def ask(start):
        found.add(run(*words, "-c", "SELECT count(*), sum(number), min(word), (SELECT string_agg(word, ',') FROM notes) FROM facts"))
        rows = run(*words, "-c", "COPY (SELECT n FROM generate_series(1, 300000) n) TO STDOUT")
        done = subprocess.run([*words, "-c", "CREATE TABLE copy (n int)", "-c", "COPY copy FROM STDIN", "-c", "SELECT sum(n) FROM copy"], input=rows,
                              capture_output=True, text=True, timeout=180, check=False)  # fmt: skip
        equal(done.stdout, "45000150000\n", f"{start}: sum of what was copied there and back ({done.stderr})")

    twice(daemon, "sql", ask)
    equal(len(found), 1, f"rows at the dump and afterwards: {found}")
    with client(*words) as psql:
        psql.ask("BEGIN; DELETE FROM facts WHERE number > 5; SELECT count(*) FROM facts;", "5")
        drain(daemon, "sql")
        psql.ask("COMMIT; SELECT 'done', count(*) FROM facts;", "done|5")


def drain(daemon, name):
    daemon.scale(name, 0, wait=False)
    wait_for(lambda: daemon.replicas(name, "draining"), "the replica drains")


@contextlib.contextmanager
def client(*words):
    """A program that is asked line by line."""
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:

        def ask(line, answer):
            if line:
                process.stdin.write(line + "\n")
            for found in process.stdout:
                if found.strip() == answer:
                    return
            check(False, f"{words[0]} ended instead of answering '{answer}' to '{line}'")

        process.ask = ask
        try:
            yield process
        finally:
            process.kill()


if __name__ == "__main__":
    thawtest.main(globals())
