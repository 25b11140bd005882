"""Joins of rows in the same window, and as of the nearest row."""

from __future__ import annotations

from typing import Literal

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from referee import agree
from test_joins import left, right, two
from trees import play_tree

import millstream as ms
from millstream.errors import UsageError
from millstream.streams import FlowError, hopping, session, tumbling
from millstream.streams.flow import Flow
from millstream.streams.joins import Strategy

How = Literal["inner", "left", "full", "semi", "anti"]

IN_WINDOWS = """
    with backs as (select unnest(range({hops})) as back),
    wa as (
        select a.*, to_timestamp((epoch(ts)::bigint // {every} - back) * {every}) as w
        from a, backs where w + to_seconds({size}) > ts
    ),
    wb as (
        select b.*, to_timestamp((epoch(ts)::bigint // {every} - back) * {every}) as w
        from b, backs where w + to_seconds({size}) > ts
    )
    {query}
"""
QUERIES = {
    "inner": "select wa.w, wa.n, wb.m from wa join wb on wa.user = wb.user and wa.w = wb.w",
    "left": "select wa.w, wa.n, wb.m from wa left join wb on wa.user = wb.user and wa.w = wb.w",
    "full": "select coalesce(wa.w, wb.w) as w, wa.n, wb.m from wa full join wb on wa.user = wb.user and wa.w = wb.w",
    "semi": "select w, n from wa semi join wb on wa.user = wb.user and wa.w = wb.w",
    "anti": "select w, n from wa anti join wb on wa.user = wb.user and wa.w = wb.w",
}


@settings(max_examples=15)
@given(
    st.integers(0, 10_000), st.sampled_from([(10, 10), (60, 60), (30, 10), (25, 10)]), st.sampled_from(list(QUERIES))
)
def test_rows_of_the_same_window_are_paired_as_in_sql(seed: int, window: tuple[int, int], how: How) -> None:
    rows = two(seed)
    size, every = window
    flow = left.join(right, on="user", window=hopping(f"{size}s", every=f"{every}s"), how=how, prefix="b_")
    result = play_tree(flow, rows, seed)
    found = result.rename({"b_m": "m", "window_start": "w"}, strict=False)
    names = ["w", "n"] if how in ("semi", "anti") else ["w", "n", "m"]
    query = IN_WINDOWS.format(hops=-(-size // every), every=every, size=size, query=QUERIES[how])
    agree(found.select(names), query, **rows)
    assert result.equals(play_tree(flow, rows))
    order = ["window_end", "user", "ts", "n", *(["b_ts", "b_m"] if "m" in names else [])]
    assert result.equals(result.sort(order, nulls_last=False))


def test_what_is_joined_in_a_window_goes_on_into_windows_and_is_forgotten() -> None:
    rows = two(5)
    paired = left.join(right, on="user", window=tumbling("1m"), prefix="b_")
    assert play_tree(paired, rows).columns == [
        "user", "window_start", "window_end", "kind", "ts", "n", "b_amount", "b_ts", "b_m"
    ]  # fmt: skip
    late = paired.filter(pl.col("window_end") > pl.col("ts"))
    flow = late.group_by("user").window(tumbling("5m")).agg(pairs=pl.len(), last=pl.col("window_start").max())
    whole = play_tree(flow, rows)
    assert whole.height
    for seed in range(3):
        assert play_tree(flow, rows, seed).equals(whole)
    agree(
        whole.select("user", pairs="pairs"),
        """select a.user, count(*) as pairs from a join b on a.user = b.user
        and time_bucket(interval '1 minute', a.ts) = time_bucket(interval '1 minute', b.ts)
        group by a.user, time_bucket(interval '5 minutes', a.ts)""",
        **rows,
    )


def test_a_join_in_windows_forgets_what_is_closed(home: str | None) -> None:
    from millstream.streams.runner import Worker

    rows = two(9, 400)
    flow = left.join(right, on="user", window=tumbling("30s"), how="left", prefix="b_")
    with ms.open(home) as log:
        for start in range(0, 400, 40):
            log.append("a", rows["a"].drop("_position").slice(start, 40), type="WindowedClick")
            log.append("b", rows["b"].drop("_position").slice(start // 2, 20), type="WindowedClick")
            worker = Worker(log, flow.to("out", type="WindowedOut"), rows=30, commit_every=0)
            while worker.advance(log.head):
                pass
        assert log.scan("out").collect().equals(flow.over(log, final=False))
        assert worker.state.operators[0].parts.rows < 200


STRATEGIES: dict[Strategy, str] = {
    "forward": "b.ts >= a.ts and b.ts <= a.ts + interval '{within} seconds'",
    "nearest": "b.ts between a.ts - interval '{within} seconds' and a.ts + interval '{within} seconds'",
}


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.sampled_from([0, 3, 20, 300]), st.sampled_from(list(STRATEGIES)), st.booleans())
def test_a_row_meets_the_nearest_one_as_in_sql(seed: int, within: int, strategy: Strategy, inner: bool) -> None:
    rows = two(seed)
    flow = left.join_asof(
        right, on="user", within=f"{within}s", strategy=strategy, how="inner" if inner else "left", prefix="b_"
    )
    result = play_tree(flow, rows, seed)
    near = STRATEGIES[strategy].format(within=within)
    query = f"""
        select a.n, b.m from a {"" if inner else "left"} join b on a.user = b.user and {near}
        qualify row_number() over (
            partition by a.n order by abs(epoch(b.ts) - epoch(a.ts)), b.ts, b.m desc
        ) = 1
    """
    found = result.rename({"b_m": "m"}) if result.width else pl.DataFrame(schema={"n": pl.UInt32, "m": pl.UInt32})
    agree(found.select("n", "m"), query, **rows)
    assert result.equals(play_tree(flow, rows))
    assert not result.width or result["ts"].is_sorted()


def test_without_a_key_the_nearest_of_all_counts() -> None:
    rows = two(3)
    flow = left.join_asof(right, within="1m", strategy="nearest", prefix="b_")
    query = """
        select a.n, b.m from a left join b on abs(epoch(b.ts) - epoch(a.ts)) <= 60
        qualify row_number() over (partition by a.n order by abs(epoch(b.ts) - epoch(a.ts)), b.ts, b.m desc) = 1
    """
    result = play_tree(flow, rows, 3)
    agree(result.select("n", m="b_m"), query, **rows)


@pytest.mark.parametrize(
    ("join", "says"),
    [
        (lambda: left.join(right, on="user", window=tumbling("1m"), back="1s"), "by window= or by back="),
        (lambda: left.join(right, on="user", window=session("1m")), "a session window is none to join in"),
        (lambda: left.join_asof(right, on="user", strategy="nearest"), "wait for ever"),
        (lambda: left.join_asof(right, on="user", strategy="sideways", within="1s"), "not known"),
        (
            lambda: left.join_asof(right, on="user", strategy="forward", within="1s", delete=pl.col("m") > 1),
            "what is gone",
        ),
    ],
)
def test_joins_without_a_meaning_are_refused(join: object, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        join()  # type: ignore[operator]


def test_columns_that_are_called_as_the_windows_bounds_are_refused() -> None:
    flow: Flow = left.with_columns(window_start=pl.col("n")).join(right, on="user", window=tumbling("1m"), prefix="b_")
    with pytest.raises(FlowError, match="'window_start' already"):
        play_tree(flow, two(1))
