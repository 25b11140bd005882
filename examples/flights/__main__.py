"""The story of the flights: ``python -m flights [FILE] [--log LOG] [--picture SVG]``.

Without a file it is January 2013, which is part of the package.
"""

from __future__ import annotations

import argparse
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl

import millstream as ms
from millstream.demo.flights import Timetable, local, read_flights

from .feed import play, timetable
from .flows import ALL, late_aircraft, never_left, per_hour, rolling
from .picture import draw


def main() -> None:
    parser = argparse.ArgumentParser(prog="flights", description=__doc__)
    parser.add_argument("file", nargs="?", help="a Parquet file of flights, such as those of the whole year")
    parser.add_argument("--log", help="keep the log in this file")
    parser.add_argument("--picture", type=Path, help="draw what was found into this file")
    asked = parser.parse_args()
    if asked.picture is not None and not asked.picture.absolute().parent.is_dir():
        parser.error(f"there is no folder {asked.picture.parent}")
    try:
        flights, log = timetable(asked.file), ms.open(asked.log)
    except ms.MillstreamError as error:
        parser.error(str(error))
    with log:
        play(log, flights)
        ms.run(log, *ALL, until="head")
        tell(log, flights)
        if asked.picture is not None:
            title = f"Flights from New York, {Timetable(read_flights(asked.file)).title}"
            asked.picture.write_text(picture(log, title), encoding="utf-8")


def tell(log: ms.Log, flights: pl.DataFrame) -> None:
    """Print what the flows have found, what a referee says of it, and why one alert was raised."""
    hours, delays, late, gone = (rows(log, flow) for flow in ALL)
    print(f"flights    {flights.height} planned, {hours['departures'].sum()} left, {gone.height} never did")
    for row in most(hours, "departures", "origin"):
        print(f"busiest    {row['origin']} {shown(row['window_start'])}: {row['departures']} left, {row['late']} late")
    for row in most(delays.filter(pl.col("flights") >= 10), "mean", "carrier"):
        when = shown(row["window_end"])
        print(f"delay      {row['carrier']} {when}: {row['mean']:.0f} minutes in the mean of {row['flights']} flights")
    longest = most(late, "events", "tailnum")
    for row in longest:
        print(f"aircraft   {row['tailnum']} late {row['events']} times in a row, by up to {row['worst']} minutes")
    for row in most(gone.group_by("carrier").len("flights"), "flights", "carrier"):
        print(f"never left {row['flights']} of {row['carrier']}")
    for flow in (per_hour, rolling):
        assert flow.sink is not None
        found = flow.check(log)
        print(f"checked    {flow.sink.stream}: {'equal' if found.equal else 'different'}, {found.expected} rows by SQL")
    legs = late_aircraft.explain(log, longest[0]).inputs["departures"]
    for id, delay in legs.select("id", "delay").rows():
        print(f"why        {id}, {delay} minutes late")


def rows(log: ms.Log, flow: ms.Flow) -> pl.DataFrame:
    """What a flow has written."""
    assert flow.sink is not None
    return log.scan(flow.sink.stream).collect()


def most(found: pl.DataFrame, by: str, per: str) -> list[dict[str, Any]]:
    """The three with the most, each of another kind."""
    placed = found.sort([by, per], descending=[True, False], maintain_order=True)
    return placed.unique(per, keep="first", maintain_order=True).head(3).rows(named=True)


def picture(log: ms.Log, title: str) -> str:
    """What the flows have found, drawn."""
    return draw(rows(log, per_hour), rows(log, rolling), rows(log, never_left), title)


def shown(moment: datetime) -> str:
    """A moment as New York's clocks show it."""
    return f"{local(moment):%d %b %H:%M}"


if __name__ == "__main__":
    main()
