"""The stream processing of the demo: departures by airport and five minutes, and alerts of many late ones."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import polars as pl

import millstream as ms

from .flights import Flight

LATE = 30
"""Minutes from which on a departure counts as late."""

MANY = 10
"""How many late departures of an airport within an hour raise an alert."""

_TIME = pl.Datetime("us", "UTC")
_SCHEMA = {
    "flight": pl.String(),
    "aircraft": pl.String(),
    "origin": pl.String(),
    "dest": pl.String(),
    "scheduled": _TIME,
    "departed": _TIME,
    "delay": pl.Int32(),
}


def departures_frame(flights: Sequence[Flight]) -> pl.DataFrame:
    """Departures as the rows of the stream ``departures``."""
    rows = [(f.id, f.aircraft, f.origin, f.dest, f.scheduled, f.departed, f.delay) for f in flights]
    return pl.DataFrame(rows, schema=_SCHEMA, orient="row")


def departures(every: int) -> ms.Flow:
    """The stream of departures, by the time at which they happened.

    Args:
        every: The microseconds between two polls of the feed: by so much may a row be behind others.
    """
    return ms.stream("departures", time="departed", lateness=timedelta(microseconds=every))


def per_airport(every: int) -> ms.Flow:
    """Departures of each airport in each five minutes of event time."""
    return (
        departures(every)
        .group_by("origin")
        .window(ms.tumbling("5m"))
        .agg(departures=pl.len())
        .to("windows", type="DeparturesIn5Minutes")
    )


def alerts(every: int) -> ms.Flow:
    """An alert when many of an airport's departures within an hour are late; once per burst."""
    return (
        departures(every)
        .filter(pl.col("delay") >= LATE)
        .group_by("origin")
        .window(ms.sliding("1h"))
        .agg(late=pl.len(), mean_delay=pl.col("delay").cast(pl.Int64).mean())
        .alert(pl.col("late") >= MANY, cooldown="2h")
        .select("origin", "window_start", "window_end", "late", "mean_delay")
        .to("alerts", type="ManyLateDepartures")
    )


__all__ = ["LATE", "MANY", "alerts", "departures", "departures_frame", "per_airport"]
