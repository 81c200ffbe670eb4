"""scripts/demo: its figures, and that it leaves nothing, whenever it is interrupted."""

import json
import signal
import subprocess

import thawtest
from thawtest import check, equal


def demo(*arguments):
    process = subprocess.Popen(
        [thawtest.REPOSITORY / "scripts/demo", "--thaw", thawtest.binary(), *arguments], stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    thawtest.at_end(process.kill)
    return process


def test_figures():
    for _ in range(3):
        process = demo("--json")
        out, told = process.communicate(timeout=240)
        equal(process.returncode, 0, f"the demo's exit code\n{told}")
        figures = json.loads(out)
        if figures["ratio"] > 1:  # or the machine did something else during the one, but not the other
            break
    check(figures["ratio"] > 1, f"the restore was not faster than the cold start: {figures}")
    for start, phases in (("cold", {"starting", "warming", "checkpointing"}), ("restored", {"restoring", "validating"})):
        found = figures[start]["phases_ms"]
        check(phases <= set(found), f"phases of the {start} start: {found}")
    equal(len(figures["answers"]), 2, "replicas that answered")
    for text in ("1. A daemon", "2. The pod", "3. Its checkpoint", "4. The second", "5. Both answer", "Nothing is left"):
        check(text in told, f"the demo does not tell '{text}'\n{told}")


def interrupted(step, number):
    """A signal as soon as a step is announced."""
    process = demo()
    for line in process.stdout:
        if line.startswith(step):
            process.send_signal(number)
            break
    out, told = process.communicate(timeout=240)
    equal(process.returncode, 128 + number, f"the exit code of a demo interrupted at {step}\n{out}\n{told}")
    check("left behind" not in told, f"interrupted at {step}: {told}")


def test_interrupted():
    interrupted("1.", signal.SIGINT)
    interrupted("2.", signal.SIGTERM)
    interrupted("3.", signal.SIGINT)
    interrupted("4.", signal.SIGHUP)


if __name__ == "__main__":
    thawtest.main(globals())
