"""A few of the kills of tests/torture/kill_anywhere.py, one of each kind; `make torture` does all."""

import pathlib
import sys

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "torture"))

import kill_anywhere  # noqa: E402
import thawtest  # noqa: E402
from thawtest import check, equal  # noqa: E402

CASES = (
    "slot.network:self", "shim.prepare.criu:criu", "cold.asked:shim", "shim.cold.create:runc", "shim.cold.started:daemon", "dump.leased:self",
    "shim.dump.frozen:daemon", "shim.dump.frozen:criu", "dump.answered:container", "seal.hashed:self", "proof.restored:shim", "gate.ready:self",
    "restore.asked:shim", "shim.restore.resuming:criu", "shim.restore.done:container", "fallback.begun:self", "stop.intended:self",
    "stop.signalled:shim", "pod.removed:self", "checkpoint.deleted:self", "standby.taken:shim", "pause.rested:self",
    "shutdown.begun:self", "adopt.slot:self", "handover.released:self", "handover.taken:self",
    "rest.written:self", "rest.removed:self", "inflate.placed:self",
)  # fmt: skip


def test_kills():
    known = [f"{step}:{victim}" for step, victim, _ in kill_anywhere.cases()]
    check(set(CASES) <= set(known), f"no such cases: {set(CASES) - set(known)}")
    work = kill_anywhere.torture(CASES, exact=True)
    print(kill_anywhere.figures(work), flush=True)
    check(not work.broken, "\n".join(work.broken))
    equal(work.killed, len(CASES), "steps killed")


if __name__ == "__main__":
    thawtest.main(globals())
