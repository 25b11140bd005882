"""What sliding windows answer beside counts and sums."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from referee import START, agree, clicks, play

import millstream as ms
from millstream.streams import FlowError, MissingColumn, stream, tumbling
from millstream.streams.pipeline import Pipeline
from millstream.streams.replay import replay
from millstream.streams.spans import Track

source = stream("clicks", time="ts", lateness="2s")


def window(size: str, *keys: str, closed: Any = "both", **aggregates: pl.Expr) -> Any:
    return source.group_by(*(keys or ("user",))).window(ms.sliding(size, closed=closed)).agg(**aggregates)


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.sampled_from([1, 30, 600]), st.booleans(), st.booleans())
def test_minima_maxima_and_means_are_those_of_sql(seed: int, seconds: int, right: bool, texts: bool) -> None:
    rows = clicks(seed, 300, minutes=20, texts=texts).with_columns(
        x=pl.when(pl.col("amount") % 7 > 0).then(pl.col("amount") / 8), day=pl.col("ts").dt.date()
    )
    flow = window(
        f"{seconds}s",
        closed="right" if right else "both",
        least=pl.col("amount").min(),
        most=pl.col("amount").max(),
        low=pl.col("x").min(),
        high=pl.col("x").max(),
        mean=pl.col("x").mean(),
        total=pl.col("x").sum(),
        first=pl.col("ts").min(),
        last_day=pl.col("day").max(),
        spread=pl.col("amount").max() - pl.col("amount").min(),
    )
    result = play(flow, rows, seed)
    span = f"'{seconds} second'" if not right else f"'{seconds * 1_000_000 - 1} us'"
    agree(
        result,
        f"""select user, ts - interval '{seconds} second' as window_start, ts as window_end, ts, kind, amount, x, day,
                min(amount) over w as least, max(amount) over w as most, min(x) over w as low, max(x) over w as high,
                avg(x) over w as mean, coalesce(sum(x) over w, 0) as total, min(ts) over w as first,
                max(day) over w as last_day, max(amount) over w - min(amount) over w as spread
            from rows window w as (partition by user order by ts
                range between interval {span} preceding and current row)""",
        rows=rows,
    )
    assert result.equals(play(flow, rows))


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.sampled_from([1, 30, 600]), st.booleans())
def test_any_other_aggregate_goes_over_the_rows_and_is_that_of_sql(seed: int, seconds: int, both: bool) -> None:
    rows = clicks(seed, 250, minutes=20).with_row_index("n")
    keys = ("user", "kind") if both else ("user",)
    flow = window(
        f"{seconds}s",
        *keys,
        rows=pl.len(),
        middle=pl.col("amount").median(),
        kinds=pl.col("kind").n_unique(),
        began=pl.col("n").first(),
        bought=pl.col("amount").filter(pl.col("kind") == "purchase").max(),
        named=pl.col("kind").max(),
    ).select(*keys, "n", "rows", "middle", "kinds", "began", "bought", "named")
    result = play(flow, rows, seed)
    agree(
        result,
        f"""select {", ".join(keys)}, n, count(*) over w as rows, median(amount) over w as middle,
                count(distinct kind) over w as kinds, arg_min(n, (ts, n)) over w as began,
                max(amount) filter (kind = 'purchase') over w as bought, max(kind) over w as named
            from rows window w as (partition by {", ".join(keys)} order by ts
                range between interval '{seconds} second' preceding and current row)""",
        rows=rows,
    )
    assert result.equals(play(flow, rows))


def test_without_a_key_after_a_window_and_with_a_python_function() -> None:
    rows = clicks(1, 600)
    last = source.window(ms.sliding("20s")).agg(named=pl.col("kind").last(), most=pl.col("amount").max())
    assert play(last, rows, 1).equals(play(last, rows))
    counts = source.group_by("user").window(tumbling("1m")).agg(n=pl.len()).select("user", "n")
    spread = pl.col("n").map_batches(lambda n: n.max() - n.min(), returns_scalar=True, return_dtype=pl.Int64)
    after = counts.group_by("user").window(ms.sliding("5m")).agg(peak=pl.col("n").max(), spread=spread)
    result = play(after, rows, 2)
    assert result.equals(play(after, rows))
    agree(
        result.select("user", "n", "peak", "spread"),
        """with counts as (select user, time_bucket(interval '1 minute', ts) as minute, count(*) as n from rows
               group by all)
           select user, n, max(n) over w as peak, max(n) over w - min(n) over w as spread from counts
           window w as (partition by user order by minute
               range between interval '5 minute' preceding and current row)""",
        rows=rows,
    )


def test_a_column_that_would_be_hidden_by_another_is_refused() -> None:
    counts = source.group_by("user").window(tumbling("1m")).agg(n=pl.len()).group_by("user").window(ms.sliding("5m"))
    with pytest.raises(FlowError, match="window_start"):
        play(counts.agg(peak=pl.col("n").max()), clicks(1, 50))
    with pytest.raises(FlowError, match="'amount'"):
        play(window("1m", amount=pl.col("amount").max()), clicks(1, 50))


@pytest.mark.parametrize("dtype", [pl.Int8, pl.Int32, pl.UInt16, pl.Date, pl.Datetime("ms"), pl.Duration("us")])
def test_a_span_without_a_value_has_no_minimum_whatever_the_type(dtype: Any) -> None:
    rows = pl.DataFrame(
        {
            "user": ["a", "b", "a", "b"],
            "v": pl.Series([None, 5, 3, None], dtype=pl.Int32).cast(dtype),
            "ts": [START + timedelta(seconds=s) for s in range(4)],
        }
    )
    flow = source.group_by("user").window(ms.sliding("2s", closed="right"))
    found = play(flow.agg(least=pl.col("v").min(), most=pl.col("v").max()).select("least", "most"), rows, 1)
    assert found.schema == {"least": dtype, "most": dtype}
    values = rows["v"].to_list()
    assert found.rows() == [(None, None), (values[1],) * 2, (values[2],) * 2, (None, None)]


def test_a_column_that_is_not_there_is_missed_by_name() -> None:
    rows = pl.DataFrame({"user": ["a"], "ts": [START]})
    flow = source.group_by("user").window(tumbling("5s")).agg(n=pl.len())
    again = flow.select("user", "n").group_by("user").window(ms.sliding("1m")).agg(first=pl.col("v").first())
    with pytest.raises(MissingColumn, match=r"needs column 'v'; there are 'user', 'n'"):
        play(again, rows)


def test_nothing_nan_and_what_has_left_the_span_leave_no_trace() -> None:
    values = [1e300, 1.0, None, float("nan"), 2.0, float("inf"), 3.0, None]
    ts = [START + timedelta(minutes=n) for n in range(len(values))]
    rows = pl.DataFrame({"user": 1, "ts": ts, "x": values})
    flow = window("1m", total=pl.col("x").sum(), least=pl.col("x").min(), mean=pl.col("x").mean())
    whole = play(flow, rows)
    expected = pl.DataFrame(
        {
            "total": [1e300, 1e300, 1.0, float("nan"), float("nan"), float("inf"), float("inf"), 3.0],
            "least": [1e300, 1.0, 1.0, float("nan"), 2.0, 2.0, 3.0, 3.0],
            "mean": [1e300, 5e299, 1.0, float("nan"), float("nan"), float("inf"), float("inf"), 3.0],
        }
    )
    assert_frame_equal(whole.select(expected.columns), expected)
    for seed in (1, 2, 3):
        assert_frame_equal(play(flow, rows, seed), whole)
    alone = play(window("1s", least=pl.col("x").min(), mean=pl.col("x").mean()), rows)
    assert alone["least"].null_count() == alone["mean"].null_count() == 2


@pytest.mark.parametrize("combine", [np.minimum, np.add])
def test_blocks_answer_every_stretch(combine: np.ufunc) -> None:
    nothing = 1 << 40 if combine is np.minimum else 0
    track = Track(pl.lit(1), combine, nothing)
    for size in (0, 1, 2, 3, 8, 13):
        values = np.random.default_rng(size).integers(0, 100, size)
        begins, ends = (each.ravel() for each in np.meshgrid(np.arange(size + 1), np.arange(size + 1)))
        kept = begins <= ends
        begins, ends = begins[kept], ends[kept]
        expected = [combine.reduce(values[b:e], initial=nothing) for b, e in zip(begins, ends, strict=True)]
        assert track.over(track.built(values), begins, ends).tolist() == expected


def test_a_column_that_becomes_wider_is_answered_as_if_it_had_always_been() -> None:
    with ms.open() as log:
        for second, value in enumerate([3, 1, 2.5, 2, "x", 1]):
            at = (START + timedelta(seconds=second)).isoformat()
            log.append("clicks", ms.Plain("WidenedClick", {"user": 1, "ts": at, "v": value}))
        flow = source.group_by("user").window(ms.sliding("1m")).agg(least=pl.col("v").min(), n=pl.len())
        whole = flow.over(log)
        for rows in (1, 2, 1000):
            assert replay(flow, log, rows=rows).equals(whole)
        assert whole["n"].to_list() == [1, 2, 3, 4, 5, 6]
        assert whole["least"].to_list()[-1] == "1"


def test_a_literal_alone_is_the_answer_to_each_row() -> None:
    rows = clicks(1, 50)
    for flow in (source.group_by("user"), source):
        result = play(flow.window(ms.sliding("1m")).agg(one=pl.lit(1)), rows, 1)
        assert result["one"].to_list() == [1] * 50


@pytest.mark.parametrize("more", [{}, {"least": pl.col("amount").min()}])
def test_totals_become_fractions_while_rows_that_have_run_out_are_still_there(more: dict[str, pl.Expr]) -> None:
    clicked = stream("clicks", time="ts").filter(pl.col("kind") == "click")
    flow = clicked.group_by("user").window(ms.sliding("10s"))
    pipeline = Pipeline(flow.agg(total=pl.col("amount").sum(), **more))
    state, totals = pipeline.start(), []
    for seconds, kind, amounts in (
        ([0, 5], "click", [3, 4]),
        ([100], "view", [0]),
        ([101, 102], "click", [0.5, 0.75]),
        ([200], "view", [0.5]),
    ):
        times = [START + timedelta(seconds=second) for second in seconds]
        rows = pl.DataFrame({"user": 1, "ts": times, "kind": kind, "amount": amounts})
        state, result, _ = pipeline.step(state, rows.with_columns(_position=pl.lit(seconds[0], pl.Int64)))
        totals += result["total"].to_list() if result.height else []
    assert totals == [3, 7, 0.5, 1.25]
