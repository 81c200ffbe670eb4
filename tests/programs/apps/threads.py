"""Threads that run, and threads that wait in different ways: for a lock, a queue, a socket, a clock. A change goes through all of these."""

import os
import queue
import secrets
import select
import socket
import threading
import time

import warm

RUNNERS = 6
local = threading.local()
ticks, tokens = [0] * RUNNERS, [None] * RUNNERS
condition = threading.Condition()
notes = []


def run(number):
    local.token = secrets.token_hex(4)
    while True:
        with condition:
            condition.wait(0.02)
            ticks[number] += 1
        tokens[number] = local.token  # from thread-local storage, again and again


# A change's way: queue -> stream socket -> poll -> a lock that is let go -> notes.
inbox, (near, far), (low, high) = queue.Queue(), socket.socketpair(), socket.socketpair()
gate, parcel, arrived = threading.Lock(), [], threading.Semaphore(0)


def from_queue():
    while True:
        near.sendall(inbox.get().encode().ljust(64))


def from_socket():
    while True:
        low.sendall(far.recv(64, socket.MSG_WAITALL))


def from_poll():
    poller = select.poll()
    poller.register(high, select.POLLIN)
    while True:
        poller.poll()
        parcel.append(high.recv(64, socket.MSG_WAITALL).decode().strip())
        gate.release()


def from_lock():
    while True:
        gate.acquire()
        notes.append(parcel.pop())
        arrived.release()


def sleeper():
    time.sleep(100000)


def state():
    return {
        "tokens": tokens,
        "threads": sorted(map(int, os.listdir("/proc/self/task"))),
        "names": sorted(thread.name for thread in threading.enumerate()),
        "notes": notes,
        "self": warm.attributes(),
    }


def change(text):
    inbox.put(text)
    if not arrived.acquire(timeout=20):
        raise TimeoutError("a waiting thread did not go on")


gate.acquire()
for function in (from_queue, from_socket, from_poll, from_lock, sleeper):
    threading.Thread(target=function, daemon=True, name=function.__name__).start()
for number in range(RUNNERS):
    threading.Thread(target=run, args=(number,), daemon=True, name=f"runner {number}").start()
while None in tokens:
    time.sleep(0.01)
warm.serve(state, change, live=lambda: {"errors": [], "ticks": {f"thread {i}": n for i, n in enumerate(ticks)}})
