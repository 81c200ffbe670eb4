"""The shared HTTP(S) port: routes, held requests, what is added to them, bodies, upgrades, TLS."""

import hashlib
import os
import subprocess
import threading
import time

import certificates
import common
import thawtest
import traffic
from thawtest import check, equal
from traffic import Front, deploy, raw
from websocket import BINARY, CLOSE, CONTINUED, PING, PONG, TEXT, WebSocket

PORT = thawtest.free_port()


def test_routes(daemon):
    """Host names before domains before any; the longest path; 404 where there is none. A taken route is a conflict."""
    front = Front(PORT)
    deploy(daemon, "a", routes=[{"host": "a.example.com"}])
    deploy(daemon, "b", routes=[{"host": "*.example.com"}, {"host": "A.example.com", "path": "/b"}, {"path": "/everywhere", "port": 8000}])

    def who(path, host):
        return front.seen(path, host=host)[0]["identity"]["pod"]

    for host, path, pod in (("a.example.com", "/", "a"), ("A.Example.COM:8080", "/x", "a"), ("a.example.com", "/b", "b"), ("a.example.com", "/b/c?d", "b"),
                            ("a.example.com", "/bc", "a"), ("z.example.com", "/", "b"), ("y.z.example.com", "/b", "b"), ("elsewhere", "/everywhere/x", "b"),
                            ("127.0.0.1", "/everywhere", "b")):  # fmt: skip
        equal(who(path, host), pod, f"who answers {host}{path}")
    for host, path in (("elsewhere", "/"), ("example.com", "/"), ("elsewhere", "/everywherex")):
        status, _, body = front.ask(path, host=host)
        equal((status, body), (404, b"no pod has a route for this host and path\n"), f"{host}{path}")

    try:
        deploy(daemon, "c", wait=False, routes=[{"host": "a.example.com"}])
        check(False, "a route of another pod could be taken")
    except thawtest.ApiError as error:
        equal(error.status, 409, "status of a taken route")
        check("a.example.com" in str(error) and "pod a" in str(error), f"the message does not say whose it is: {error}")
    equal([pod["name"] for pod in daemon.api("GET", "/v1/pods")], ["a", "b"], "pods after a refused deploy")
    daemon.remove("a")
    equal(who("/", "a.example.com"), "b", "who answers when the pod is gone")
    deploy(daemon, "b", routes=[{"host": "new.example.com"}])
    thawtest.wait_for(lambda: front.ask("/everywhere")[0] == 404, "a route that the new version has not is gone with the old one")
    daemon.restart()
    equal(who("/", "new.example.com"), "b", "who answers after a restart of the daemon")


def test_what_is_added(daemon):
    """The replica learns who asked; what a client says of itself in these fields is dropped; one connection's fields go no further."""
    front = Front(PORT)
    deploy(daemon, "a", routes=[{}])
    front.seen()  # what is "ready" in the list may be held for some microseconds more
    seen, headers = front.seen("/seen?q=%20x", headers={"X-Forwarded-For": "6.6.6.6", "X-Real-IP": "6.6.6.6", "Forwarded": "for=6.6.6.6", "X-Forwarded-Proto": "gopher",
                                                        "Keep-Alive": "1", "Connection": "keep-alive, X-Private", "X-Private": "1", "X-Own": "kept", "TE": "trailers"})  # fmt: skip
    found = {name.lower(): value for name, value in seen["headers"]}
    equal(seen["path"], "/seen?q=%20x", "path")
    equal(found["host"], "a.example.com", "Host")
    equal(found["x-forwarded-for"], "127.0.0.1", "X-Forwarded-For")
    equal(found["x-forwarded-proto"], "http", "X-Forwarded-Proto")
    equal(found["x-forwarded-host"], "a.example.com", "X-Forwarded-Host")
    equal(found["x-own"], "kept", "a field of the client's own")
    equal(found["connection"], "close", "Connection")
    for gone in ("x-real-ip", "forwarded", "keep-alive", "x-private", "te"):
        check(gone not in found, f"{gone} was passed on")
    check(len(found["x-request-id"]) == 32, f"request id {found['x-request-id']}")
    equal(headers["X-Request-Id"], found["x-request-id"], "the client's request id")
    equal(front.seen(headers={"X-Request-Id": "mine-1"})[1]["X-Request-Id"], "mine-1", "a request id of the client's own")
    check(headers["Server-Timing"].startswith("hold;dur=") and headers["Server-Timing"].endswith('desc="running"'), headers["Server-Timing"])


