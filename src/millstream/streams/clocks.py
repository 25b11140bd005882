"""Where the hours, days and months of a time zone begin, as its clocks show them.

A day (week, month, quarter, year) begins the first time that the clocks show its midnight; where they leave that out,
the moment in which they jump over it. An hour begins each time that they strike it, or jump over the stroke: where they
go back by a whole hour, an hour of theirs is two windows; where they go back by half an hour, one lasts ninety minutes.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl

from ..time import HOUR
from .errors import FlowError
from .keys import Ints

_EPOCH = datetime(1970, 1, 1)
_MICROSECOND = timedelta(microseconds=1)
_FARTHEST = 8_200_000_000_000_000_000
"""About so far from 1970 Polars knows days: some 260,000 years."""


def bounds(at: pl.Series, every: str, zone: str) -> tuple[Ints, Ints]:
    """When the window of each of some moments begins, and when it ends.

    Args:
        at: The moments, integer microseconds.
        every: The length of a window, as Polars writes it.
        zone: The time zone.

    Raises:
        FlowError: One of them is in years that no calendar has.
    """
    if not len(at):
        nothing = np.zeros(0, np.int64)
        return nothing, nothing
    if not at.is_between(-_FARTHEST, _FARTHEST).all():
        raise _beyond()
    try:
        return _bounds(at, every, zone)
    except (OverflowError, ValueError) as error:  # of Python, whose years end with 9999
        raise _beyond() from error


def _beyond() -> FlowError:
    return FlowError(
        "a row's time is in years that calendar windows do not know",
        hint="Leave such rows out with ahead=, or with filter(...)",
    )


def _bounds(at: pl.Series, every: str, zone: str) -> tuple[Ints, Ints]:
    near = at
    if every == "1h":
        # Clocks that went back by hours strike others next than those that come after the last.
        near = pl.concat([at + hours * HOUR for hours in (-1, 0, 1, 2)])
    shown = pl.select(
        near.cast(pl.Datetime("us", "UTC")).dt.convert_time_zone(zone).dt.replace_time_zone(None)
    ).to_series()
    struck = shown.dt.truncate(every).unique()
    # A clock that went back may stand behind a stroke that has been; so the next one is that after the next.
    strokes = pl.concat([struck, later := struck.dt.offset_by(every), later.dt.offset_by(every)]).unique()
    found = _moments(strokes, zone, every == "1h")
    places = np.searchsorted(found, at.to_numpy(), side="right")
    return found[places - 1], found[places]


def _moments(strokes: pl.Series, zone: str, each: bool) -> Ints:
    """When the clocks of a zone show some times: for the first time, or each of the two times; ascending."""
    found: set[int] = set()
    for which in ("earliest", "latest") if each else ("earliest",):
        moments = strokes.dt.replace_time_zone(zone, ambiguous=which, non_existent="null").dt.epoch("us")
        found.update(moments.drop_nulls().to_list())
        found.update(_jumped(strokes.filter(moments.is_null()), zone))
    return np.array(sorted(found), np.int64)


def _jumped(strokes: Iterable[datetime], zone: str) -> list[int]:
    """The moments in which the clocks jump over times that they never show."""
    clock = ZoneInfo(zone)
    moments = []
    for stroke in strokes:
        # As the clocks would have it that go as they went after the jump, and before it.
        low, high = (_micros(stroke.replace(tzinfo=clock, fold=fold).astimezone(UTC)) for fold in (1, 0))
        while low < high:
            middle = (low + high) // 2
            shown = (_EPOCH.replace(tzinfo=UTC) + middle * _MICROSECOND).astimezone(clock).replace(tzinfo=None)
            low, high = (low, middle) if shown >= stroke else (middle + 1, high)
        moments.append(low)
    return moments


def _micros(moment: datetime) -> int:
    return (moment.replace(tzinfo=None) - _EPOCH) // _MICROSECOND
