"""Where the hours and days of time zones begin: by a definition in plain Python, a moment at a time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import pytest
from referee import play

import millstream as ms
from millstream.streams import stream
from millstream.streams.clocks import bounds

MINUTE = timedelta(minutes=1)

CHANGES = [
    ("America/New_York", datetime(2024, 3, 10, 7)),
    ("America/New_York", datetime(2024, 11, 3, 6)),
    # By half an hour.
    ("Australia/Lord_Howe", datetime(2024, 4, 6, 15)),
    ("Australia/Lord_Howe", datetime(2024, 10, 5, 15, 30)),
    # At midnight, which is left out, or comes twice.
    ("Africa/Cairo", datetime(2024, 4, 25, 22)),
    ("America/Sao_Paulo", datetime(2018, 11, 4, 3)),
    ("America/Havana", datetime(2024, 11, 3, 5)),
    # A minute after midnight, back into the day before.
    ("America/St_Johns", datetime(2006, 10, 29, 2, 31)),
    # Over a whole day, and over midnight from half an hour before it.
    ("Pacific/Apia", datetime(2011, 12, 30, 10)),
    ("America/Toronto", datetime(1919, 3, 31, 4, 30)),
    # Back by two hours, and for good by half an hour.
    ("Antarctica/Troll", datetime(2024, 10, 27, 1)),
    ("Asia/Pyongyang", datetime(2015, 8, 14, 15)),
    ("Asia/Kathmandu", datetime(2024, 1, 1)),
]


def minutes(change: datetime, every: str) -> list[datetime]:
    """Each minute for days around a change; for months, also each quarter of an hour for weeks around it."""
    near = [change + number * MINUTE for number in range(-3 * 1440, 3 * 1440)]
    if every != "1mo":
        return near
    # A change is at any minute, and a month begins with a quarter of an hour.
    whole = change.replace(minute=0)
    return sorted({*near, *(whole + number * 15 * MINUTE for number in range(-40 * 96, 40 * 96))})


def windows(zone: str, moments: list[datetime], every: str) -> dict[datetime, datetime]:
    """For each moment, when its window begins: each moment's clock is looked at, one after the other."""
    clock = ZoneInfo(zone)
    found: dict[datetime, datetime] = {}
    start = moments[0]
    before = furthest = datetime.min
    for moment in moments:
        shown = moment.replace(tzinfo=UTC).astimezone(clock).replace(tzinfo=None)
        stroke = shown.replace(minute=0)
        if every != "1h":
            stroke = stroke.replace(hour=0, **({"day": 1} if every == "1mo" else {}))
        # An hour is struck whenever the clock shows it, or has gone past it; a day when none was so late before.
        begins = (shown == stroke or stroke > before) if every == "1h" else stroke > furthest
        if begins:
            start = moment
        before, furthest = stroke, max(stroke, furthest)
        found[moment] = start
    return found


@pytest.mark.parametrize("every", ["1h", "1d", "1mo"])
@pytest.mark.parametrize(("zone", "change"), CHANGES)
def test_windows_begin_where_the_clocks_strike(zone: str, change: datetime, every: str) -> None:
    wanted = windows(zone, minutes(change, every), every)
    # The first may have begun before it was looked at.
    first = next(start for start in wanted.values() if start != next(iter(wanted)))
    moments = [moment for moment in wanted if moment >= first]
    at = pl.Series(moments).dt.replace_time_zone("UTC").dt.epoch("us")
    starts, ends = bounds(at, every, zone)
    assert pl.Series(starts).cast(pl.Datetime("us")).to_list() == [wanted[moment] for moment in moments]
    assert ((starts <= at.to_numpy()) & (at.to_numpy() < ends)).all()
    distinct = np.unique(starts)
    assert (distinct[1:] == np.unique(ends)[:-1]).all()
    # What is asked alone, in whatever order, is answered alike.
    some = at.sample(50, seed=1)
    together = zip(*map(np.ndarray.tolist, bounds(some, every, zone)), strict=True)
    alone = [bounds(some[place : place + 1], every, zone) for place in range(50)]
    assert [(int(a[0]), int(b[0])) for a, b in alone] == list(together)


@pytest.mark.parametrize("every", ["1h", "1d"])
@pytest.mark.parametrize(("zone", "change"), CHANGES)
def test_a_flow_counts_each_row_in_one_window_and_its_check_agrees(zone: str, change: datetime, every: str) -> None:
    rows = pl.DataFrame({"ts": [change + number * 7 * MINUTE for number in range(-300, 300)]})
    flow = stream("a", time="ts", lateness="1h").window(ms.calendar(every, time_zone=zone)).agg(n=pl.len())
    result = play(flow, rows, 3)
    assert result["n"].sum() == rows.height
    assert (result["window_end"][:-1] == result["window_start"][1:]).all()
    assert result.equals(play(flow, rows))
    with ms.open() as log:
        log.append("a", rows, type="ClockRow")
        checked = flow.check(log)
        assert checked.equal, checked


@pytest.mark.parametrize(
    ("zone", "begin"),
    [
        ("Antarctica/Troll", datetime(2024, 10, 26, 23)),
        ("Antarctica/Casey", datetime(2010, 3, 4, 12)),
        ("Pacific/Kwajalein", datetime(1969, 9, 30, 10)),
    ],
)
def test_where_clocks_go_back_by_hours_a_moment_has_its_window_whatever_stands_beside_it(
    zone: str, begin: datetime
) -> None:
    at = pl.Series([begin + number * 7 * MINUTE for number in range(90)]).dt.epoch("us")
    starts, ends = bounds(at, "1h", zone)
    for number, moment in enumerate(at):
        start, end = bounds(pl.Series([moment]), "1h", zone)
        assert (start[0], end[0]) == (starts[number], ends[number])


def test_years_that_no_calendar_has_are_refused_by_name() -> None:
    flow = stream("s", time="ts").window(ms.calendar("1d", time_zone="Europe/Rome")).agg(n=pl.len())
    far = pl.Series([0, 1_700_000_000_000_000_000], dtype=pl.Int64).cast(pl.Datetime("us"))
    assert flow.over(pl.DataFrame({"ts": far}))["n"].to_list() == [1, 1]
    with pytest.raises(ms.FlowError, match="years that calendar windows do not know"):
        bounds(pl.Series([0, 2**63 - 1]), "1d", "Europe/Rome")
