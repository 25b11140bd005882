"""Times and durations: what the API accepts, and the integers that the log stores.

The log stores times as microseconds since 1970-01-01T00:00Z (int64) and durations as microseconds.
"""

from __future__ import annotations

import re
import time as _time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import overload

from .errors import InvalidTime

Moment = datetime | str
"""A point in time: a timezone-aware datetime, or an ISO 8601 string with an offset or ``Z``."""

Duration = timedelta | str
"""A length of time: a timedelta, or a string such as ``"5m"``, ``"1h30m"`` or ``"250ms"``."""

Clock = Callable[[], datetime]
"""Anything that returns the present as a timezone-aware datetime."""

HOUR = 3_600_000_000
"""An hour in microseconds."""

DAY = 24 * HOUR
"""A day in microseconds."""

# The boot-time clock goes on while the machine sleeps; the monotonic one would call waking up a jump.
_STEADY = getattr(_time, "CLOCK_BOOTTIME", _time.CLOCK_MONOTONIC)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_FIRST, _LAST = ((end.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND for end in (datetime.min, datetime.max))
_UNITS = {
    "us": 1,
    "ms": 1_000,
    "s": 1_000_000,
    "m": 60_000_000,
    "h": 3_600_000_000,
    "d": 86_400_000_000,
    "w": 604_800_000_000,
}
_PART = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s|m|h|d|w)")


def now_micros() -> int:
    """The machine's wall clock in microseconds since 1970."""
    return _time.time_ns() // 1_000


def steady_micros() -> int:
    """A clock that only goes forward, also while the machine sleeps, in microseconds since some moment."""
    return _time.clock_gettime_ns(_STEADY) // 1_000


def clock_micros(clock: Clock) -> int:
    """What a log's own clock says, in microseconds since 1970.

    Raises:
        InvalidTime: It gives no time; says that it is the clock's fault.
    """
    try:
        return to_micros(clock())
    except InvalidTime as error:
        raise InvalidTime(f"the log's clock: {error.message}", hint=error.hint) from error


def to_micros(moment: Moment) -> int:
    """Microseconds since 1970 of a moment.

    Raises:
        InvalidTime: The string is not ISO 8601, or the time has no offset from UTC, or it has no date in UTC.
    """
    if isinstance(moment, str):
        try:
            parsed = datetime.fromisoformat(moment)
        except ValueError as error:
            raise InvalidTime(f"{moment!r:.60} is not a time", hint="Write it as 2024-01-15T12:00:00Z") from error
    elif isinstance(moment, datetime):
        parsed = moment
    else:
        raise InvalidTime(f"{moment!r:.60} is not a time", hint="Give a timezone-aware datetime or an ISO 8601 string")
    if parsed.tzinfo is None:
        raise InvalidTime(f"{parsed.isoformat()} has no time zone", hint="Add one: 2024-01-15T12:00:00Z or tzinfo=UTC")
    micros = (parsed - _EPOCH) // _MICROSECOND
    if not _FIRST <= micros <= _LAST:
        raise InvalidTime(f"{parsed.isoformat()} is not within the years 1 to 9999 in UTC", hint="Give a time that is")
    return micros


def from_micros(micros: int) -> datetime:
    """The moment (UTC) that so many microseconds since 1970 stand for."""
    return _EPOCH + timedelta(microseconds=micros)


def duration_micros(duration: Duration) -> int:
    """Microseconds of a duration.

    Raises:
        InvalidTime: It is not a timedelta or a string such as ``"1h30m"``, or it is negative.
    """
    if isinstance(duration, timedelta):
        micros = duration // _MICROSECOND
    elif isinstance(duration, str):
        parts = _PART.findall(duration)
        if not parts or "".join(n + unit for n, unit in parts) != duration.replace(" ", ""):
            raise InvalidTime(f"{duration!r:.60} is not a duration", hint="Write it as 5m, 1h30m, 250ms, 2s or 7d")
        try:
            micros = round(sum(float(n) * _UNITS[unit] for n, unit in parts))
        except OverflowError as error:
            raise InvalidTime(f"{duration!r:.60} is no length of time", hint="Write it as 5m, 1h30m or 7d") from error
    else:
        raise InvalidTime(f"{duration!r:.60} is not a duration", hint="Give a timedelta or a string like '5m'")
    if micros < 0:
        raise InvalidTime(f"{duration!r} is negative", hint="Durations are zero or more")
    return micros


def span_micros(said: str, duration: Duration) -> int:
    """Microseconds of a duration that is added to times and taken from them.

    Args:
        said: What gives it, for the error.
        duration: The duration.

    Raises:
        InvalidTime: It is no duration, or so long that sums with it would be beyond all times.
    """
    micros = duration_micros(duration)
    if micros > LONGEST:
        raise InvalidTime(f"{said} is longer than all times: {duration!r:.60}", hint="Give a duration such as '365d'")
    return micros


LONGEST = 1 << 60
"""The longest duration that times are told apart by, in microseconds: 36,000 years."""


@overload
def seconds(limit: Duration | float) -> float: ...
@overload
def seconds(limit: Duration | float | None) -> float | None: ...


def seconds(limit: Duration | float | None) -> float | None:
    """A length of time in seconds, as a number or a duration; None stays None.

    Raises:
        InvalidTime: It is text that is no duration.
    """
    if limit is None or isinstance(limit, int | float):
        return limit
    return duration_micros(limit) / 1e6


def iso(micros: int) -> str:
    """A stored time as ISO 8601 in UTC, with ``Z``: whole seconds where they suffice."""
    return from_micros(micros).isoformat().replace("+00:00", "Z")
