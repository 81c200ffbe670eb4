"""What the tests of the Python package share."""

import json
import os
import pathlib
import shutil
import sys
import tempfile
import urllib.request

import thawtest
from thawtest import check, equal, wait_equal, wait_for

APP = pathlib.Path(__file__).resolve().parent / "app"
sys.path.insert(0, str(thawtest.REPOSITORY / "sdk/python"))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(thawtest.REPOSITORY / "sdk/python"), os.environ.get("PYTHONPATH")]))

import thaw  # noqa: E402: found by the line above

ROOTFS = thawtest.rootfs("programs")  # of the machine's cache, which the tests leave before they build


def own_cache():
    """Builds go to a cache of this test file, which is removed at its end."""
    cache = tempfile.mkdtemp(prefix="thaw-sdk-", dir="/var/tmp")
    thawtest.at_end(lambda: shutil.rmtree(cache))
    os.environ["THAW_CACHE"] = cache
    os.environ["TEST_ROOTFS"] = ROOTFS
    return pathlib.Path(cache)


def client(daemon):
    return thaw.Client(daemon.address)


def base():
    return thaw.Image.from_rootfs(ROOTFS, link=True)


def ask(url, path="/"):
    with urllib.request.urlopen(url + path, timeout=90) as response:
        return json.loads(response.read())


def raises(error, call, *words):
    """call() must raise this error, whose text has these words."""
    try:
        call()
    except error as found:
        for word in words:
            check(word in str(found), f"the error does not say '{word}': {found}")
        return found
    raise thawtest.Failure(f"no {error.__name__}")


def lines(replica, text):
    """Lines of a replica's log that hold the text."""
    return [line.text for line in replica.logs() if text in line.text]


def wait_line(replica, text, count=1):
    return wait_for(lambda: len(lines(replica, text)) >= count and lines(replica, text), f"'{text}' in the log of {replica.id}")


__all__ = ["APP", "ROOTFS", "ask", "base", "check", "client", "equal", "lines", "own_cache", "raises", "thaw", "wait_equal", "wait_for", "wait_line"]
