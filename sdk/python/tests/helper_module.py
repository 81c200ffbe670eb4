"""Functions as a user's module has them."""

import functools


def warm() -> bool:
    return True


class Owner:
    def method(self) -> bool:
        return True


partial = functools.partial(warm)
