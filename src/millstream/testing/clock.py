"""A clock that stands still until it is told to move."""

from __future__ import annotations

from datetime import datetime

from ..time import Duration, Moment, duration_micros, from_micros, to_micros


class FakeClock:
    """A clock for ``millstream.open(clock=…)`` that moves only when told.

    Example:
        >>> clock = FakeClock("2024-01-15T10:00:00Z")
        >>> clock.advance("90m")
        >>> clock().isoformat()
        '2024-01-15T11:30:00+00:00'
    """

    def __init__(self, start: Moment = "2024-01-01T00:00:00Z") -> None:
        self._micros = to_micros(start)

    def __call__(self) -> datetime:
        return from_micros(self._micros)

    def advance(self, duration: Duration) -> None:
        """Move forward."""
        self._micros += duration_micros(duration)

    def set(self, moment: Moment) -> None:
        """Move to a moment, forward or back."""
        self._micros = to_micros(moment)
