"""Fingerprints: what a snapshot was made by, so that one of other code or another shape is never used.

The code of classes and functions counts, not its text: comments may change, and code that was typed into a console has
a fingerprint as well. What a handler calls outside its class is beyond it; that is what ``version=`` is for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from ..events import Event
from ..evolution import definition
from ..marks import mark


def fingerprint(
    subject: Any, root: type | None, hints: Mapping[str, Any], events: Iterable[type[Any]], version: object
) -> str:
    """A digest in hex.

    Args:
        subject: A class, whose bases below ``root`` count too, or a function.
        hints: The types of the state.
        events: The classes of the events that change it.
        version: What its author says.
    """
    parts = [repr(version), *(f"{name}: {hint!r}" for name, hint in hints.items())]
    if isinstance(subject, type):
        for base in subject.__mro__:
            if base is root or base is object:
                break
            parts.append(f"class {base.__qualname__}")
            parts.extend(f"{name} = {mark(value)}" for name, value in sorted(vars(base).items()) if _counts(name))
    else:
        parts.append(mark(subject))
    parts.extend(sorted(_event(cls) for cls in events))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _counts(name: str) -> bool:
    """Whether an attribute of a class is its author's, and says something."""
    return not name.startswith(("_Aggregate__", "_abc_")) and name not in (
        "__module__", "__doc__", "__dict__", "__weakref__", "__annotations__", "__slots__", "__firstlineno__",
        "__static_attributes__", "__parameters__", "__orig_bases__",
    )  # fmt: skip


def _event(cls: type[Any]) -> str:
    return definition(cls) if issubclass(cls, Event) else cls.__qualname__
