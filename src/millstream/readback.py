"""Whether a value is read back as what it was, so that a state made of it now and one made of it later are the same.

JSON has few types. A field's type tells what its text stands for; but a UUID field that was given text, or a
`Decimal` in a field of type ``Any``, would be one thing when it is recorded and another one when it is read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec

_ROWS = (list, tuple)


def changed(
    given: object, back: object, same: Callable[[object], bool], path: str = "$"
) -> tuple[str, Any, Any] | None:
    """The first value, with its place, that is not read back as it was given; None when all are.

    A list may have been a tuple, a float an int, and a time may have had another zone.

    Args:
        same: What else is the same whatever it is read back as.
    """
    if given is back or given == back or same(given):
        return None
    if isinstance(given, Mapping) and isinstance(back, Mapping):
        if given.keys() != back.keys():
            return path, dict(given), back
        return _first(((given[key], back[key], f"{path}.{key}") for key in given), same)
    if isinstance(given, _ROWS) and isinstance(back, _ROWS) and len(given) == len(back):
        return _first(((a, b, f"{path}[{n}]") for n, (a, b) in enumerate(zip(given, back, strict=True))), same)
    if type(given) is type(back):
        names = _fields(given)
        if names:
            return _first(((getattr(given, n), getattr(back, n), f"{path}.{n}") for n in names), same)
        if isinstance(given, datetime) and isinstance(back, datetime) and given.tzinfo and back.tzinfo:
            # Where the clocks are set back, two zones' times never compare as equal.
            given, back = given.astimezone(UTC), back.astimezone(UTC)
        if given == back or (
            isinstance(given, Decimal) and isinstance(back, Decimal) and given.is_nan() and back.is_nan()
        ):
            return None
    return path, given, back


def _first(pairs: Iterator[tuple[object, object, str]], same: Callable[[object], bool]) -> tuple[str, Any, Any] | None:
    return next((found for a, b, path in pairs if (found := changed(a, b, same, path)) is not None), None)


def _fields(value: Any) -> Sequence[str]:
    if isinstance(value, msgspec.Struct):
        return value.__struct_fields__
    if dataclasses.is_dataclass(value):
        return [each.name for each in dataclasses.fields(value)]
    return ()
