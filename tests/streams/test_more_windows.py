from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from referee import START, agree, clicks, play

import millstream as ms
from millstream.errors import UsageError
from millstream.streams import CannotCheck, Flow, calendar, count, session, stream, tumbling

source = stream("clicks", time="ts", lateness="2s")

AGGREGATES = {
    "n": pl.len(),
    "total": pl.col("amount").sum(),
    "kinds": pl.col("kind").n_unique(),
    "middle": pl.col("amount").median(),
    "spread": pl.col("amount").var(),
}
SQL = """count(*) as n, sum(amount)::bigint as total, count(distinct kind)::bigint as kinds,
         median(amount) as middle, var_samp(amount) as spread"""


SESSIONS = f"""
    with marked as (
        select *, ts - lag(ts) over (partition by user order by ts) >= interval '{{gap}} seconds' as begins from rows
    ), numbered as (
        select *, sum(coalesce(begins, true)::int) over (partition by user order by ts) as session from marked
    )
    select user, min(ts) as window_start, max(ts) + interval '{{gap}} seconds' as window_end, {SQL}
    from numbered group by user, session
"""


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.sampled_from([1, 3, 10, 45, 300]))
def test_sessions_hold_what_sql_says_in_batches_of_any_size(seed: int, gap: int) -> None:
    rows = clicks(seed, 300, minutes=20).filter(pl.int_range(pl.len()) % 40 < 30)
    flow = source.group_by("user").window(session(f"{gap}s")).agg(**AGGREGATES)
    result = play(flow, rows, seed)
    spread = result.with_columns(pl.col("spread").round(6))
    query = SESSIONS.format(gap=gap)
    agree(spread, f"select * replace (round(spread, 6) as spread) from ({query})", rows=rows)
    assert_frame_equal(result, play(flow, rows), rel_tol=1e-12)
    assert result["window_end"].is_sorted()


def test_a_session_closes_a_gap_after_its_last_row_and_not_before() -> None:
    def given(*seconds: float) -> list[int]:
        rows = pl.DataFrame({"ts": [START + timedelta(seconds=s) for s in seconds]})
        result = play(stream("s", time="ts").window(session("10s")).agg(n=pl.len()), rows, 1, final=False)
        return result["n"].to_list() if result.width else []

    assert given(0, 9, 18.9) == []
    assert given(0, 9, 18.9, 28.8) == []
    assert given(0, 9, 18.9, 28.9) == [3]
    assert given(0, 10, 30) == [1, 1]


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.sampled_from([1, 2, 3, 7, 50]))
def test_count_windows_hold_what_sql_says_in_batches_of_any_size(seed: int, size: int) -> None:
    rows = clicks(seed, 300).with_row_index("place")
    flow = (
        source.group_by("user")
        .window(count(size))
        .agg(n=pl.len(), total=pl.col("amount").sum(), first=pl.col("place").first(), last=pl.col("place").last())
    )
    result = play(flow, rows, seed)
    query = f"""
        with numbered as (
            select *, (row_number() over (partition by user order by ts, place) - 1) // {size} as number from rows
        )
        select user, min(ts) as window_start, max(ts) as window_end, count(*) as n, sum(amount)::bigint as total,
               arg_min(place, (ts, place)) as first, arg_max(place, (ts, place)) as last
        from numbered group by user, number having count(*) = {size}
    """
    if result.width:
        agree(result, query, rows=rows)
    assert result.equals(play(flow, rows))


def test_count_windows_over_all_rows_need_no_key() -> None:
    rows = clicks(3, 95)
    flow = source.window(count(10)).agg(n=pl.len())
    for seed in (None, 1, 2, 3):
        assert play(flow, rows, seed)["n"].to_list() == [10] * 9


@pytest.mark.parametrize(("every", "unit"), [("1d", "day"), ("1h", "hour"), ("1w", "week"), ("1mo", "month")])
@pytest.mark.parametrize("zone", ["America/New_York", "Europe/Berlin", "Asia/Kolkata"])
def test_calendar_windows_hold_what_sql_says(every: str, unit: str, zone: str) -> None:
    spring = datetime(2024, 3, 9, tzinfo=UTC) - START
    rows = pl.concat([clicks(1, 300, minutes=3 * 1440).with_columns(pl.col("ts") + spring + timedelta(days=d))
                      for d in (0, 20, 237)])  # fmt: skip
    flow = source.group_by("user").window(calendar(every, time_zone=zone)).agg(n=pl.len(), k=pl.col("kind").n_unique())
    result = play(flow, rows, 1)
    query = f"""
        select user, date_trunc('{unit}', ts at time zone '{zone}') as local,
               local at time zone '{zone}' as window_start,
               (local + interval '1 {unit}') at time zone '{zone}' as window_end, count(*) as n,
               count(distinct kind)::bigint as k from rows group by 1, 2"""
    if every != "1h":  # SQL's local hour is two hours where the clocks go back.
        agree(result, query, rows=rows)
    assert result["n"].sum() == rows.height
    assert result.equals(play(flow, rows, 2))


