"""What aggregates of either style have in common: an id, a version, and events that are recorded."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self, cast

import msgspec

from ..errors import InvalidEvent
from ..events import Draft, Event, Plain, decoder, encode, type_name
from ..log.staging import check_tags
from ..time import Moment
from .errors import CannotRecord
from .values import UNCHANGING

_EVENTS = (Event, Plain)

Seal = tuple[str, str]
"""Why nothing can be recorded, and what to do instead."""

APPLYING: Seal = ("is being changed by a handler", "Record in methods; handlers only change the state")
REPLAY: Seal = ("is being rebuilt", "Record in methods; handlers only change the state")
PRESENT: Seal = ("was loaded to be read", "Change it in repository.update(id, …) or with repository.edit(id)")
PAST: Seal = ("is of the past", "Change the present one in repository.update(id, …)")
BROKEN: Seal = ("is half changed, since a handler raised", "Let the error out, and change the aggregate anew")
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

    def _shell(self) -> Self:
        """Another one at the same version, with nothing pending, and still without a state."""
        other = type(self).__new__(type(self))
        other._begin(self.id)
        other.version, other._position = self.version, self._position
        return other

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
            InvalidEvent: It is no event, or does not fit its class.
        """
        if not isinstance(event, _EVENTS):
            raise InvalidEvent(
                f"{event!r:.80} is not an event", hint="Give an instance of a class derived from millstream.Event"
            )
        tags = check_tags(tags) if tags else ()
        if self._sealed is not None:
            raise self._refusal()
        apply, cls = self._taker(type_name(event))
        given = _as_class(event, cls)
        self._sealed = APPLYING
        try:
            apply(self, given)
        except Exception:
            self._sealed = BROKEN
            encode(event)  # an event that does not fit its class is why the handler raised
            raise
        self._sealed = None
        self.version += 1
        extra = tags or metadata is not None or effective is not None
        self._pending.append(Draft(event, tags=tags, metadata=metadata, effective=effective) if extra else event)

    def _refusal(self) -> CannotRecord:
        """Why nothing can be recorded."""
        assert self._sealed is not None
        reason, hint = self._sealed
        return CannotRecord(self._kind, self.id, reason, hint=hint)

    @property
    def _kind(self) -> str:
        """What it is called in errors."""
        return type(self).__name__

    def _taker(self, type: str) -> tuple[Callable[[Any, Any], object], type[Any]]:
        """What changes it by an event of a type, and the class that the event must be of.

        Raises:
            HandlerMissing: Nothing does.
        """
        raise NotImplementedError


def _as_class(event: Event | Plain, cls: Any) -> Event | Plain:
    """An event as its handler will get it when it is read: one without a class may have one there."""
    if not isinstance(event, Plain):
        return event
    if cls is Plain:  # what JSON has no word for is text when it is read
        return Plain(event.type, msgspec.json.decode(encode(event)), event.schema)
    try:
        return cast(Event, decoder(cls).decode(encode(event)))
    except msgspec.MsgspecError as error:
        raise InvalidEvent(f"{event!r:.80} does not fit {cls.__qualname__}: {error}") from error


def fresh(defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes as they begin, with values that can change copied: two that begin as one list have each its own."""
    return {name: value if type(value) in UNCHANGING else copy.deepcopy(value) for name, value in defaults.items()}


def copied(state: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes by name, with values that can change copied; what two of them share is shared by the copies too."""
    known: dict[int, Any] = {}
    return {name: value if type(value) in UNCHANGING else copy.deepcopy(value, known) for name, value in state.items()}
