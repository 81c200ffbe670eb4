"""What the tests deploy: a server, the pod that it is, and the function that says when it is warm."""

import http.server
import json
import os
import pathlib
import threading
import time
import urllib.request

import thaw
from thaw import Image, Pod

STATE = {"warm": False, "restores": [], "waited": None, "started_as": None}
CALLS = "/tmp/calls"  # of warm() and its kin, in the container


def warm() -> bool:
    return urllib.request.urlopen("http://127.0.0.1:8000/health").status == 200


def raises_ten_times() -> bool:
    """A file counts: the helper calls it in processes that come and go."""
    with open(CALLS, "a+", encoding="utf-8") as file:
        file.write("x")
        file.seek(0)
        count = len(file.read())
    if count <= 10:
        raise RuntimeError(f"not yet, call {count}")
    return True


def never() -> bool:
    return False


def hangs() -> bool:
    """One that never returns; the file says that it is under way."""
    with open(CALLS, "w", encoding="utf-8") as file:
        file.write(str(os.getpid()))
    while True:
        time.sleep(1e6)


pod = Pod(
    name="life", image=Image.from_rootfs(os.environ.get("TEST_ROOTFS", "/"), link=True).add(str(pathlib.Path(__file__).parent)).env(MODE="test"),
    entrypoint=["python3", "-m", "app"], ports=[8000], memory="512MiB", min_replicas=1, max_replicas=3, checkpoint_condition=warm, stop_grace=0,
)  # fmt: skip


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/hold":
            time.sleep(600)
        body = json.dumps({**STATE, "identity": thaw.identity()._asdict(), "restored": thaw.restored(), "enabled": thaw.checkpoint_enabled(),
                           "mode": os.environ.get("MODE"), "version": VERSION}).encode()  # fmt: skip
        self.send_response(200 if STATE["warm"] or self.path != "/health" else 503)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


VERSION = 1


def main():
    STATE["started_as"] = thaw.identity().replica

    @thaw.on_restore
    def seen():
        STATE["restores"].append(thaw.identity().replica)
        print("restored as", thaw.identity().replica, flush=True)

    def wait():
        STATE["waited"] = thaw.wait_for_restore()
        print("waited:", STATE["waited"], flush=True)

    server = http.server.ThreadingHTTPServer(("", 8000), Handler)
    threading.Thread(target=wait, daemon=True).start()
    print("up", flush=True)
    STATE["warm"] = True
    server.serve_forever()


if __name__ == "__main__":
    main()
