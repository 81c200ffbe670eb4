"""For uvicorn: each worker is ready when it has started, and another thread of it waits for the restore."""

import os
import threading

import thaw


def wait():
    print("worker waited:", thaw.wait_for_restore(), flush=True)


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        threading.Thread(target=wait, daemon=True).start()
        thaw.ready()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": f'{{"pid": {os.getpid()}, "restored": {str(thaw.restored()).lower()}}}'.encode()})
