"""For conditions of the kind `python`."""

import os

import server_state  # noqa: F401: only the pod's own working directory has it


def ready():
    if not os.path.exists("/ctl/asked"):
        open("/ctl/asked", "w", encoding="utf-8").close()
        raise RuntimeError("the model is not there yet")
    return os.path.exists("/ctl/go") and os.environ["GAUGE"] == "of the pod"
