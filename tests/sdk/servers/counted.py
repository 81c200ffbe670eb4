"""Twenty workers of two users, five threads of each say that it is ready; one more dies after that. Some on_restore functions fail."""

import os
import signal
import threading
import time

import thaw


class Odd:
    """It can be called, and has neither a name nor a hash."""

    __hash__ = None

    def __call__(self):
        raise SystemExit("odd")


def fails():
    raise RuntimeError("fails")


def seen():
    print("restored in", os.getpid(), flush=True)


def worker(number):
    pid = os.fork()
    if pid == 0:
        if number % 2:
            os.setgroups([])
            os.setgid(1000)
            os.setuid(1000)
        threads = [threading.Thread(target=thaw.ready) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if number == 0:
            os._exit(0)
        while True:
            signal.pause()
    return pid


for function in (Odd(), fails, seen):
    thaw.on_restore(function)
os.waitpid(worker(0), 0)
for number in range(1, 20):
    worker(number)
while len([name for name in os.listdir("/run/thaw/workers") if name.isdigit() and os.path.exists(f"/proc/{name}")]) < 19:
    time.sleep(0.01)
time.sleep(1)  # what must not happen in it is that the condition holds
print("the last one", flush=True)
worker(20)
while True:
    signal.pause()
