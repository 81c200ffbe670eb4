"""A master that forks workers, all of which accept from one listener, and forks another when one dies. Memory is shared among them."""

import json
import mmap
import os
import secrets
import signal
import socket
import struct

import warm

WORKERS, SLOT = 4, 64
shared = mmap.mmap(-1, 1 << 16)  # WORKERS slots of a token, then as many counters, then notes
COUNTERS, NOTES = 1024, 4096


def token_of(number):
    return shared[number * SLOT : number * SLOT + 16].decode()


def notes():
    length = struct.unpack_from("<I", shared, NOTES)[0]
    return json.loads(shared[NOTES + 4 : NOTES + 4 + length] or b"[]")


def state():
    return {"workers": [token_of(number) for number in range(WORKERS)], "notes": notes()}


def change(text):
    data = json.dumps([*notes(), text]).encode()
    struct.pack_into("<I", shared, NOTES, len(data))
    shared[NOTES + 4 : NOTES + 4 + len(data)] = data


def tick(number):
    at = COUNTERS + 8 * number
    struct.pack_into("<Q", shared, at, struct.unpack_from("<Q", shared, at)[0] + 1)


def live():
    return {"errors": [], "ticks": {f"worker {n}": struct.unpack_from("<Q", shared, COUNTERS + 8 * n)[0] for n in range(WORKERS)}}


def work(number):
    token = secrets.token_hex(8)
    shared[number * SLOT : number * SLOT + 16] = token.encode()
    signal.signal(signal.SIGALRM, lambda *_: tick(number))
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    more = {"/worker": lambda: token, "/die": lambda _: signal.raise_signal(signal.SIGKILL)}
    warm.serve(state, change, live, more, listener=listener)


def start(number):
    pid = os.fork()
    if pid == 0:
        try:
            work(number)
        finally:
            os._exit(1)
    return pid


listener = socket.create_server(("0.0.0.0", 8000), backlog=64)
children = {start(number): number for number in range(WORKERS)}


def stop(*_):
    for child in children:
        os.kill(child, signal.SIGTERM)
    os._exit(0)


signal.signal(signal.SIGTERM, stop)
while all(map(token_of, range(WORKERS))) is False:
    signal.sigtimedwait([], 0.01)
open("/run/thaw/ready", "w").close()
while True:
    pid, _ = os.wait()
    number = children.pop(pid)
    children[start(number)] = number