def test_a_day_in_new_york_has_23_or_25_hours_where_the_clocks_change() -> None:
    hours = [datetime(2024, 3, 9, 5, tzinfo=UTC) + timedelta(hours=h) for h in range(24 * 3)]
    hours += [datetime(2024, 11, 2, 4, tzinfo=UTC) + timedelta(hours=h) for h in range(24 * 3)]
    day = stream("s", time="ts").window(calendar("1d", time_zone="America/New_York")).agg(n=pl.len())
    assert play(day, pl.DataFrame({"ts": hours}))["n"].to_list() == [24, 23, 24, 1, 24, 25, 23]


def test_an_aggregate_of_kept_rows_does_not_depend_on_the_batches() -> None:
    rows = clicks(5, 1_000)
    x = pl.col("amount") / 7
    flow = (
        source.group_by("user")
        .window(tumbling("10m"))
        .agg(p90=x.quantile(0.9, "linear"), top=x.top_k(3).sort(descending=True).implode(), wild=(x * x.shift(1)).sum())
    )
    whole = play(flow, rows)
    for seed in range(3):
        assert_frame_equal(play(flow, rows, seed), whole, rel_tol=1e-12)
    agree(
        whole.select("user", "window_start", pl.col("p90").round(9)),
        """select user, time_bucket(interval '10 minute', ts) as window_start,
           round(quantile_cont(amount / 7.0, 0.9), 9) as p90 from rows group by 1, 2""",
        rows=rows,
    )


@pytest.mark.parametrize("window", [session("2m"), count(20), calendar("1h", time_zone="UTC"), tumbling("5m")])
def test_a_type_that_widens_on_the_way_changes_nothing_that_was_held(window: ms.Flow) -> None:
    def flow() -> Flow:
        return (
            stream("s", time="ts")
            .group_by("k")
            .window(window)  # type: ignore[arg-type]
            .agg(
                most=pl.col("v").max(), kinds=pl.col("v").n_unique(), last=pl.col("v").last(), all=pl.col("v").implode()
            )
            .to("out", type="Out")
        )

    values: list[object] = [*range(15), 1.5, *range(15), "text", *range(40)]
    with ms.open() as whole, ms.open() as steps:
        for log in (whole, steps):
            for n, value in enumerate(values):
                at = (START + timedelta(seconds=100 * n)).isoformat()
                log.append("s", ms.Plain("Row", {"k": n % 2, "v": value, "ts": at}))
                if log is steps and n % 3 == 0:
                    ms.run(log, flow(), until="head")
            ms.run(log, flow(), until="head")
        found = [[(e.type, e.data) for e in log.read("out")] for log in (whole, steps)]
        assert found[0] == found[1]
        assert found[0]


def test_windows_that_make_no_sense_are_refused() -> None:
    for build in (lambda: session("0s"), lambda: count(0), lambda: calendar("1d", time_zone="Mars/Olympus"),
                  lambda: calendar("5m", time_zone="UTC")):  # fmt: skip
        with pytest.raises(UsageError):
            build()


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (lambda: tumbling("300000000d"), "longer than all times"),
        (lambda: ms.sliding("99999999999d"), "longer than all times"),
        (lambda: stream("s", lateness="300000000d"), "lateness= is longer than all times"),
        (lambda: stream("s", ahead=timedelta.max), "ahead= is longer than all times"),
        (lambda: stream("s").distinct("k", within=timedelta.max), "within= is longer than all times"),
        (lambda: stream("s").join(stream("t"), on="k", back="300000000d"), "back= is longer than all times"),
        (
            lambda: stream("s").window(tumbling("1m"), allowed_lateness=timedelta.max),
            "allowed_lateness= is longer than all times",
        ),
        (lambda: session("9" * 400 + "d"), "no length of time"),
        (lambda: ms.hopping("1s", every="1us"), "in 1,000,000 windows"),
    ],
)
def test_windows_that_no_time_or_no_memory_would_hold_are_refused(build: Any, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        build()


def test_calendar_windows_at_the_ends_of_the_years_are_given_and_their_check_says_why_it_cannot() -> None:
    ends = [datetime(1, 1, 1, tzinfo=UTC), START, datetime(9999, 12, 31, 23, 59, tzinfo=UTC)]
    for every in ("1h", "1d", "1y"):
        flow = stream("s", time="ts").window(calendar(every, time_zone="America/New_York")).agg(n=pl.len())
        with ms.open() as log:
            log.append("s", pl.DataFrame({"ts": ends}), type="CalendarEnds")
            assert flow.over(log)["n"].to_list() == [1, 1, 1]
            with pytest.raises(CannotCheck, match="years"):
                flow.check(log)
