"""`module:function`: how a function of the user is named; what is wrong with such a name, or with what it names, said for people."""

from __future__ import annotations

import functools
import os
import sys
import types
from typing import Any, Optional

from . import loading, values
from .errors import InvalidError


def check(function: Any, action: str = "use checkpoint_condition") -> None:
    """Refuses what has no name that another process could find it by."""
    if isinstance(function, functools.partial) or not hasattr(function, "__qualname__") or not hasattr(function, "__module__"):
        raise InvalidError(action, function, "it has no name that the container could import it by",
                           "write a function without arguments at the top level of a module, and give that")  # fmt: skip
    name = function.__qualname__
    if "<lambda>" in name:
        raise InvalidError(action, f"{function.__module__}:{name}", "it is a lambda: it has no name that the container could import it by",
                           "write it as a function, `def warm() -> bool: ...`, at the top level of the module, and give that")  # fmt: skip
    if "<locals>" in name:
        inner = name.rpartition(".")[2]
        raise InvalidError(action, f"{function.__module__}:{name}", "it is nested in a function, and does not exist until that one is called",
                           f"move `def {inner}()` to the top level of the module")  # fmt: skip
    if isinstance(function, types.MethodType) and not isinstance(function.__self__, type):
        raise InvalidError(action, f"{function.__module__}:{name}", "it belongs to an object, which the container does not have",
                           "give a function at the top level of a module")  # fmt: skip
    _check_call(function, action)


def _check_call(function: Any, action: str) -> None:
    """Refuses what cannot be called as a condition is, or would always hold."""
    name = f"{function.__module__}:{function.__qualname__}"
    if isinstance(function, type):
        raise InvalidError(action, name, "it is a class: what it makes is always true", "give a function that returns whether the program is warm")
    if values.required_arguments(function) > 0:
        raise InvalidError(action, name, "it needs arguments, and nobody has any for it", "give a function without arguments; a method needs its object, which the container does not have")
    if getattr(getattr(function, "__code__", None), "co_flags", 0) & (0x20 | 0x200):  # CO_GENERATOR, CO_ASYNC_GENERATOR
        raise InvalidError(action, name, "it is a generator: what it returns is always true", "write `return` in the place of `yield`")


def name_of(function: Any, action: str = "use checkpoint_condition") -> str:
    """The `module:function` of a function.

    >>> from platform import machine
    >>> name_of(machine)
    'platform:machine'
    """
    check(function, action)
    if function.__module__ == "__main__":
        main = getattr(sys.modules.get("__main__"), "__file__", None)
        file = os.path.basename(main) if main else "the file"
        raise InvalidError(action, f"__main__:{function.__qualname__}", f"it is of the program that runs now, and in the container that is another one ({file} is not '__main__' there)",
                           f"deploy with `thaw deploy {file}:NAME`, which imports {file} as a module, or move the function to a module of its own and import it")  # fmt: skip
    return f"{function.__module__}:{function.__qualname__}"


def check_name(text: Any, action: str = "use python condition") -> str:
    """A text that is `module:function`."""
    module, _, function = text.partition(":") if isinstance(text, str) else ("", "", "")
    if not all(part.isidentifier() for part in module.split(".")) or not all(part.isidentifier() for part in function.split(".")):
        raise InvalidError(action, text, "it is not module:function", "name a function without arguments, such as 'app.health:ready'")
    return str(text)


def load(name: str, folder: Optional[str] = None, action: str = "load") -> Any:
    """The object of a `module:function`; `folder` is where modules are looked for first.

    >>> load("os.path:join")("a", "b")
    'a/b'
    """
    check_name(name, action)
    module_name, _, attribute = name.partition(":")
    folder = folder and os.path.abspath(folder)
    try:
        module = loading.module_of(name, folder or "")
    except ImportError as error:
        # A module that is there and imports something that is not: the error speaks of that one.
        missing = getattr(error, "name", None) or module_name
        remedy = "give the folder that it lies in, or correct the name" if module_name == missing or module_name.startswith(f"{missing}.") else f"install {missing}, or import it where it is needed"
        raise InvalidError(action, name, str(error), remedy) from error
    if folder is not None:
        file, loaded = os.path.join(folder, *module_name.split(".")) + ".py", getattr(module, "__file__", None)
        if os.path.exists(file) and not (loaded and os.path.samefile(loaded, file)):
            raise InvalidError(action, name, f"there is another module '{module_name}', {loaded or 'a part of Python itself'}, which is imported in the place of {file}", "rename the file")
    try:
        return loading.attribute_of(module, name)
    except AttributeError:
        known = sorted(key for key in vars(module) if not key.startswith("_"))
        raise InvalidError(action, name, f"module '{module_name}' has no '{attribute}'", "it has: " + ", ".join(known)) from None
