"""What is asked of the streams: four flows."""

from __future__ import annotations

import polars as pl

import millstream as ms

from .feed import POLL

ZONE = "America/New_York"

LATE = 30
"""Minutes from which on a departure is late."""

calls = ms.stream("calls", time="called", lateness=POLL, types=["FlightCalled", "Next"])
departures = ms.stream("departures", time="departed", lateness=POLL)

per_hour = (
    departures.group_by("origin")
    .window(ms.calendar("1h", time_zone=ZONE))
    .agg(departures=pl.len(), late=(pl.col("delay") >= LATE).sum())
    .to("per-hour", type="DeparturesInHour")
)
"""Departures of each airport in each hour of New York's clocks."""

rolling = (
    departures.group_by("carrier")
    .window(ms.sliding("6h"))
    .agg(flights=pl.len(), mean=pl.col("delay").cast(pl.Int64).mean())
    .select("carrier", "window_end", "flights", "mean")
    .to("rolling", type="RollingDelay")
)
"""At each departure, the mean delay of its carrier's departures of the last six hours."""

late_aircraft = (
    departures.filter(pl.col("tailnum").is_not_null())
    .group_by("tailnum")
    .match(
        "late{3,}",
        within="30d",
        define={"late": pl.col("delay") >= LATE},
        measures={"first": ms.matched.first("late.id"), "worst": ms.matched.max("late.delay")},
    )
    .to("late-aircraft", type="LateThreeTimes")
)
"""Aircraft that left late three times or more in a row."""

never_left = (
    calls.select("id", "carrier", "origin", "scheduled", what=pl.lit("called"))
    .merge(departures.select("id", "carrier", what=pl.lit("left")))
    .group_by("id", "carrier")
    .match(
        "called !left",
        within="26h",
        contiguity="relaxed",
        define={"called": pl.col("what") == "called", "left": pl.col("what") == "left"},
        measures={"scheduled": ms.matched.first("called.scheduled")},
    )
    .select("id", "carrier", "scheduled")
    .to("never-left", type="NeverLeft")
)
"""Flights that were called and had not left a day after their schedule: what did not happen is told by time alone."""

ALL = (per_hour, rolling, late_aircraft, never_left)
