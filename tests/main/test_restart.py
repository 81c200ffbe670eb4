"""What a restart of the daemon costs clients: nothing but time when it dies, no time to speak of when another takes its place."""

import http.client
import json
import os
import pathlib
import signal
import socket
import stat
import threading
import time

import common
import thawtest
import traffic
from thawtest import check, equal, wait_for

FRONT = thawtest.free_port()
BLOCK = bytes(range(256)) * 1024


class Asking(threading.Thread):
    """Asks again and again, each time on a connection of its own: `connect` makes it, `path` is asked for."""

    def __init__(self, connect, path):
        super().__init__(daemon=True)
        self.connect, self.path = connect, path
        self.answers, self.failures = [], []
        self.over = threading.Event()

    def run(self):
        while not self.over.is_set():
            try:
                connection = http.client.HTTPConnection("a.example.com", timeout=60)
                connection.sock = self.connect()
                connection.request("GET", self.path, headers={"Connection": "close"})
                response = connection.getresponse()
                body = response.read()
                connection.close()
                check(response.status == 200, f"{response.status} {body[:200]!r}")
                self.answers.append(json.loads(body))
            except (OSError, http.client.HTTPException, ValueError, thawtest.Failure) as error:
                self.failures.append(error)
            time.sleep(0.002)


class Clients:
    """Of a published port, of the shared port, and of the API, all the time."""

    def __init__(self, daemon):
        def to_api():
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(60)
            connection.connect(daemon.socket)
            return connection

        port = daemon.port("a")
        ways = [(lambda: socket.create_connection(("127.0.0.1", port), 60), "/seen"),
                (lambda: socket.create_connection(("127.0.0.1", FRONT), 60), "/seen"), (to_api, "/v1/version")]  # fmt: skip
        self.all = [Asking(*way) for way in ways for _ in range(2)]

    def __enter__(self):
        for one in self.all:
            one.start()
        self.wait_more()
        return self

    def wait_more(self):
        """Until each has had three more answers: one may have been on its way."""
        wanted = [len(one.answers) + 3 for one in self.all]
        wait_for(lambda: all(len(one.answers) >= count for one, count in zip(self.all, wanted)), "all clients are answered", step=0.01)

    def __exit__(self, *_):
        for one in self.all:
            one.over.set()
        for one in self.all:
            one.join(120)


def read_exactly(connection, size):
    found = b""
    while len(found) < size:
        piece = connection.recv(size - len(found))
        check(piece, f"the connection ended after {len(found)} of {size} bytes")
        found += piece
    return found


def read_head(connection):
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += read_exactly(connection, 1)
    return head


