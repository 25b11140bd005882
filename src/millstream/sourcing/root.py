"""What aggregates of either style have in common: an id, a version, and events that are recorded."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from ..errors import InvalidEvent
from ..events import Draft, Event, Plain
from ..time import Moment
from .errors import CannotRecord

_UNCHANGING = frozenset({int, float, bool, str, bytes, Decimal, datetime, date, timedelta, UUID, type(None)})

Seal = tuple[str, str]
"""Why nothing can be recorded, and what to do instead."""

APPLYING: Seal = ("is being changed by a handler", "Record in methods; handlers only change the state")
REPLAY: Seal = ("is being rebuilt", "Record in methods; handlers only change the state")
PRESENT: Seal = ("was loaded to be read", "Change it in repository.update(id, …) or with repository.edit(id)")
PAST: Seal = ("is of the past", "Change the present one in repository.update(id, …)")
SAVED: Seal = ("was saved", "Change it again in repository.update(id, …) or with repository.edit(id)")


class Root:
    """An id, a version, and what was recorded and is not in the log yet.

    Attributes:
        id: The name of its stream.
        version: How many events have made it what it is.
    """

    # What is ours lives in slots, so that an aggregate's __dict__ is its state and nothing else.
    __slots__ = ("_pending", "_position", "_sealed", "id", "version")

    id: str
    version: int
    _pending: list[Event | Plain | Draft]
    _position: int
    _sealed: Seal | None

    def _begin(self, id: str) -> None:
        self.id = id
        self.version = 0
        self._pending = []
        self._position = 0
        self._sealed = None

    @property
    def pending(self) -> tuple[Event | Plain | Draft, ...]:
        """What was recorded and is not in the log yet, in order."""
        return tuple(self._pending)

    def record(
        self,
        event: Event | Plain,
        *,
        tags: Iterable[str] = (),
        metadata: Mapping[str, Any] | None = None,
        effective: Moment | None = None,
    ) -> None:
        """Say that something has happened: its handler changes the state, and it will be appended.

        Args:
            event: What happened.
            tags: Labels to find the event by.
            metadata: JSON-like data that describes the event.
            effective: When it was true in the world, if that is not when it is recorded.

        Raises:
            CannotRecord: The aggregate is of the past or only to be read, or a handler is running.
            HandlerMissing: No handler takes the event.
            InvalidEvent: It is no event.
        """
        if not isinstance(event, Event | Plain):
            raise InvalidEvent(
                f"what {self._kind} records, {event!r:.60}, is not an event",
                hint="Give an Event or a Plain; tags=, metadata= and effective= go beside it",
            )
        if self._sealed is not None:
            reason, hint = self._sealed
            raise CannotRecord(self._kind, self.id, reason, hint=hint)
        self._sealed = APPLYING
        try:
            self._apply(event)
        finally:
            self._sealed = None
        self.version += 1
        extra = tags or metadata is not None or effective is not None
        self._pending.append(Draft(event, tags=tuple(tags), metadata=metadata, effective=effective) if extra else event)

    @property
    def _kind(self) -> str:
        """What it is called in errors."""
        return type(self).__name__

    def _apply(self, event: Event | Plain) -> None:
        raise NotImplementedError


def copied(state: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes by name, with values that can change copied."""
    return {name: value if type(value) in _UNCHANGING else copy.deepcopy(value) for name, value in state.items()}
