"""A tree of an awkward kind, and an HTTP server on port 8000 that answers when it stands.

    tree.py objects MIB      so much memory of Python objects: syntax trees of Python's own library, again and again
    tree.py heap MIB         so much anonymous memory, no two pages alike
    tree.py vmas COUNT       so many mappings of one page each
    tree.py threads COUNT    so many threads, each waiting
    tree.py processes COUNT  so many forked processes, each waiting with a page of its own
"""

import ast
import ctypes
import gc
import http.server
import mmap
import os
import pathlib
import signal
import socketserver
import sys
import threading

PAGE = mmap.PAGESIZE
MIB = 1 << 20
kept = []


def heap(mib):
    memory = mmap.mmap(-1, mib * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    block = bytearray(os.urandom(MIB))
    for number in range(mib):
        for page in range(0, MIB, PAGE):
            block[page : page + 4] = (number * 256 + page // PAGE).to_bytes(4, "little")
        memory[number * MIB : (number + 1) * MIB] = block
    kept.append(memory)
    last = mib * 256 - 1
    return lambda: int.from_bytes(memory[last * PAGE : last * PAGE + 4], "little") == last


def objects(mib):
    gc.disable()  # nothing becomes garbage, and looking for it would take longer each time
    sources = sorted(pathlib.Path(os.__file__).parent.glob("*.py"))
    text = [source.read_text(encoding="utf-8", errors="replace") for source in sources]
    size = pathlib.Path("/proc/self/statm")
    while int(size.read_text().split()[1]) * PAGE < mib * MIB:
        kept.append(ast.parse(text[len(kept) % len(text)]))
    last = kept[-1]
    return lambda: all(isinstance(node, ast.AST) for node in ast.walk(last))


def vmas(count):
    """Neighbours differ in what is allowed, so that the kernel cannot merge them."""
    memory = mmap.mmap(-1, count * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for number in range(count):
        memory[number * PAGE : number * PAGE + 4] = number.to_bytes(4, "little")
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    mprotect = ctypes.CDLL(None, use_errno=True).mprotect
    for number in range(0, count, 2):
        if mprotect(ctypes.c_void_p(address + number * PAGE), PAGE, mmap.PROT_READ) != 0:
            sys.exit(f"mprotect: {os.strerror(ctypes.get_errno())} after {number} mappings")
    kept.append(memory)
    last = count - 1
    return lambda: int.from_bytes(memory[last * PAGE : last * PAGE + 4], "little") == last


def threads(count):
    threading.stack_size(64 << 10)
    never = threading.Event()
    for _ in range(count):
        thread = threading.Thread(target=never.wait, daemon=True)
        thread.start()
        kept.append(thread)
    return lambda: all(thread.is_alive() for thread in kept)


def processes(count):
    for number in range(count):
        pid = os.fork()
        if pid == 0:
            kept.append(bytearray(os.urandom(PAGE)))
            while True:
                signal.pause()
        kept.append(pid)
    return lambda: all(os.path.exists(f"/proc/{pid}") for pid in kept)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = b"whole\n" if self.server.whole() else b"broken\n"
        self.send_response(200 if body == b"whole\n" else 500)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(http.server.HTTPServer):
    def server_bind(self):
        socketserver.TCPServer.server_bind(self)  # HTTPServer's asks DNS for a name first
        self.server_name, self.server_port = self.server_address[:2]


kind, size = sys.argv[1], int(sys.argv[2])
whole = {"objects": objects, "heap": heap, "vmas": vmas, "threads": threads, "processes": processes}[kind](size)
server = Server(("0.0.0.0", 8000), Handler)
server.whole = whole
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
server.serve_forever()