class Download:
    """A long answer, read in two parts."""

    SIZE = 48 << 20

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), 60)
        self.socket.sendall(b"GET /length/%d HTTP/1.1\r\nHost: a.example.com\r\nConnection: close\r\n\r\n" % self.SIZE)
        check(read_head(self.socket).startswith(b"HTTP/1.1 200"), "status")
        self.got = 0
        self.read(self.SIZE // 4)

    def read(self, until):
        while self.got < until:
            at = self.got % len(BLOCK)
            piece = self.socket.recv(min(65536, until - self.got, len(BLOCK) - at))
            check(piece, f"the answer ended after {self.got} bytes")
            check(piece == BLOCK[at : at + len(piece)], f"wrong bytes from {self.got} on")
            self.got += len(piece)

    def finish(self):
        self.read(self.SIZE)
        equal(self.socket.recv(1), b"", "what follows the answer")
        self.socket.close()


class Talk:
    """A connection that says little: what is sent comes back."""

    def __init__(self, port, upgraded=False):
        self.socket = socket.create_connection(("127.0.0.1", port), 60)
        if upgraded:
            self.socket.sendall(b"GET /upgrade HTTP/1.1\r\nHost: a.example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
            check(read_head(self.socket).startswith(b"HTTP/1.1 101"), "it was not upgraded")
        else:
            read_exactly(self.socket, len("10.77.0.1\n"))

    def say(self, text):
        self.socket.sendall(text)
        equal(read_exactly(self.socket, len(text)), text, "what came back")


class Unanswered:
    """A request that the replica answers (by hanging up) when one byte more comes: no connection at rest, but one in use."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), 60)
        self.socket.sendall(b"GET /hang HTTP/1.1\r\nHost: x\r\n\r\n")

    def check_waits(self):
        self.socket.settimeout(0.2)
        try:
            check(False, f"its connection has ended: {self.socket.recv(1)}")
        except TimeoutError:
            pass

    def finish(self):
        self.socket.settimeout(60)
        self.socket.sendall(b"x")
        equal(self.socket.recv(1), b"", "what the replica says")
        self.socket.close()


def refused(port):
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except ConnectionRefusedError:
        return True
    return False


def deploy(daemon, name="a", **more):
    traffic.deploy(daemon, name, **{"routes": [{"host": f"{name}.example.com"}], **more})


def test_killed(daemon):
    """SIGKILL and a new daemon: nobody is refused, only what went through the dead one ends."""
    deploy(daemon)
    who, port = daemon.replicas("a", "ready")[0]["id"], daemon.port("a")
    with Clients(daemon) as clients:
        talk = Talk(daemon.port("a", 9000))
        holder = daemon.holders()
        daemon.kill9()
        try:
            equal(talk.socket.recv(1), b"", "what a spliced connection says")
        except ConnectionResetError:
            pass
        check(not refused(port), "a client is refused while there is no daemon")
        daemon.start()
        clients.wait_more()
        Talk(daemon.port("a", 9000)).say(b"again")
    equal(daemon.holders(), holder, "who keeps the sockets")
    equal({one["identity"]["replica"] for client in clients.all[:4] for one in client.answers}, {who}, "who answered")
    for client in clients.all:
        check(len(client.failures) <= 1, f"a client of {client.path} failed more than once: {client.failures}")
        check(not any(isinstance(error, ConnectionRefusedError) for error in client.failures), f"a client was refused: {client.failures}")


def test_replaced(daemon):
    """Another daemon takes over: no request fails, and what goes through the earlier process goes on, for as long as it takes."""
    deploy(daemon, "b", replicas={"min": 0, "max": 2, "keep_warm": "1s"})
    deploy(daemon)
    port, second = daemon.port("a"), Unanswered(daemon.port("b"))
    wait_for(lambda: daemon.replicas("b", "ready"), "the replica of b")
    who = daemon.replicas("b", "ready")[0]["id"]
    downloads = [Download(port), Download(FRONT)]
    talks = [Talk(daemon.port("a", 9000)), Talk(FRONT, upgraded=True)]
    with Clients(daemon) as clients:
        first = daemon.replace()
        clients.wait_more()
        check(first.poll() is None, "the earlier process has left its connections")
        for talk in talks:
            talk.say(b"half way")
        # A third: what goes through the first process counts there, too.
        between = daemon.replace()
        clients.wait_more()
        equal(between.wait(120), 0, "exit code of the daemon in between, through which nothing goes")
    failures = [(client.path, error) for client in clients.all for error in client.failures]
    equal(failures, [], "requests that failed")
    for one in downloads:
        one.finish()
    for talk in talks:
        talk.say(b"the end")
        talk.socket.close()
    # Its only connection is the first process's: it is no reason less to live.
    equal(daemon.api("GET", "/v1/pods/b")["connections"]["active"], 1, "connections of b")
    time.sleep(1.5)
    second.check_waits()
    equal([row["id"] for row in daemon.replicas("b", "ready")], [who], "the replica of b")
    # It leaves, has its connection to finish, and the daemon is replaced meanwhile.
    daemon.api("POST", "/v1/pods/b/scale", {"replicas": 0})
    wait_for(lambda: daemon.replica(who)["state"] == "draining", "it drains")
    equal(daemon.replace().wait(120), 0, "exit code")
    second.check_waits()
    second.finish()
    wait_for(lambda: daemon.replica(who)["state"] == "stopped", "it has stopped")
    equal(first.wait(120), 0, "exit code of the first process")


def test_held(daemon):
    """Those that wait for a replica when another daemon takes over get their answer."""
    deploy(daemon, wait=False, env={"STARTS_IN": "3"}, replicas={"min": 0, "max": 1})
    answers = []
    front = traffic.Front(FRONT)
    port = daemon.port("a")
    clients = [threading.Thread(target=lambda: answers.append(front.ask("/seen")[0])),
               threading.Thread(target=lambda: answers.append(traffic.Front(port).ask("/seen")[0]))]  # fmt: skip
    for client in clients:
        client.start()
    wait_for(lambda: daemon.api("GET", "/v1/pods/a")["connections"]["held"] == 2, "both are held", step=0.01)
    earlier = daemon.replace()
    for client in clients:
        client.join(120)
    equal(answers, [200, 200], "answers")
    equal(earlier.wait(120), 0, "exit code of the earlier process")


def test_reload(daemon):
    """SIGHUP starts the program anew, with the same words; one that cannot start changes nothing."""
    deploy(daemon)
    pid = daemon.pid
    earlier, daemon.process = daemon.process, None
    daemon.earlier.append(earlier)
    os.kill(pid, signal.SIGHUP)
    wait_for(lambda: daemon.api("GET", "/v1/version")["pid"] != pid, "another daemon answers")
    equal(earlier.wait(120), 0, "exit code of the earlier one")
    traffic.Front(FRONT).seen()
    daemon.replace()  # one that this test has started itself
    done = daemon.cli("daemon", "--data-dir", daemon.data, "--slots", 0, check_exit=False)
    equal(done.returncode, 5, f"exit code of a second daemon: {done.stderr}")


def test_stopped(daemon):
    """A stop on purpose closes everything at once, also what an earlier daemon has left, and leaves no process."""
    deploy(daemon)
    port = daemon.port("a")
    folder = daemon.data / "daemon"
    for path, mode in ((folder, 0o700), *((file, 0o600) for file in folder.iterdir())):
        equal(stat.S_IMODE(path.stat().st_mode), mode, f"mode of {path}")
    talk = Talk(daemon.port("a", 9000))
    earlier = daemon.replace()
    talk.say(b"there")
    check(not refused(port) and not refused(FRONT), "the ports do not listen")
    daemon.stop()
    check(refused(port) and refused(FRONT), "a port listens without a daemon")
    check(not pathlib.Path(daemon.socket).exists(), "the API's socket is there without a daemon")
    thawtest.wait_equal(daemon.holders, [], "who keeps sockets")
    equal(earlier.wait(120), 0, "exit code of the earlier process")
    try:
        equal(talk.socket.recv(1), b"", "what its connection says")
    except ConnectionResetError:
        pass
    equal(list(folder.iterdir()), [], "sockets that are left")
    daemon.start()
    traffic.Front(FRONT).seen()


def test_changed_meanwhile(daemon):
    """What no pod publishes any more when the next daemon starts is not listened to; a foreign program's port stays its own."""
    deploy(daemon, "moved")
    # Who keeps the sockets may die, too: it is made again.
    (keeper,) = daemon.holders()
    os.kill(keeper, signal.SIGKILL)
    wait_for(lambda: keeper not in daemon.holders(), "it is dead")
    deploy(daemon, "gone")
    wait_for(lambda: len(daemon.holders()) == 1, "another keeps the sockets")
    moved, gone, other = daemon.port("moved"), daemon.port("gone"), thawtest.free_port()
    daemon.kill9()
    common.sql(daemon, "UPDATE pods SET spec = json_set(spec, '$.ports[0].host', ?) WHERE name = 'moved'", other)
    common.sql(daemon, "DELETE FROM pods WHERE name = 'gone'")
    check(not refused(moved) and not refused(gone), "nobody keeps the ports while there is no daemon")
    with thawtest.Daemon(slots=0) as neighbour:
        check(not neighbour.instances & daemon.instances, "another daemon has the address of a kept socket")
    daemon.start()
    check(refused(moved), "the earlier port is still there")
    check(refused(gone), "the port of a pod that is gone is still there")
    check(traffic.Front(other).seen()[0]["identity"]["pod"] == "moved", "the new port")


if __name__ == "__main__":
    thawtest.main(globals(), daemon_arguments=["--front", f"127.0.0.1:{FRONT}"])
