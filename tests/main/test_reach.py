"""Who reaches whom: links between pods, pods without a network, names, and whose address a program sees."""

import contextlib
import json
import os
import socket
import struct
import tempfile
import threading

import common
import thawtest
import traffic
from outside import HERE, THERE, NameServer, Outside
from thawtest import check, equal
from traffic import deploy, raw

# Run in a replica: connects, sends what it is asked to, and prints what comes back.
TRY = """
import socket, sys
try:
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=4) as c:
        c.sendall(sys.argv[3].encode().decode("unicode_escape").encode())
        c.settimeout(90)
        print(c.recv(4096).decode().splitlines()[0])
except OSError as e:
    print(type(e).__name__, e.errno)
"""
GET = r"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def attempt(daemon, pod, address, port, text="x"):
    replica = daemon.replicas(pod, "ready")[0]["id"]
    return daemon.exec(replica, "python3", "-S", "-c", TRY, address, str(port), text).strip()


def test_links(daemon):
    """A pod reaches the pods that it names, by name, on the ports they declare, and nothing else of theirs; others reach nothing."""
    deploy(daemon, "store")
    deploy(daemon, "other")
    deploy(daemon, "web", links=["store"])
    equal(attempt(daemon, "web", "store", 9000), "10.77.0.1", "what a linked pod says")
    check(attempt(daemon, "web", "store", 8000, GET).startswith("HTTP/1.1 200"), "no answer by HTTP from a linked pod")
    address = daemon.exec(daemon.replicas("web")[0]["id"], "getent", "hosts", "store").split()[0]
    check(address.startswith("10.77.") and not address.startswith("10.77.0."), f"address of a link: {address}")

    # Other ports of it, those of the host among them; other links; other pods; replicas' own addresses.
    host = socket.create_server(("0.0.0.0", 0))
    with contextlib.closing(host):
        refused = ("ConnectionResetError 104", "ConnectionRefusedError 111")
        for pod, where, port in (("web", address, 22), ("web", address, host.getsockname()[1]), ("web", "10.77.9.9", 9000), ("store", address, 9000),
                                 ("other", address, 9000)):  # fmt: skip
            answer = attempt(daemon, pod, where, port)
            check(answer in refused or answer == "", f"{pod} to {where} port {port}: {answer}")
        for where in (daemon.replicas("store")[0]["address"], daemon.replicas("other")[0]["address"]):
            answer = attempt(daemon, "web", where, 9000)
            check(answer.startswith("TimeoutError"), f"web to {where}: {answer}")

    # From zero, and in a restored replica: the name holds the connection until the other is there.
    daemon.scale("store", 0)
    answers = []
    client = threading.Thread(target=lambda: answers.append(attempt(daemon, "web", "store", 9000)))
    client.start()
    traffic.hold(daemon, "store")
    daemon.scale("store", 1)
    client.join(120)
    equal(answers, ["10.77.0.1"], "what the client of a pod at zero was told")
    deploy(daemon, "warm", links=["store"], checkpoint={"when": {"tcp": 8000}})
    daemon.wait_checkpoint("warm")
    daemon.scale("warm", 0)
    restored = daemon.scale("warm", 1)[0]
    check(restored["started_from"] != "cold", f"the second replica was not restored: {restored}")
    equal(attempt(daemon, "warm", "store", 9000), "10.77.0.1", "what a restored replica is told")

    # The pod's own wish is the newest one: without the link the way is closed.
    version = daemon.api("GET", "/v1/pods/web")["version"]
    deploy(daemon, "web")
    traffic.settle(daemon, "web", version + 1)
    check(attempt(daemon, "web", address, 9000) in ("", *refused), "a link that was taken back still leads there")
    daemon.restart()
    equal(attempt(daemon, "warm", "store", 9000), "10.77.0.1", "after a restart of the daemon")


def test_network_none(daemon):
    """Without a network a program reaches nothing, and hears so at once; its clients reach it as ever. The same when restored."""
    with Outside() as outside:
        listener = outside.socket()
        listener.bind((THERE, 7000))
        listener.listen()
        deploy(daemon, "open")
        replica = daemon.replicas("open")[0]["id"]
        connect = "import socket; socket.create_connection(('%s', 7000), timeout=30); print('reached')" % THERE
        equal(daemon.exec(replica, "python3", "-S", "-c", connect).strip(), "reached", "a pod with a network")
        deploy(daemon, "shut", network="none", checkpoint={"when": {"tcp": 8000}})
        daemon.wait_checkpoint("shut")
        for how in ("cold", "restored"):
            replica = daemon.replicas("shut", "ready")[0]
            equal(replica["started_from"] == "cold", how == "cold", "how it was started")
            answer = daemon.exec(replica["id"], "python3", "-S", "-c", TRY, THERE, "7000", "x").strip()
            equal(answer, "OSError 101", f"a {how} pod without a network")  # ENETUNREACH
            equal(daemon.exec(replica["id"], "cat", "/etc/resolv.conf"), "", "its name servers")
            equal(json.loads(daemon.http_published("shut", "/seen", container=8000))["identity"]["pod"], "shut", "who answers")
            if how == "cold":
                daemon.scale("shut", 0)
                daemon.scale("shut", 1)


