"""How a place in the log is written, and where a plain number would mean something else.

A *place* lies between two events, and says where reading begins or ends:

| written | the place |
|---|---|
| ``120`` | just before the event at position 120 (the first event has 1) |
| ``@2013-01-15T12:00Z`` | just before the first event recorded at or after that time; it needs ``Z`` or an offset |
| ``@-1h`` | the same, for the time so long ago: ``@-90s``, ``@-1h30m``, ``@-7d`` |
| ``end`` | just after the last event that the log holds now |

A *range* is two places with a colon between them, either of which may be left out: ``120:200`` is positions 120 to
199, ``120:`` all from 120 on, ``:200`` all before 200. A range never holds what stands at its second place. A place
alone is a range that begins there: ``120`` means ``120:``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from ..errors import InvalidPosition, InvalidTime
from ..storage.base import Receipt
from ..time import Moment, duration_micros, from_micros, iso, to_micros

if TYPE_CHECKING:
    from .log import Log

_NUMBER = re.compile(r"0|[1-9][0-9]{0,17}")
_HINT = "Write 120:200, 120:, :200, @2013-01-15T12:00Z, @-1h: or end"


def is_range(text: str) -> bool:
    """Whether a text is written like a place, or a range of places."""
    try:
        parse_range(text)
    except (InvalidPosition, InvalidTime):
        return False
    return True


class Position(int):
    """A position of the log, for arguments in which a plain int is a version: ``at=ms.Position(120)``."""

    def __repr__(self) -> str:
        return f"Position({int(self)})"


At = Moment | Position | Receipt
"""A point in the past of the log, inclusive: a time, a position, or what a receipt stands for."""


class Place(msgspec.Struct, frozen=True):
    """A place between two events of a log; at most one of its fields is set, and the end is meant when none is.

    Attributes:
        position: Just before the event at this position.
        time: Just before the first event recorded at or after this time (microseconds since 1970).
        ago: The same, so many microseconds before now.
    """

    position: int | None = None
    time: int | None = None
    ago: int | None = None

    def resolve(self, log: Log) -> int:
        """The position of the first event after this place, as the log is now; one past the head when there is none.

        A position is itself, even beyond the head.
        """
        if self.position is not None:
            return self.position
        if self.time is not None:
            return log.position_at(from_micros(self.time)) + 1
        if self.ago is not None:
            try:
                moment = from_micros(log.store.now() - self.ago)
            except OverflowError:
                return 1
            return log.position_at(moment) + 1
        return log.head + 1

    def __str__(self) -> str:
        if self.position is not None:
            return str(self.position)
        if self.time is not None:
            return f"@{iso(self.time)}"
        return "end" if self.ago is None else f"@-{self.ago}us"


END = Place()
"""Just after the last event."""


class Range(msgspec.Struct, frozen=True):
    """All events from one place up to another, without what stands at the second.

    Attributes:
        start: Where it begins; None at the first event.
        stop: Where it ends; None: it does not.
    """

    start: Place | None = None
    stop: Place | None = None

    def resolve(self, log: Log) -> tuple[int | None, int | None]:
        """``since_position`` and ``until_position``, as `Log.read` takes them, for the log as it is now."""
        return (
            None if self.start is None else self.start.resolve(log),
            None if self.stop is None else self.stop.resolve(log),
        )

    def __str__(self) -> str:
        return f"{'' if self.start is None else self.start}:{'' if self.stop is None else self.stop}"


def parse_place(text: str) -> Place:
    """The place that a text such as ``120``, ``@2013-01-15T12:00Z``, ``@-1h`` or ``end`` stands for.

    Raises:
        InvalidPosition: It stands for none.
        InvalidTime: It looks like a time and is none, or has no offset from UTC.

    Example:
        >>> parse_place("@1970-01-01T00:00:01Z").time
        1000000
    """
    found = _place(text)
    if found is None:
        raise InvalidPosition(f"{text!r:.80} is not a position", hint="Write 120, @2013-01-15T12:00Z, @-1h or end")
    return found


def parse_range(text: str) -> Range:
    """The range that a text such as ``120:200`` or ``@-2h:@-1h`` stands for.

    Raises:
        InvalidPosition: It stands for none, or ends before it begins.
        InvalidTime: It holds what looks like a time and is none, or has no offset from UTC.

    Example:
        >>> str(parse_range("@2013-01-15T12:00Z:end"))
        '@2013-01-15T12:00:00Z:end'
    """
    found = _range(text)
    start, stop = found.start, found.stop
    if start is not None and stop is not None:
        for one, other in ((start.position, stop.position), (start.time, stop.time), (stop.ago, start.ago)):
            if one is not None and other is not None and one > other:
                raise InvalidPosition(f"{text!r:.80} ends before it begins", hint="Write the earlier place first")
    return found


def _range(text: str) -> Range:
    # Times hold colons too: the one that counts has a place, or nothing, on either side. A whole place comes first,
    # so that the offset of a time is never taken for a position.
    failure: InvalidTime | None = None
    try:
        whole = _place(text)
        if whole is not None:
            return Range(start=whole)
    except InvalidTime as error:
        failure = error
    for at in reversed([index for index, letter in enumerate(text) if letter == ":"]):
        left, right = text[:at], text[at + 1 :]
        try:
            start = _place(left) if left else None
            stop = _place(right) if right else None
        except InvalidTime as error:
            # A time cut in two is not what is wrong: only at a place's beginning, or at the end, is the cut certain.
            if not left or not right or right[0] in "@e":
                failure = error
            continue
        if (start or not left) and (stop or not right):
            return Range(start, stop)
    if failure is not None:
        raise failure
    raise InvalidPosition(f"{text!r:.80} is not a range of positions", hint=_HINT)


def _place(text: str) -> Place | None:
    if text == "end":
        return END
    if _NUMBER.fullmatch(text):
        return Place(position=int(text))
    if text.startswith("@-"):
        return Place(ago=duration_micros(text[2:]))
    if text.startswith("@"):
        return Place(time=to_micros(text[1:]))
    return None
