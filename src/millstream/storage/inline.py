"""Which inline handlers a commit calls, whichever store it is made in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .base import InlineHandler, Receipt, StagedAppend
from .database import Database

Handlers = dict[str, tuple[frozenset[str] | None, InlineHandler]]
"""By name: the types that a handler is called for (None: all), and the handler."""


def wanted(handlers: Handlers, appends: Iterable[StagedAppend]) -> bool:
    """Whether any handler wants any of the types that are appended."""
    return any(types is None or any(_wants(types, append) for append in appends) for types, _ in handlers.values())


def call(handlers: Handlers, database: Database, appends: Sequence[StagedAppend], receipt: Receipt) -> None:
    """Call each handler for the appends, placed as the receipt says, that have any of its types."""
    if not receipt.count:
        return
    for types, handler in list(handlers.values()):
        position = receipt.first
        for append in appends:
            if _wants(types, append):
                handler(database, append, position)
            position += append.count


def _wants(types: frozenset[str] | None, append: StagedAppend) -> bool:
    return types is None or any(run.type in types for run in append.runs)
