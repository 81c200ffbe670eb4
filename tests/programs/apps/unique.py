"""Draws random numbers from Python's own generator and from OpenSSL's: as both were at the dump, and seeded anew by GET /reseed."""

import ctypes
import os
import random
import ssl

import warm

drawn = {}
ssl.RAND_bytes(1)


def draw():
    return {"random": random.random(), "openssl": ssl.RAND_bytes(8).hex()}


def reseed():
    drawn["kept"] = draw()
    random.seed(os.urandom(32))
    ctypes.CDLL("libcrypto.so.3").RAND_poll()
    drawn["fresh"] = draw()


warm.serve(lambda: drawn, lambda text: None, more={"/reseed": reseed})
