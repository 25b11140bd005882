"""The flights as two streams of a log: what was planned, and what left, as a feed would have told it."""

from __future__ import annotations

import polars as pl

import millstream as ms
from millstream.demo.flights import Timetable, read_flights

POLL = "1h"
"""How often the feed is asked. What left since comes in the order of the schedule, so out of order by at most this."""

AHEAD = pl.duration(hours=2)
"""A flight is called so long before its schedule: before the earliest that any has left."""


def timetable(path: str | None) -> pl.DataFrame:
    """The flights of a file, by default those of January 2013; each with an id of its own."""
    flights = Timetable(read_flights(path))
    ids = pl.Series("id", [flight.id for flight in flights.flights])
    return flights.frame.with_columns(ids, called=pl.col("scheduled") - AHEAD)


def play(log: ms.Log, flights: pl.DataFrame) -> None:
    """Append what the feed tells, hour by hour, until each flight has had a day to leave."""
    called = flights.select("id", "carrier", "origin", "dest", "called", "scheduled")
    left = flights.filter(pl.col("departed").is_not_null()).select(
        "id", "carrier", "origin", "dest", "departed", "scheduled", "tailnum", delay=pl.col("dep_delay")
    )
    told = {
        "calls": called.with_columns(poll=pl.col("called").dt.truncate(POLL)).sort("poll", "called"),
        "departures": left.with_columns(poll=pl.col("departed").dt.truncate(POLL)).sort("poll", "scheduled", "id"),
    }
    polls = [
        (poll, stream, rows.drop("poll"))
        for stream, frame in told.items()
        for (poll,), rows in frame.group_by("poll", maintain_order=True)
    ]
    for _, stream, rows in sorted(polls, key=lambda poll: (poll[0], poll[1])):
        log.append(stream, rows, type="FlightCalled" if stream == "calls" else "FlightDeparted")
    # The feed goes on: two days later the next flight is called, and leaves.
    end = flights.select(pl.max_horizontal(pl.col("departed").max(), pl.col("scheduled").max())).item()
    for stream, frame in told.items():
        time = "called" if stream == "calls" else "departed"
        later = (
            frame.tail(1)
            .drop("poll")
            .with_columns(pl.lit(end).dt.offset_by("2d").alias(time), id=pl.lit("the next"), tailnum=pl.lit("the next"))
        )
        log.append(stream, later.select(frame.drop("poll").columns), type="Next")
