"""Memory of every kind that a checkpoint need not store, and of those that only look like it. On port 8000 every answer names the
regions that are not byte by byte what they were made as; `ok` when there are none."""

import http.server
import mmap
import os
import random

PAGE = 4096
MIB = 256  # pages
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


def page(number):
    return random.Random(number).randbytes(PAGE)


ZERO = bytes(PAGE)
DATA = [page(n) for n in range(50)]


def mixed(pages, seed):
    """Zeros and data in stretches of every length."""
    choice, out = random.Random(seed), []
    while len(out) < pages:
        kind = choice.randrange(2)
        out += [choice.choice(DATA) if kind else ZERO for _ in range(choice.choice((1, 2, 5, 15, 16, 17, 60)))]
    return out[:pages]


def file_of(name, pages):
    with open(name, "wb") as file:
        file.write(b"".join(pages)[:-100])  # it ends within a page
    return open(name, "rb")


def mapped(name, own, now, gone=None):
    """A private mapping of a file whose every page was written to, as `now` has it. `gone`: the file is deleted and its name another's."""
    with file_of(name, own) as file:
        memory = mmap.mmap(file.fileno(), len(own) * PAGE - 100, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    for n, data in enumerate(now):
        memory[n * PAGE] ^= 1  # a page of its own
        memory[n * PAGE:(n + 1) * PAGE] = data[:len(memory) - n * PAGE]
    if gone:
        os.unlink(name)
        file_of(name, gone).close()
    return memory, now


def anonymous(pages, flags=PRIVATE):
    memory = mmap.mmap(-1, len(pages) * PAGE, flags=flags)
    for n, data in enumerate(pages):
        if data is not None:
            memory[n * PAGE] = 1  # a page of its own, of zeros, too
            memory[n * PAGE:(n + 1) * PAGE] = data
    return memory, pages


OWN = [DATA[n % 50] for n in range(100)]
CHANGED = [DATA[7] if n % 9 == 0 else ZERO if n % 11 == 0 else data for n, data in enumerate(OWN)]
REGIONS = {
    "zeroed": anonymous([ZERO] * 16 * MIB),
    "sparse": anonymous([DATA[n % 50] if n % 7 == 0 else None for n in range(8 * MIB)]),
    "mixed": anonymous(mixed(16 * MIB, 1)),
    "shared": anonymous(mixed(8 * MIB, 2), mmap.MAP_SHARED | mmap.MAP_ANONYMOUS),
    "shared zeros": anonymous([ZERO] * MIB, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS),
    "file": mapped("/srv/same", OWN, OWN),
    "file changed": mapped("/srv/changed", OWN, CHANGED),
    "file zeroed": mapped("/srv/zeroed", OWN, [ZERO] * 100),
    "file deleted": mapped("/srv/deleted", [ZERO] * 100, OWN, gone=OWN),
    "inherited": anonymous(mixed(4 * MIB, 3)),
}


def wrong():
    return [f"{name}: page {n}" for name, (memory, pages) in REGIONS.items() for n, data in enumerate(pages)
            if memory[n * PAGE:(n + 1) * PAGE] != (data or ZERO)[:len(memory) - n * PAGE]]


# A child has its parent's memory, and has changed some: what is zero in one is not in the other.
ask, answer = os.pipe(), os.pipe()
if os.fork() == 0:
    memory, now = REGIONS["inherited"][0], mixed(4 * MIB, 4)
    for n, data in enumerate(now):
        memory[n * PAGE:(n + 1) * PAGE] = data
    REGIONS["inherited"] = memory, now
    while os.read(ask[0], 1):
        os.write(answer[1], repr(wrong()[:5]).encode())
    os._exit(0)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        text = "ok"
        if self.path == "/all":
            os.write(ask[1], b"?")
            found = wrong()[:5], os.read(answer[0], 4096).decode()
            text = "ok" if found == ([], "[]") else f"here {found[0]}, in the child {found[1]}"
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


http.server.ThreadingHTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
