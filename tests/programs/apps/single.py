"""One process, one thread, some memory. An argument is the address to bind."""

import hashlib
import os
import secrets
import sys

import warm

token = secrets.token_hex(8)
heap = bytearray(os.urandom(1 << 16)) * 128
notes = []


def state():
    return {"token": token, "heap": hashlib.sha256(heap).hexdigest(), "notes": notes, "self": warm.attributes()}


def change(text):
    print(f"changed: {text}", flush=True)
    notes.append(text)
    heap[len(heap) // 2 : len(heap) // 2 + len(text)] = text.encode()


address = sys.argv[1] if len(sys.argv) > 1 else "0.0.0.0"
if "fd" in address:  # IPv6 only: no probe can ask it
    open("/run/thaw/ready", "w").close()
warm.serve(state, change, address=address)