def test_held(daemon):
    """Requests wait for a replica, and are told how long and how it started: cold, restored, running. Past the bounds: 503."""
    front = Front(PORT)
    deploy(daemon, "a", wait=False, routes=[{"host": "a.example.com"}], env={"STARTS_IN": "0.5"},
           checkpoint={"when": {"tcp": 8000}}, replicas={"min": 0, "max": 1})  # fmt: skip

    def ask_held():
        daemon.cli("stop", "a")  # or the first client would start a replica, and the others might come too late to be held
        answers = []
        clients = [threading.Thread(target=lambda: answers.append(front.ask("/seen"))) for _ in range(5)]
        for client in clients:
            client.start()
        wait_connections(daemon, "a", "held", 5)
        daemon.scale("a", 1)
        for client in clients:
            client.join(90)
        equal([status for status, _, _ in answers], [200] * 5, "answers")
        return [headers["Server-Timing"] for _, headers, _ in answers]

    for timing in ask_held():
        check(timing.endswith('desc="cold"'), timing)
        check(float(timing.split("dur=")[1].split(";")[0]) > 100, f"held for 0.5 s at least, but: {timing}")
    check(front.seen()[1]["Server-Timing"].endswith('desc="running"'), "not told that it runs")
    daemon.wait_checkpoint("a")
    for timing in ask_held():
        check(timing.endswith('desc="restored"'), timing)

    # A client that leaves while held, or while a replica works for it, is forgotten, also behind bytes that nobody has read. It is held
    # by a pod that takes longer to start than anybody looks.
    deploy(daemon, "slow", wait=False, routes=[{"host": "slow.example.com"}], env={"STARTS_IN": "600"}, checkpoint={"enabled": False},
           replicas={"min": 0, "max": 1})  # fmt: skip
    for state, pod in (("held", "slow"), ("active", "a")):
        for more in (b"", b"GET / HTTP/1.1\r\n"):
            if state == "held":
                daemon.scale(pod, 0)
            connection = front.connect()
            connection.sendall(f"GET /hang HTTP/1.1\r\nHost: {pod}.example.com\r\n\r\n".encode() + more)
            wait_connections(daemon, pod, state, 1)
            connection.close()
            wait_connections(daemon, pod, state, 0)


def wait_connections(daemon, pod, state, count):
    thawtest.wait_for(lambda: daemon.api("GET", f"/v1/pods/{pod}")["connections"][state] == count, f"{count} connections are {state}", step=0.01)


def test_bounds():
    """Settings bound what is held; an HTTP client hears why, others are reset."""
    port = thawtest.free_port()
    with thawtest.Daemon("--front", f"127.0.0.1:{port}", "--hold-connections", "3", "--hold-time", "2s", "--hold-bytes", "64KiB") as daemon:
        deploy(daemon, "a", wait=False, routes=[{}], replicas={"min": 0, "max": 1})
        daemon.cli("stop", "a")  # or the first client would start a replica
        front = Front(port)
        published = Front(daemon.port("a", 8000))
        for client in (front, published):
            answers = []
            clients = [threading.Thread(target=lambda client=client: answers.append(client.ask("/seen"))) for _ in range(5)]
            for thread in clients:
                thread.start()
            for thread in clients:
                thread.join(90)
            equal(sorted({(status, headers["Retry-After"], body) for status, headers, body in answers}),
                  [(503, "10", b"no replica of pod a became ready in time\n"),
                   (503, "2", b"pod a has no replica for more clients, and as many as may wait do so\n")], "answers past the bounds")  # fmt: skip
            equal(sorted(headers["Retry-After"] for _, headers, _ in answers), ["10", "10", "10", "2", "2"], "how many were held")
        status, headers, body = published.ask("/seen", method="POST", body=bytes(100_000))
        equal((status, headers["Retry-After"], body), (503, "2", b"pod a has no ready replica, and waiting clients have sent too much\n"), "too much is held")
        for sent in (b"x", bytes(100_000)):
            plain = Front(daemon.port("a", 9000)).connect()
            equal(raw(plain, sent), b"<reset>", "a client of another port")
        status, headers, body = front.ask("/seen", method="HEAD")
        equal((status, headers["Retry-After"], body), (503, "10", b""), "answer to HEAD")


