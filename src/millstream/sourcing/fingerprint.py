"""Fingerprints: what a snapshot was made by, so that one of other code or another shape is never used.

The code of classes and functions counts, not its text: comments may change, and code that was typed into a console has
a fingerprint as well. What a handler calls outside its class is beyond it; that is what ``version=`` is for.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Mapping
from enum import Enum
from types import FunctionType
from typing import Any, get_args, get_origin, get_type_hints

from ..events import Event, stands
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
    parts = [repr(version), *(f"{name}: {hint!r}" for name, hint in hints.items()), *shapes(hints.values())]
    if isinstance(subject, type):
        for base in subject.__mro__:
            if base is root or base is object:
                break
            parts.append(_code(base))
    else:
        parts.append(mark(subject))
    parts.extend(sorted(_event(cls) for cls in events))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def shapes(hints: Iterable[Any]) -> list[str]:
    """The fields and the code of the classes that types name, and of those that their fields name in turn."""
    found: dict[Any, str] = {}
    left = list(hints)
    while left:
        hint = left.pop()
        left.extend(get_args(hint))
        cls = get_origin(hint) or hint
        left.extend([cls.__value__] if hasattr(cls, "__value__") and not isinstance(cls, Enum) else [])
        if not isinstance(cls, type) or _is_python_s(cls) or cls in found:
            continue
        own = [_code(base) for base in cls.__mro__ if not _is_python_s(base)]
        if issubclass(cls, Enum):
            found[cls] = "\n".join([*map(mark, cls), *own])
            continue
        fields = hints_of(cls)
        left.extend(fields.values())
        defaults = [mark(each) for each in getattr(cls, "__struct_defaults__", ())]
        tag = getattr(getattr(cls, "__struct_config__", None), "tag", None)
        found[cls] = "\n".join([f"{cls.__qualname__} {fields} {defaults} {tag!r}", *own])
    return sorted(found.values())


def hints_of(cls: Any) -> dict[str, Any]:
    """The types of a class's fields; as texts, where they name what cannot be found."""
    try:
        return get_type_hints(get_origin(cls) or cls)
    except Exception:
        return dict(getattr(cls, "__annotations__", {}))


def _is_python_s(cls: type) -> bool:
    """Whether a class comes with Python, or with msgspec: what it does is no matter of the user's code."""
    module = cls.__module__.partition(".")[0]
    # A user's own may have such a module's name, and what `make_dataclass` makes says it is of ``types``.
    return module == "msgspec" or (module in sys.stdlib_module_names and module != "__main__" and stands(cls))


def _code(cls: type) -> str:
    made = issubclass(cls, Enum)  # much of such a class is made by Python
    own = [each for each in sorted(vars(cls).items()) if _counts(*each) and not (made and each[0].startswith("_"))]
    attributes = (f"{name} = {mark(value)}" for name, value in own)
    return "\n".join([f"class {cls.__qualname__}", *attributes])


def _counts(name: str, value: Any) -> bool:
    """Whether an attribute of a class is its author's, and says something."""
    if name.startswith("__") and name.endswith("__"):
        # The rest is Python's, or notes that libraries take there while the class is in use.
        return isinstance(value, FunctionType | classmethod | staticmethod | property)
    return not name.startswith(("_Aggregate__", "_abc_"))


def _event(cls: type[Any]) -> str:
    return definition(cls) if issubclass(cls, Event) else cls.__qualname__
