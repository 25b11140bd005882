"""Merging: events that do not bear on each other may both be recorded, though neither writer saw the other's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..errors import UsageError
from ..events import Event, type_name
from ..log.handlers import check_plain

Named = str | type[Event]

Commutes = Callable[[Any, Any], bool]
"""Given an event that is to be recorded and one that another has recorded meanwhile: may both stand?"""

NonConflicting = Mapping[Named, Iterable[Named]] | Commutes


def commuting(given: NonConflicting | None) -> Commutes | None:
    """As a function.

    Raises:
        UsageError: It is neither a mapping of types nor a function.
    """
    if given is None:
        return None
    if isinstance(given, Mapping):
        table = {type_name(mine): frozenset(_names(theirs)) for mine, theirs in given.items()}
        return lambda mine, theirs: type_name(theirs) in table.get(type_name(mine), ())
    if callable(given):
        check_plain(given)
        return given
    raise UsageError(
        f"non_conflicting={given!r:.60} is neither a mapping nor a function",
        hint="Write {MoneyDeposited: [MoneyDeposited]}, or a function of two events",
    )


def _names(types: object) -> Iterable[str]:
    if isinstance(types, str | type) or not isinstance(types, Iterable):
        raise UsageError(f"{types!r:.60} is no list of types", hint="Write {MoneyDeposited: [MoneyDeposited]}")
    return [type_name(each) for each in types]
