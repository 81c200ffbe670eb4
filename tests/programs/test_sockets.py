"""Sockets, pipes and terminals within a program, and its own connections over each of its addresses."""

import thawtest
from roundtrip import MARKED, Program, app, http_live, tests
from thawtest import equal


def over_ipv6(replica):
    return replica.json("/state", host="fd00:77::2")


globals().update(
    tests(
        [
            Program("unix-sockets", app("sockets.py")),
            Program("terminal", app("terminal.py")),
            Program("loopback", app("loopback.py"), change=None, live=http_live),
            Program("bound-to-own-address", app("single.py", "10.77.0.2")),
            Program("bound-to-own-address-v6", app("single.py", "fd00:77::2"), when=MARKED, state=over_ipv6, published=False,
                    change=lambda replica, text: replica.text("/change", "POST", text, host="fd00:77::2")),
        ]
    )
)  # fmt: skip

if __name__ == "__main__":
    thawtest.main(globals())
