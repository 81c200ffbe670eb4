"""Memory whose every page can be told from every other: MIB (64) MiB of it, checked all the time by threads and by forked children (FORKS=0:
without these; a dump that meets one is twice as large).

A page that is not what it must be is written down in /ctl/wrong. On port 8000: /all checks every page, /forks makes
a thousand children that end at once, anything else answers `ok`.
"""

import ctypes
import http.server
import mmap
import os
import random
import threading

PAGE = 4096
COUNT = int(os.environ.get("MIB", "64")) << 8
memory = mmap.mmap(-1, COUNT * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
words = (ctypes.c_uint64 * (COUNT * PAGE // 8)).from_buffer(memory)


def word(page):
    return (page * 0x9E3779B97F4A7C15 + 1) & 0xFFFFFFFFFFFFFFFF


def check(page):
    for at in (page * 512, page * 512 + 511):
        if words[at] != word(page):
            line = f"page {page}: {words[at]:x} in place of {word(page):x}\n"
            descriptor = os.open("/ctl/wrong", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            os.write(descriptor, line.encode())
            os.close(descriptor)


def check_at_random(times=0):
    choice = random.Random(os.urandom(8))
    done = 0
    while not times or done < times:
        check(choice.randrange(COUNT))
        done += 1


def fork_now_and_then():
    while True:
        child = os.fork()
        if child == 0:
            check_at_random(300)
            os._exit(0)
        os.waitpid(child, 0)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/forks":
            child = os.fork()
            if child == 0:  # where no other thread wants Python's lock
                for _ in range(1000):
                    if os.fork() == 0:
                        os._exit(0)
                    os.wait()
                os._exit(0)
            os.waitpid(child, 0)
        if self.path == "/all":
            for page in range(COUNT):
                check(page)
        self.send_response(200)
        self.send_header("Content-Length", "3")
        self.end_headers()
        self.wfile.write(b"ok\n")

    def log_message(self, *_):
        pass


for page in range(COUNT):
    words[page * 512] = words[page * 512 + 511] = word(page)
threading.Thread(target=check_at_random, daemon=True).start()
if os.environ.get("FORKS") != "0":
    threading.Thread(target=fork_now_and_then, daemon=True).start()
http.server.ThreadingHTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
