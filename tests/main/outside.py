"""A network behind a link of the host, with a client or servers in it."""

import os
import socket
import subprocess
import threading

import thawtest
from thawtest import in_netns

# For documentation: nobody's. Not those of other tests.
HERE, THERE = "203.0.113.1", "203.0.113.2"


class Outside:
    def __init__(self):
        opened = []

        def unshare():
            if thawtest.LIBC.unshare(thawtest.CLONE_NEWNET) == 0:
                opened.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY))

        thread = threading.Thread(target=unshare)
        thread.start()
        thread.join()
        self.namespace = opened[0]
        self.link = f"far-{os.getpid()}"  # not thaw…: those are replicas
        self.sockets = []
        thawtest.at_end(self.close)
        inside = f"/proc/{os.getpid()}/fd/{self.namespace}"
        self.ip("link", "add", self.link, "type", "veth", "peer", "name", "eth0", "netns", inside)
        for where, link, address in ((None, self.link, HERE), (inside, "eth0", THERE)):
            self.ip("address", "add", f"{address}/30", "dev", link, where=where)
            self.ip("link", "set", link, "up", where=where)
        self.ip("route", "add", "default", "via", HERE, where=inside)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    @staticmethod
    def ip(*words, where=None):
        enter = ["nsenter", f"--net={where}"] if where else []
        subprocess.run([*enter, "ip", *words], check=True, timeout=30)

    def socket(self, kind=socket.SOCK_STREAM):
        made = in_netns(self.namespace, lambda: socket.socket(socket.AF_INET, kind))
        made.settimeout(90)
        self.sockets.append(made)
        return made

    def connect(self, port, address=HERE):
        made = self.socket()
        made.connect((address, port))
        return made

    def close(self):
        for made in self.sockets:
            made.close()
        self.sockets = []
        if self.namespace is not None:
            subprocess.run(["ip", "link", "del", self.link], capture_output=True, timeout=30, check=False)
            os.close(self.namespace)
            self.namespace = None


class NameServer(threading.Thread):
    """Answers every question for an IPv4 address with 192.0.2.77, and knows no IPv6 ones."""

    def __init__(self, outside):
        super().__init__(daemon=True)
        self.socket = outside.socket(socket.SOCK_DGRAM)
        self.socket.settimeout(None)
        self.socket.bind((THERE, 53))
        self.asked = set()
        self.start()

    def run(self):
        while True:
            try:
                question, client = self.socket.recvfrom(512)
            except OSError:
                return
            at, labels = 12, []
            while question[at]:
                labels.append(question[at + 1 : at + 1 + question[at]].decode())
                at += 1 + question[at]
            self.asked.add(".".join(labels))
            end = at + 5
            found = question[at + 1 : at + 3] == b"\0\1"
            answer = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + socket.inet_aton("192.0.2.77") if found else b""
            head = question[:2] + b"\x81\x80\0\1" + (b"\0\1" if found else b"\0\0") + b"\0\0\0\0"
            self.socket.sendto(head + question[12:end] + answer, client)