def test_bodies(daemon):
    """Bodies stream both ways at once, with a length, in chunks, and until the end; cut off ones look cut off."""
    front = Front(PORT)
    deploy(daemon, "a", routes=[{}])
    body = os.urandom(5_000_000)
    seen, _ = front.seen(method="POST", body=body)
    equal((seen["size"], seen["sha256"]), (len(body), hashlib.sha256(body).hexdigest()), "a body with a length")
    seen, _ = front.seen(method="PUT", body=iter([body[:10], body[10:70_000], body[70_000:]]), headers={"Transfer-Encoding": "chunked"})
    equal((seen["size"], seen["sha256"]), (len(body), hashlib.sha256(body).hexdigest()), "a body in chunks")
    equal(front.ask("/length/3000000")[2], bytes(range(256)) * 11718 + bytes(range(192)), "an answer with a length")
    status, headers, answer = front.ask("/endless/1000000")
    equal((status, headers["Transfer-Encoding"], len(answer)), (200, "chunked", 1_000_000), "an answer without one")
    answer = raw(front.connect(), b"GET /endless/100000 HTTP/1.0\r\nHost: x\r\n\r\n")
    equal((len(answer.partition(b"\r\n\r\n")[2]), b"chunked" in answer), (100_000, False), "the same for a client of HTTP/1.0")
    status, headers, answer = front.ask("/length/1000", method="HEAD")
    equal((status, headers["Content-Length"], answer), (200, "1000", b""), "answer to HEAD")

    # Each piece comes back before the next is sent: nothing waits for the whole.
    connection = front.connect()
    connection.sendall(b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    stream = connection.makefile("rb")
    while stream.readline() not in (b"\r\n", b""):
        pass
    for piece in (b"one", b"two", b"x" * 100_000):
        connection.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
        back = b""
        while len(back) < len(piece):
            back += stream.read(int(stream.readline(), 16))
            stream.readline()
        equal(back, piece, "what came back")
    connection.sendall(b"0\r\n\r\n")
    equal(stream.read(5), b"0\r\n\r\n", "the end of what comes back")
    connection.sendall(b"GET /length/4 HTTP/1.1\r\nHost: x\r\n\r\n")  # the connection is good for more
    equal(stream.readline(), b"HTTP/1.1 200 OK\r\n", "the next request on the connection")

    status, _, answer = front.ask("/early", method="POST", body=b"x" * 3_000_000)
    equal((status, answer), (413, b"too much\n"), "an answer before the body was read")
    try:
        front.ask("/cut")
        check(False, "an answer that was cut off looks whole")
    except (traffic.http.client.IncompleteRead, ConnectionResetError):
        pass
    # A client that leaves in the middle: the replica must not take what it has for the whole.
    connection = front.connect()
    connection.sendall(b"POST /seen HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nonly a part")
    connection.shutdown(traffic.socket.SHUT_WR)
    check(not connection.recv(100).startswith(b"HTTP/1.1 200"), "half a request was answered")
    thawtest.wait_for(lambda: not daemon.api("GET", "/v1/pods/a")["connections"]["active"], "nothing is in flight any more")


def test_expect_and_pipelining(daemon):
    """curl's 100-continue; requests sent together are answered in order."""
    front = Front(PORT)
    deploy(daemon, "a", routes=[{}])
    size = common.run("curl", "-s", "-H", "Expect: 100-continue", "--data-binary", "@/bin/bash", f"http://127.0.0.1:{PORT}/seen")
    equal(traffic.json.loads(size)["size"], os.stat("/bin/bash").st_size, "size of what curl sent")
    text = raw(front.connect(), b"GET /seen?1 HTTP/1.1\r\nHost: x\r\n\r\nGET /nowhere HTTP/1.1\r\nHost: x\r\n\r\nGET /seen?3 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    places = [text.find(b'"/seen?1"'), text.find(b'"/nowhere"'), text.find(b'"/seen?3"')]
    check(-1 < places[0] < places[1] < places[2], f"answers out of order: {places} {text[:300]}")


def test_upgrade(daemon):
    """After a 101 the connection carries bytes, both ways, until either end ends it."""
    front = Front(PORT)
    deploy(daemon, "a", routes=[{}])
    connection = front.connect()
    connection.sendall(b"GET /upgrade HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\nfirst")
    stream = connection.makefile("rb")
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += stream.readline()
    check(head.startswith(b"HTTP/1.1 101 ") and b"\r\nUpgrade: websocket\r\n" in head and b"\r\nConnection: Upgrade\r\n" in head, f"head {head}")
    equal(stream.read(5), b"first", "what was sent with the request")
    for size in (1, 1000, 300_000):
        data = os.urandom(size)
        sender = threading.Thread(target=connection.sendall, args=(data,))
        sender.start()
        equal(stream.read(size), data, f"{size} bytes")
        sender.join()
    connection.shutdown(traffic.socket.SHUT_WR)
    equal(stream.read(), b"", "the end")
    # Another protocol could bring requests that no route was asked about: such a request stays one of HTTP/1.1.
    _, headers, _ = front.ask("/seen", headers={"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAA"})
    seen, _ = front.seen(headers={"Connection": "Upgrade", "Upgrade": "h2c"})
    check("Upgrade" not in dict(seen["headers"]) and "Upgrade" not in headers, f"another protocol was let through: {seen}")


def test_websocket(daemon):
    """A real server of WebSockets behind the shared and a published port: messages both ways, also large and in parts, pings, both ways of closing."""
    deploy(daemon, "a", routes=[{}], ports=[{"container": 8000, "protocol": "http"}], checkpoint={"enabled": False, "when": {"tcp": 8000}},
           command=["python3", "-m", "uvicorn", "--ws", "wsproto", "--app-dir", "/app", "--host", "0.0.0.0", "--port", "8000", "--log-level", "warning", "websocket_app:app"])  # fmt: skip
    for port in (PORT, daemon.port("a", 8000)):
        web = WebSocket(Front(port).connect())
        web.send(TEXT, "grüße".encode())
        equal(web.message(), (TEXT, "grüße".encode()), "a text")
        for size in (0, 125, 126, 65_536, 3_000_001):
            data = os.urandom(size)
            web.send(BINARY, data)
            equal(web.message(), (BINARY, data), f"{size} bytes")
        web.send(PING, b"there?")
        equal(web.frame(), (PONG, True, b"there?"), "answer to a ping")
        web.send(TEXT, b"in ", last=False)
        web.send(PING, b"in between")
        web.send(CONTINUED, b"parts")
        equal(web.frame(), (PONG, True, b"in between"), "answer to a ping within a message")
        equal(web.message(), (TEXT, b"in parts"), "a message in two frames")
        web.send(TEXT, b"push")
        equal([web.message()[1] for _ in range(4)], [b"push", b"0", b"1", b"2"], "what the server sends by itself")
        web.send(CLOSE, b"\x03\xe8bye")
        kind, _, payload = web.frame()
        equal((kind, payload[:2]), (CLOSE, b"\x03\xe8"), "answer to a close")
        check(web.ended(), "the connection goes on after both have closed it")
        web = WebSocket(Front(port).connect())
        web.send(TEXT, b"close")
        kind, _, payload = web.frame()
        equal((kind, payload[:2]), (CLOSE, (4001).to_bytes(2, "big")), "the server's close")
        check(web.ended(), "the connection goes on after the server, which waits for no answer, has closed it")
    thawtest.wait_for(lambda: not daemon.api("GET", "/v1/pods/a")["connections"]["active"], "nothing is in flight any more")


def test_room(daemon):
    """`hard`: a replica gets no more than `concurrency` at once; the others wait for room, whichever way they come."""
    deploy(daemon, "a", routes=[{}], replicas={"min": 1, "max": 1, "concurrency": 1, "hard": True})
    front, other = Front(PORT), Front(daemon.port("a", 9000))
    first = other.connect()
    equal(first.recv(100), b"10.77.0.1\n", "the first one's greeting")
    second, answers = other.connect(), []
    wait_connections(daemon, "a", "held", 1)  # it is the next one
    asking = threading.Thread(target=lambda: answers.append(front.ask()))
    asking.start()
    wait_connections(daemon, "a", "held", 2)
    equal(daemon.api("GET", "/v1/pods/a")["connections"]["active"], 1, "connections with the replica")
    first.close()
    equal(second.recv(100), b"10.77.0.1\n", "the second one's greeting")
    equal(answers, [], "the answer to a third one")
    second.close()
    asking.join(90)
    equal([status for status, _, _ in answers], [200], "status of the third one")


def test_garbage(daemon):
    """What is no HTTP gets a 400 or nothing, and the others are served."""
    front = Front(PORT)
    deploy(daemon, "a", routes=[{}])
    for text in (b"hello\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(200), b"GET / HTTP/9.9\r\n\r\n", b"GET /\r\n\r\n",
                 b"GET / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\nHost: x\r\n\r\n0\r\n\r\n", b"GET / HTTP/1.1\r\nContent-Length: -1\r\nHost: x\r\n\r\n",
                 b"GET / HTTP/1.1\r\nHost: x\r\n folded: 1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx", b"GET / HTTP/1.1\r\n\r\n", b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
                 b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"):  # fmt: skip
        answer = raw(front.connect(), text)
        check(answer.startswith(b"HTTP/1.1 400 ") and b"Connection: close" in answer, f"{text[:40]}: {answer[:200]}")
    answer = raw(front.connect(), b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 70_000 + b"\r\n\r\n")
    check(answer.startswith(b"HTTP/1.1 431 "), f"a header of 70,000 bytes: {answer[:100]}")
    front.seen()


def test_replica_dies(daemon):
    """A replica that is killed in the middle: 502 before the answer, a cut off answer after it has begun."""
    front = Front(PORT)
    deploy(daemon, "a", routes=[{}])
    time.sleep(1)  # the log warns of failed requests once a second: not of this one if a test before had one
    answers = []
    client = threading.Thread(target=lambda: answers.append(front.ask("/hang", headers={"X-Request-Id": "hangs-1"})))
    client.start()
    wait_connections(daemon, "a", "active", 1)
    replica = daemon.replicas("a")[0]["id"]
    os.kill(daemon.replicas("a")[0]["pid"], 9)
    client.join(90)
    equal([(status, body) for status, _, body in answers], [(502, b"the replica ended the connection before it answered\n")], "answer")
    line = thawtest.wait_for(lambda: [line for line in daemon.log_lines() if "request=hangs-1" in line], "a line in the log")
    check(len(line) == 1 and f" replica={replica} " in line[0] and " status=502 " in line[0], f"the log's lines about it: {line}")


def test_tls():
    """HTTPS with the user's certificate; a wrong key is refused at the start, with the file's name."""
    port = thawtest.free_port()
    with thawtest.Daemon("--front", f"127.0.0.1:{port}") as daemon:
        cert, key, other = (daemon.data / name for name in ("cert.pem", "key.pem", "other.pem"))
        certificates.make(daemon.data / "unused.pem", other)
        certificates.make(cert, key, "DNS:a.example.com")
        daemon.arguments += ["--front-tls-cert", str(cert), "--front-tls-key", str(key), "--log-level", "debug", "--log-format", "json"]
        daemon.restart()
        front = Front(port, traffic.trusting(cert))
        deploy(daemon, "a", routes=[{"host": "a.example.com"}])
        seen, _ = front.seen()
        equal(dict(seen["headers"])["X-Forwarded-Proto"], "https", "X-Forwarded-Proto")
        equal(front.connect().selected_alpn_protocol(), "http/1.1", "protocol")
        body = os.urandom(3_000_000)
        equal(front.seen(method="POST", body=body)[0]["sha256"], hashlib.sha256(body).hexdigest(), "a body")
        equal(front.ask("/echo", method="POST", body=body)[2], body, "what comes back")
        with traffic.contextlib.closing(front.connection()) as connection:  # many on one connection
            for _ in range(5):
                connection.request("GET", "/length/100000", headers={"Host": "a.example.com"})
                equal(len(connection.getresponse().read()), 100_000, "an answer")
                connection.sock = connection.sock or front.connect()
        plain = raw(Front(port).connect(), b"GET / HTTP/1.1\r\nHost: a.example.com\r\n\r\n")
        check(b" 200 " not in plain, "plain HTTP was answered on the HTTPS port")
        front.seen()
        wrong = subprocess.run([daemon.binary, "daemon", "--data-dir", daemon.data / "wrong", "--front", "127.0.0.1:0", "--front-tls-cert", cert, "--front-tls-key", other],
                               capture_output=True, text=True, timeout=60, check=False)  # fmt: skip
        check(wrong.returncode != 0 and "other.pem" in wrong.stderr, f"a key of another certificate: {wrong.returncode} {wrong.stderr}")
        before = front.connection()  # goes on with the certificate that it has
        before.request("GET", "/length/1", headers={"Host": "a.example.com"})
        before.getresponse().read()

        def served():
            equal(Front(port, traffic.trusting(cert)).seen()[0]["headers"][0], ["Host", "a.example.com"], "Host with the renewed certificate")

        certificates.renewal(daemon, port, cert, key, "the shared port", "DNS:a.example.com", served)
        before.request("GET", "/length/1", headers={"Host": "a.example.com"})
        equal(before.getresponse().read(), b"\0", "an answer on a connection from before")
        # Each request has its line, with its id and its replica.
        status, headers, _ = Front(port, traffic.trusting(cert)).ask()

        def found():  # written once the answer is away
            lines = [traffic.json.loads(line) for line in daemon.log_lines() if line[:1] + line[-1:] == "{}"]
            return [line for line in lines if line.get("request") == headers["X-Request-Id"]]

        equal([(line["message"], line["pod"], line["replica"], line["status"], line["what"]) for line in thawtest.wait_for(found, "the request's line")],
              [("request", "a", daemon.replicas("a")[0]["id"], str(status), "GET a.example.com/seen")], "lines about a request")  # fmt: skip


if __name__ == "__main__":
    thawtest.main(globals(), daemon_arguments=("--front", f"127.0.0.1:{PORT}"))
