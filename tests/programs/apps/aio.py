"""asyncio: epoll over sockets, pipes, timers and events of every kind, all of which tick."""

import asyncio
import ctypes
import json
import os
import secrets
import signal
import struct

PERIOD = 0.02
token, notes, ticks, errors = secrets.token_hex(8), [], {}, []
libc = ctypes.CDLL(None, use_errno=True)
CLOCK_MONOTONIC, TFD_NONBLOCK = 1, os.O_NONBLOCK


def tick(name):
    ticks[name] = ticks.get(name, 0) + 1


def timerfd(loop):
    fd = libc.timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK)
    nanoseconds = int(PERIOD * 1e9)
    libc.timerfd_settime(fd, 0, struct.pack("qqqq", 0, nanoseconds, 0, nanoseconds), None)

    def expired():
        os.read(fd, 8)
        tick("timerfd")

    loop.add_reader(fd, expired)


def eventfd(loop):
    fd = os.eventfd(0, os.EFD_NONBLOCK)

    def signalled():
        os.eventfd_read(fd)
        tick("eventfd")
        loop.call_later(PERIOD, os.eventfd_write, fd, 1)

    loop.add_reader(fd, signalled)
    os.eventfd_write(fd, 1)


def posix_timer(loop):
    # struct sigevent: union sigval, int signo, int notify (0: SIGEV_SIGNAL)
    event, timer = struct.pack("qii48x", 0, signal.SIGUSR1, 0), ctypes.c_void_p()
    loop.add_signal_handler(signal.SIGUSR1, tick, "POSIX timer")
    if libc.timer_create(CLOCK_MONOTONIC, event, ctypes.byref(timer)) != 0:
        raise OSError(ctypes.get_errno(), "timer_create")
    nanoseconds = int(PERIOD * 1e9)
    libc.timer_settime(timer, 0, struct.pack("qqqq", 0, nanoseconds, 0, nanoseconds), None)


async def task():
    while True:
        await asyncio.sleep(PERIOD)
        tick("sleep")


async def echo(reader, writer):
    while line := await reader.readline():
        writer.write(line)
        await writer.drain()


async def ping(name, reader, writer):
    number = 0
    while True:
        number += 1
        writer.write(b"%d\n" % number)
        answer = await reader.readline()
        if answer != b"%d\n" % number:
            errors.append(f"{name}: {answer!r} instead of {number}")
            return
        tick(name)
        await asyncio.sleep(PERIOD)


async def handle(reader, writer):
    method, path, _ = (await reader.readline()).decode().split()
    length = 0
    while (line := await reader.readline()).strip():
        key, _, value = line.decode().partition(":")
        length = int(value) if key.lower() == "content-length" else length
    body = (await reader.readexactly(length)).decode()
    answer = "ok"
    if path == "/state":
        due = long_timer.when() - asyncio.get_running_loop().time()
        answer = {"token": token, "notes": notes, "kinds": sorted(ticks), "long timer": 99000 < due < 100000}
    elif path == "/live":
        answer = {"errors": errors, "ticks": ticks}
    elif method == "POST":
        notes.append(body)
    data = json.dumps(answer).encode()
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(data) + data)
    await writer.drain()
    writer.close()


async def main():
    global long_timer
    loop = asyncio.get_running_loop()
    long_timer = loop.call_later(100000, errors.append, "the long timer came too early")
    loop.add_signal_handler(signal.SIGTERM, os._exit, 0)
    loop.add_signal_handler(signal.SIGALRM, tick, "setitimer")
    signal.setitimer(signal.ITIMER_REAL, PERIOD, PERIOD)
    timerfd(loop)
    eventfd(loop)
    posix_timer(loop)
    tasks = [loop.create_task(task())]
    unix = await asyncio.start_unix_server(echo, "/tmp/echo.sock")
    tasks.append(loop.create_task(ping("unix socket", *await asyncio.open_unix_connection("/tmp/echo.sock"))))
    tcp = await asyncio.start_server(echo, "127.0.0.1", 8001)
    tasks.append(loop.create_task(ping("TCP", *await asyncio.open_connection("127.0.0.1", 8001))))
    cat = await asyncio.create_subprocess_exec("cat", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)
    tasks.append(loop.create_task(ping("pipe", cat.stdout, cat.stdin)))
    while len(ticks) < 8:
        await asyncio.sleep(0.01)
    server = await asyncio.start_server(handle, "0.0.0.0", 8000)
    await asyncio.gather(server.serve_forever(), unix.serve_forever(), tcp.serve_forever(), *tasks)


asyncio.run(main())
