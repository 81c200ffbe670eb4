"""Connections between its own processes, over each of its own addresses, on which bytes go round without a pause."""

import itertools
import os
import random
import socket
import struct
import threading
import time

import warm

ADDRESSES = ["127.0.0.1", "10.77.0.2", "::1", "fd00:77::2"]
CHUNK = 4096
pattern = random.Random(1).randbytes(1 << 20)
errors, ticks, connections = [], {}, {}


def family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def expected(position, length):
    at = position % len(pattern)
    return (pattern + pattern)[at : at + length]


def echo(listener):
    connection, _ = listener.accept()
    while data := connection.recv(CHUNK):
        connection.sendall(data)
    os._exit(3)


def echo_datagrams(bound):
    while True:
        data, sender = bound.recvfrom(CHUNK)
        bound.sendto(data, sender)


def send(address, connection):
    """Ahead of what comes back, so that there is always something under way."""
    try:
        for position in itertools.count(0, CHUNK):
            connection.sendall(expected(position, CHUNK))
            while position - ticks[address] > 16 * CHUNK:
                time.sleep(0.002)
            time.sleep(0.002)
    except OSError as error:
        errors.append(f"sending over {address}: {error}")


def receive(address, connection):
    try:
        while True:
            data = connection.recv(CHUNK)
            if not data:
                errors.append(f"{address}: closed by the other end")
                return
            if data != expected(ticks[address], len(data)):
                errors.append(f"{address}: wrong bytes at {ticks[address]}")
                return
            ticks[address] += len(data)
    except OSError as error:
        errors.append(f"receiving over {address}: {error}")


def ping(name, connection):
    """Datagrams may be lost, but must not stop."""
    connection.settimeout(1)
    for number in itertools.count():
        try:
            connection.send(struct.pack("<Q", number))
            while struct.unpack("<Q", connection.recv(CHUNK))[0] != number:
                pass
            ticks[name] += 1
        except TimeoutError:
            continue
        except OSError as error:
            errors.append(f"{name}: {error}")
            return
        time.sleep(0.01)


for address in ADDRESSES:
    listener = socket.create_server((address, 7000), family=family(address))
    bound = socket.socket(family(address), socket.SOCK_DGRAM)
    bound.bind((address, 7001))
    if os.fork() == 0:
        threading.Thread(target=echo_datagrams, args=(bound,), daemon=True).start()
        echo(listener)
    listener.close()
    bound.close()
for address in ADDRESSES:
    connections[address] = socket.create_connection((address, 7000))
    connections[f"UDP {address}"] = socket.socket(family(address), socket.SOCK_DGRAM)
    connections[f"UDP {address}"].connect((address, 7001))
ticks |= dict.fromkeys(connections, 0)
for name, connection in connections.items():
    for work in (ping,) if name.startswith("UDP") else (send, receive):
        threading.Thread(target=work, args=(name, connection), daemon=True).start()
while min(ticks.values()) == 0:
    time.sleep(0.01)


def state():
    return {"names": {name: [connection.getsockname(), connection.getpeername()] for name, connection in connections.items()}}


warm.serve(state, lambda _: None, live=lambda: {"errors": errors, "ticks": ticks}, server=warm.ThreadingServer)
