"""What the log has to say after the play. All of it is computed from the log; the file of flights is only compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import date, datetime, timedelta
from typing import Any

import msgspec
import polars as pl

import millstream as ms

from ..cdc import Change
from .domain import Aircraft, FlightDeparted, stream_of
from .flights import Timetable, at_local, local

WINDOW = timedelta(minutes=5)

_ASKED = [("N14228", date(2013, 1, 15)), ("N14228", date(2013, 1, 9)), ("N13908", date(2013, 1, 15))]
_ENOUGH = 3


class Sighting(msgspec.Struct, frozen=True):
    """Where an aircraft was at a moment, and how late it had run that day.

    Attributes:
        aircraft: Its tail number.
        at: The moment.
        last: Its last departure before; None if there was none.
        landed: When that flight landed; None if it had not.
        today: Its departures since the day began (in New York).
    """

    aircraft: str
    at: datetime
    last: FlightDeparted | None
    landed: datetime | None
    today: tuple[FlightDeparted, ...]


def sighting(log: ms.Log, aircraft: str, at: datetime) -> Sighting:
    """Ask the log where an aircraft was: its events up to then make it what it was then."""
    state = ms.Repository(log, Aircraft).get(stream_of(aircraft), at=at)
    begin = at_local(local(at).date(), 0)
    return Sighting(
        aircraft,
        at,
        state.departures[-1] if state.departures else None,
        state.landed.landed if state.landed is not None else None,
        tuple(d for d in state.departures if d.departed >= begin),
    )


def sightings(log: ms.Log, days: Sequence[date]) -> list[Sighting]:
    """The questions that are asked of this log: those of January 2013 if it covers them, else the busiest aircraft."""
    if not log.head:
        return []
    now = next(log.read(backwards=True, limit=1)).time
    asked = [(aircraft, at_local(day, 12)) for aircraft, day in _ASKED]
    found = [(a, at) for a, at in asked if at_local(days[0], 0) <= at <= now and log.version(stream_of(a))]
    if not found:
        noons = [noon for day in days if (noon := at_local(day, 12)) <= now]
        found = [(a, noons[-1]) for a in _busiest(log, noons[-1])] if noons else []
    return [sighting(log, aircraft, at) for aircraft, at in found[:_ENOUGH]]


def _busiest(log: ms.Log, noon: datetime) -> list[str]:
    """The aircraft that left New York most often on a day, up to noon."""
    if not log.version("departures"):
        return []
    return (
        log.scan("departures", since=noon - timedelta(hours=12), until=noon, by="departed")
        .filter(pl.col("aircraft") != "unassigned")
        .group_by("aircraft")
        .agg(pl.len(), pl.col("delay").max())
        .sort("len", "delay", "aircraft", descending=[True, True, False])
        .head(_ENOUGH)
        .collect()["aircraft"]
        .to_list()
    )


class Changes(msgspec.Struct, frozen=True):
    """What was captured of the operations database.

    Attributes:
        counts: How many changes by operation.
        examples: One change of each operation.
    """

    counts: dict[str, int]
    examples: list[Change]


def changes(log: ms.Log) -> Changes:
    """The captured changes: how many there are, and one of each kind."""
    if not log.version("flights"):
        return Changes({}, [])
    counted: Counter[str] = Counter()
    examples: dict[str, Change] = {}
    for run in log.runs("flights", types=Change):
        for change in run.events(Change):
            counted[change.operation] += 1
            if change.operation not in examples and (change.operation != "UPDATE" or change.after["delay"] > 0):
                examples[change.operation] = change
    order = ["INSERT", "UPDATE", "DELETE"]
    return Changes({name: counted[name] for name in order}, [examples[n] for n in order if n in examples])


class Windows(msgspec.Struct, frozen=True):
    """What the flows have found.

    Attributes:
        count: How many windows have closed.
        departures: How many departures they hold.
        open: How many departures are in windows that are still open.
        top: The windows with the most departures.
        alerts: All alerts.
        disorder: How far a departure came behind a later one, in the log and in the file.
        late: How many departures came too late for their window.
        agrees: Whether Polars counts the same from the file, window by window.
    """

    count: int
    departures: int
    open: int
    top: list[dict[str, Any]]
    alerts: list[dict[str, Any]]
    disorder: tuple[timedelta, timedelta]
    late: int
    agrees: bool


def windows(log: ms.Log, timetable: Timetable) -> Windows | None:
    """What the flows have found, beside what Polars finds in the file; None before anything has left."""
    if not log.version("departures") or not log.version("windows"):
        return None
    closed = log.scan("windows").collect()
    seen = log.scan("departures").select("departed").collect()["departed"]
    high = seen.max()
    assert isinstance(high, datetime)
    watermark = high - timedelta(microseconds=timetable.every)
    known = _last_poll(log)
    counted = in_windows(timetable.frame.filter(pl.col("departed") <= known), watermark)
    return Windows(
        closed.height,
        int(closed["departures"].sum()),
        seen.len() - int(closed["departures"].sum()),
        closed.sort("departures", "window_start", "origin", descending=[True, False, False]).head(3).to_dicts(),
        log.scan("alerts").collect().to_dicts() if log.version("alerts") else [],
        (disorder(seen), disorder(timetable.frame["departed"].drop_nulls())),
        int((seen < seen.cum_max().shift(1) - timedelta(microseconds=timetable.every)).sum()),
        closed.select(counted.columns).sort("origin", "window_start").equals(counted),
    )


def in_windows(frame: pl.DataFrame, until: datetime) -> pl.DataFrame:
    """The departures of each airport in each five minutes that have ended by a moment, counted by Polars alone."""
    return (
        frame.group_by("origin", pl.col("departed").dt.truncate("5m").alias("window_start"))
        .agg(pl.len().cast(pl.Int64).alias("departures"))
        .filter(pl.col("window_start") + WINDOW <= until)
        .sort("origin", "window_start")
    )


def disorder(times: pl.Series) -> timedelta:
    """The most by which a time is behind one before it."""
    most = (times.cum_max() - times).max()
    return most if isinstance(most, timedelta) else timedelta()


def _last_poll(log: ms.Log) -> datetime:
    """When the feed was polled last, as far as it brought departures."""
    return next(log.read("departures", backwards=True, limit=1)).time
