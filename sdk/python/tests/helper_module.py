"""Functions as a user's module has them."""

import functools


def warm() -> bool:
    return True


def defaults(often: int = 1, *more: int) -> bool:
    return True


def needs(much: int) -> bool:
    return True


def yields():
    yield True


async def yields_later():
    yield True


class Owner:
    def method(self) -> bool:
        return True


partial = functools.partial(warm)
