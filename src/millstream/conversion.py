"""Classes that values are converted to, looked into by one thread at a time.

msgspec looks into a class when something is first converted to it, and shows what it has found so far to other threads:
one that converts to the same class meanwhile, or to one of which that is a part, may end the process.
"""

from __future__ import annotations

import os
import threading
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")

_looking = threading.RLock()
_known: set[Any] = set()


def ready(cls: T) -> T:
    """A class or type annotation, once msgspec has looked into it and all that it is made of.

    Raises:
        NameError: An annotation cannot be resolved.
        TypeError: Something in it cannot be converted to.
    """
    try:
        if cls in _known:
            return cls
    except TypeError:  # an annotation that has no hash is looked into each time
        return _looked_into(cls)
    _looked_into(cls)
    _known.add(cls)
    return cls


def _looked_into(cls: T) -> T:
    with _looking:
        msgspec.json.Decoder(cls)
    return cls


def _forked() -> None:
    global _looking
    _looking = threading.RLock()  # the thread that held it is not in the child


os.register_at_fork(after_in_child=_forked)
