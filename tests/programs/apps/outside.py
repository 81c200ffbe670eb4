"""Holds a connection to each of some servers outside (arguments: address,port), and makes another when it is lost."""

import itertools
import secrets
import socket
import sys
import threading
import time

import warm

token = secrets.token_hex(8)
servers = [(address, int(port)) for address, port in (argument.rsplit(",", 1) for argument in sys.argv[1:])]
errors, ticks, facts = [], {}, {}


def keep(server):
    name = server[0]
    facts[name] = {"lost": [], "failed": 0, "greeting": None}
    ticks[name] = 0
    while True:
        try:
            with socket.create_connection(server, timeout=2) as connection:
                connection.settimeout(5)
                stream = connection.makefile("rwb")
                facts[name]["greeting"] = stream.readline().decode().strip()
                for number in itertools.count():
                    stream.write(b"%d\n" % number)
                    stream.flush()
                    answer = stream.readline()
                    if answer != b"%d\n" % number:
                        raise ConnectionError(f"closed: {answer!r}")
                    ticks[name] += 1
                    time.sleep(0.02)
        except OSError as error:
            if facts[name]["greeting"]:
                facts[name]["lost"].append(f"{type(error).__name__}: {error}")
                facts[name]["greeting"] = None
            else:
                facts[name]["failed"] += 1
            time.sleep(0.05)


for server in servers:
    threading.Thread(target=keep, args=(server,), daemon=True).start()
while len(ticks) < len(servers) or min(ticks.values()) < 5:
    time.sleep(0.01)
warm.serve(lambda: {"token": token}, lambda _: None, live=lambda: {"errors": [], "ticks": ticks}, more={"/facts": lambda: facts}, server=warm.ThreadingServer)
