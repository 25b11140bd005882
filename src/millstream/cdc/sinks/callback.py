"""A function as a follower of a table."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from ...errors import UsageError
from ...log.handlers import check_plain
from ..debezium import debezium_events
from .base import RETRIES, Changes, SinkBase

if TYPE_CHECKING:
    from ...storage.database import Database


class Callback(SinkBase):
    """A function as a follower.

    Args:
        function: Called with each `Change`, in order, its values as the source holds them. It may also ask, by
            the names of its parameters, for ``recorded`` (the envelope: ``recorded.position`` tells a repeat)
            and for ``db`` (the log's database: the call then happens inside the checkpoint's commit, maybe
            twice or on another thread, and must have no other effects).
        name: Names its checkpoint; by default the function's module and qualified name. Lambdas and partials, which
            have none of their own, need one.
        retries: How often a change is given again for which it raises, before the change is parked; None: for ever.
            If it raises `Rejected` the change is parked at once.
        envelope: ``"plain"``, or ``"debezium"``: the function gets a dict as Debezium would have sent it (of a change
            of the key two, one after the other).

    Example:
        >>> import millstream as ms
        >>> from millstream.cdc import Callback
        >>> Callback(print, name="printer").name
        'printer'
    """

    size = 1

    def __init__(
        self,
        function: Callable[..., object],
        *,
        name: str | None = None,
        retries: int | None = RETRIES,
        envelope: Literal["plain", "debezium"] = "plain",
    ) -> None:
        if envelope not in ("plain", "debezium"):
            raise UsageError(f"{envelope!r:.40} is no envelope", hint='Write "plain" or "debezium"')
        if not callable(function):
            raise UsageError(f"{function!r:.60} cannot be called", hint="Give a function of one change")
        check_plain(function)
        self.function = function
        self.name = name or _name_of(function)
        self.retries = retries
        wants = _parameters(function)
        self.transactional = "db" in wants
        self._recorded = "recorded" in wants
        self._debezium = envelope == "debezium"

    def apply(self, changes: Changes, db: Database | None) -> None:
        """Call the function for each change."""
        for change, recorded in changes:
            extra: dict[str, Any] = {}
            if self._recorded:
                extra["recorded"] = recorded
            if self.transactional:
                extra["db"] = db
            for each in debezium_events(recorded) if self._debezium else (change,):
                self.function(each, **extra)


def _name_of(function: Callable[..., object]) -> str:
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    if name.endswith("<lambda>") or isinstance(function, functools.partial):
        raise UsageError(
            f"a {'partial' if isinstance(function, functools.partial) else 'lambda'} has no name of its own, by which"
            " its checkpoint would be found again",
            hint='Give one: Callback(function, name="mail")',
        )
    return f"{getattr(function, '__module__', None) or type(function).__module__}.{name}"


def _parameters(function: Callable[..., object]) -> set[str]:
    try:
        return set(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # a builtin without a signature takes the change alone
        return set()
