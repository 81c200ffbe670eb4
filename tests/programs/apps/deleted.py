"""Open files whose names are gone: deleted, replaced, never named, mapped, shared with a child, of the image itself."""

import hashlib
import mmap
import os
import secrets
import tempfile

import warm

token = secrets.token_hex(8)
files, maps = {}, {}


def keep(name, path, size, delete=True):
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o640)
    os.write(fd, (token.encode() + name.encode()).ljust(size, b"."))
    os.lseek(fd, 11, os.SEEK_SET)
    if delete:
        os.unlink(path)
    files[name] = fd


keep("small", "/tmp/small", 100)
keep("large", "/var/tmp/large", 3 << 20)
keep("in memory", "/dev/shm/deleted", 5000)
keep("replaced", "/tmp/replaced", 2000, delete=False)
with open("/tmp/replacement", "w", encoding="utf-8") as new:
    new.write("the new one")
os.rename("/tmp/replacement", "/tmp/replaced")
keep("one of two names", "/tmp/first-name", 3000, delete=False)
os.link("/tmp/first-name", "/tmp/second-name")
os.unlink("/tmp/first-name")
files["never named"] = os.open("/var/tmp", os.O_RDWR | os.O_TMPFILE, 0o600)
os.write(files["never named"], token.encode() * 100)
temporary = tempfile.TemporaryFile()  # what programs do
temporary.write(token.encode())
temporary.flush()
files["temporary"] = temporary.fileno()
files["of the image"] = os.open("/etc/issue.net", os.O_RDONLY)
os.unlink("/etc/issue.net")
files["append"] = os.open("/tmp/append", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
os.write(files["append"], b"begin\n")
os.unlink("/tmp/append")

for name in ("small", "in memory", "never named"):
    maps[name] = mmap.mmap(files[name], 4096 if name == "in memory" else 0)
maps["without a descriptor"] = mmap.mmap(files["large"], 1 << 20)


def content(fd):
    with open(f"/proc/self/fd/{fd}", "rb") as again:
        return hashlib.sha256(again.read()).hexdigest()


def state():
    return {
        "files": {
            name: {
                "content": content(fd),
                "position": os.lseek(fd, 0, os.SEEK_CUR),
                "size": os.fstat(fd).st_size,
                "mode": os.fstat(fd).st_mode,
            }
            for name, fd in files.items()
        },
        "maps": {name: hashlib.sha256(data).hexdigest() for name, data in maps.items()},
        "names": {path: sorted(os.listdir(path)) for path in ("/tmp", "/var/tmp", "/dev/shm")},
        "replaced": open("/tmp/replaced", encoding="utf-8").read(),
        "second name": hashlib.sha256(open("/tmp/second-name", "rb").read()).hexdigest(),
    }


def change(text):
    for name, fd in files.items():
        if name != "of the image":
            os.write(fd, text.encode())
    for data in maps.values():
        data[50 : 50 + len(text)] = text.encode()
    # A write through one name is seen through the other.
    if content(files["one of two names"]) != hashlib.sha256(open("/tmp/second-name", "rb").read()).hexdigest():
        raise ValueError("the two names of one file lead to two files")
    # A map and its descriptor are one file still.
    if os.pread(files["small"], len(text), 50) != text.encode():
        raise ValueError("the map and the descriptor lead to two files")


warm.serve(state, change)
