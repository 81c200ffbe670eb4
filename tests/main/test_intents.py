"""A stop in the middle is a stop: each phase once, with the kinds of stop in turn. tests/torture/intents.py tries all with all."""

import pathlib
import sys

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "torture"))

import intents  # noqa: E402
import thawtest  # noqa: E402
from thawtest import equal  # noqa: E402


def test_each_phase():
    cases = [(phase, intents.INTENTS[number % len(intents.INTENTS)]) for number, phase in enumerate(intents.PHASES)]
    equal(intents.run(cases), len(intents.PHASES), "phases")


if __name__ == "__main__":
    thawtest.main(globals())
