"""Shared memory of every kind, between a parent and its child: files and maps in /dev/shm, memfd, anonymous, POSIX semaphores."""

import fcntl
import hashlib
import mmap
import multiprocessing
import multiprocessing.shared_memory
import os
import secrets
import signal
import struct
import time

import warm

F_ADD_SEALS, F_GET_SEALS, F_SEAL_SHRINK = 1033, 1034, 0x0002
SIZE = 1 << 20
token = secrets.token_hex(8)
os.makedirs("/dev/shm/folder/below")
for name in ("plain", "folder/below/file"):
    with open(f"/dev/shm/{name}", "w", encoding="utf-8") as file:
        file.write(name + token)
os.link("/dev/shm/plain", "/dev/shm/linked")
os.symlink("plain", "/dev/shm/symbolic")

named = os.open("/dev/shm/mapped", os.O_RDWR | os.O_CREAT)
os.ftruncate(named, SIZE)
memfd = os.memfd_create("thaw", os.MFD_ALLOW_SEALING)
os.ftruncate(memfd, SIZE)
fcntl.fcntl(memfd, F_ADD_SEALS, F_SEAL_SHRINK)
block = multiprocessing.shared_memory.SharedMemory("block", create=True, size=SIZE)
maps = {
    "a named file": mmap.mmap(named, SIZE),
    "memfd": mmap.mmap(memfd, SIZE),
    "anonymous": mmap.mmap(-1, SIZE),
    "multiprocessing": block.buf,
}
maps["anonymous, large, with holes"] = large = mmap.mmap(-1, 24 * SIZE)
for first in (0, 5, 11):
    large[first * SIZE : first * SIZE + 3 * SIZE + 4096] = os.urandom(3 * SIZE + 4096)
for data in maps.values():
    data[: len(token)] = token.encode()
    data[len(data) - 64 :] = os.urandom(64)
asked, answered = multiprocessing.Semaphore(0), multiprocessing.Semaphore(0)


def child():
    """Turns what the parent wrote at 1000 into capitals at 2000, and counts at 3000."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    while True:
        if asked.acquire(timeout=0.02):
            for data in maps.values():
                data[2000:2100] = bytes(data[1000:1100]).upper()
            answered.release()
        for data in maps.values():
            struct.pack_into("<Q", data, 3000, struct.unpack_from("<Q", data, 3000)[0] + 1)


multiprocessing.get_context("fork").Process(target=child, daemon=True).start()


def ticks():
    return {name: struct.unpack_from("<Q", data, 3000)[0] for name, data in maps.items()}


def state():
    return {
        "maps": {name: hashlib.sha256(bytes(data[:3000]) + bytes(data[3008:])).hexdigest() for name, data in maps.items()},
        "files": {
            os.path.join(folder, name): (os.readlink(os.path.join(folder, name)) if name == "symbolic" else os.stat(os.path.join(folder, name)).st_nlink)
            for folder, _, names in os.walk("/dev/shm")
            for name in names
        },
        "content": {name: open(f"/dev/shm/{name}", encoding="utf-8").read() for name in ("plain", "linked", "folder/below/file")},
        "seals": fcntl.fcntl(memfd, F_GET_SEALS),
        "mount": [line.split()[3:6] for line in open("/proc/self/mountinfo", encoding="utf-8") if " /dev/shm " in line],
    }


def change(text):
    with open("/dev/shm/plain", "a", encoding="utf-8") as file:
        file.write(text)
    with open(f"/dev/shm/{text}", "w", encoding="utf-8") as file:
        file.write(text)
    for data in maps.values():
        data[1000:1100] = text.encode().ljust(100)
    asked.release()
    if not answered.acquire(timeout=20):
        raise TimeoutError("the child does not answer")
    for name, data in maps.items():
        if bytes(data[2000:2100]).strip() != text.upper().encode():
            raise ValueError(f"{name}: the child sees other memory")
    with open("/dev/shm/mapped", "rb") as file:
        if not file.read()[1000:].startswith(text.encode()):
            raise ValueError("the map of /dev/shm/mapped and the file are two things")


while not all(ticks().values()):
    time.sleep(0.01)
warm.serve(state, change, live=lambda: {"errors": [], "ticks": ticks()})