def test_names():
    """Replicas resolve names with the host's servers, through the host; servers on loopback addresses are not theirs."""
    with Outside() as outside, tempfile.TemporaryDirectory() as folder:
        server = NameServer(outside)
        configuration = os.path.join(folder, "resolv.conf")
        with open(configuration, "w", encoding="utf-8") as file:
            file.write(f"nameserver 127.0.0.53\nnameserver {THERE}\noptions timeout:15 attempts:2\n")
        wrapper = os.path.join(folder, "thaw")
        with open(wrapper, "w", encoding="utf-8") as file:
            file.write(f'#!/bin/sh\nexec unshare -m sh -c \'mount --bind {configuration} /etc/resolv.conf && exec {thawtest.binary()} "$@"\' thaw "$@"\n')
        os.chmod(wrapper, 0o755)
        daemon = thawtest.Daemon()
        daemon.binary = wrapper
        with daemon:
            daemon.binary = thawtest.binary()
            deploy(daemon, "a")
            replica = daemon.replicas("a")[0]["id"]
            check("127.0.0.53" not in daemon.exec(replica, "cat", "/etc/resolv.conf"), "a server on a loopback address was passed on")
            resolve = "import socket; print(socket.gethostbyname('name.example'))"
            equal(daemon.exec(replica, "python3", "-S", "-c", resolve).strip(), "192.0.2.77", "address of name.example")
            check("name.example" in server.asked, f"the host's name server was asked for {server.asked}")
            doctor = {line["name"]: line for line in daemon.api("GET", "/v1/doctor")}
            equal((doctor["name servers"]["status"], doctor["name servers"]["found"]), ("pass", THERE), "what thaw doctor says")


def test_client_address(daemon):
    """keep: the program sees the client's own address; proxy: it is told so in a PROXY header; otherwise it sees the gateway's."""
    with Outside() as outside:
        ports = [{"container": 8000, "address": "0.0.0.0"}, {"container": 9000, "address": "0.0.0.0"},
                 {"container": 9000, "address": "0.0.0.0", "client_address": "keep"}, {"container": 9000, "address": "0.0.0.0", "client_address": "proxy"},
                 {"container": 8000, "address": "0.0.0.0", "client_address": "keep", "protocol": "http"}]  # fmt: skip
        for port in ports:
            port["host"] = thawtest.free_port()
        deploy(daemon, "a", ports=ports, checkpoint={"when": {"all": [{"tcp": 8000}, {"tcp": 9000}]}})
        daemon.wait_checkpoint("a")

        def ask_all():
            answers = []
            for number in (1, 2, 3):
                client = outside.connect(ports[number]["host"])
                own = client.getsockname()
                stream = client.makefile("rb")
                answers.append(stream.readline().strip().decode())
                client.sendall(b"ping")
                if number == 3:  # the program sends back what it gets: the header first
                    header = stream.read(28)
                    equal(header[:16], b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c", "the PROXY header")
                    equal((socket.inet_ntoa(header[16:20]), struct.unpack(">H", header[24:26])[0]), own, "the client in the PROXY header")
                    equal(socket.inet_ntoa(header[20:24]), HERE, "the server in the PROXY header")
                equal(stream.read(4), b"ping", "an echo")
                client.close()
            return answers

        equal(ask_all(), ["10.77.0.1", THERE, "10.77.0.1"], "whom the program sees")
        client = outside.connect(ports[4]["host"])
        own = list(client.getsockname())
        answer = raw(client, b"GET /seen HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        client.close()  # or the replica would wait for it before it ends
        equal(json.loads(answer.partition(b"\r\n\r\n")[2])["peer"], own, "address and port that the program sees")
        daemon.scale("a", 0)
        daemon.scale("a", 1)
        check(daemon.replicas("a")[0]["started_from"] != "cold", "it was not restored")
        equal(ask_all(), ["10.77.0.1", THERE, "10.77.0.1"], "whom a restored program sees")
        # A client of this host has no address that means anything inside.
        with socket.create_connection(("127.0.0.1", ports[2]["host"]), 20) as local:
            equal(local.makefile("rb").readline(), b"10.77.0.1\n", "whom the program sees of a client on loopback")


if __name__ == "__main__":
    thawtest.main(globals())
