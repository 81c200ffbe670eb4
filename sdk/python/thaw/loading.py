"""`module:function` becomes the function: here, and nowhere else.

A condition that is a function is asked by a program that Thaw starts in the container, where this package need not be: the daemon carries
this file in itself (src/lifecycle/condition_exec.cc). So it imports nothing of the package, and keeps to what every Python 3 has.
"""

import functools
import importlib
import sys


def module_of(name: str, folder: str = "") -> object:
    """The module of a `module:function`; `folder` is where it is looked for first."""
    if folder and folder not in sys.path:
        sys.path.insert(0, folder)
    importlib.invalidate_caches()
    return importlib.import_module(name.partition(":")[0])


def attribute_of(module: object, name: str) -> object:
    """What a `module:function` names in its module: an attribute, or one of an attribute."""
    return functools.reduce(getattr, name.partition(":")[2].split("."), module)
