"""Quantiles, numbers of distinct values and best rows, of parts that are merged."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from referee import agree, clicks, play

import millstream as ms
from millstream.errors import UsageError
from millstream.streams import (
    Flow,
    UnsupportedExpression,
    calendar,
    count,
    hopping,
    quantile,
    session,
    sliding,
    stream,
    tumbling,
)
from millstream.streams.hashing import hashed

source = stream("clicks", time="ts", lateness="2s")
AGGREGATES: dict[str, Any] = {
    "low": quantile("amount", 0.1),
    "high": quantile(pl.col("amount").filter(pl.col("kind") == "click"), 0.9, error=0.05),
    "kinds": pl.col("kind").approx_n_unique(),
    "seconds": pl.col("ts").filter(pl.col("amount") > 0).approx_n_unique(),
    "top": pl.col("amount").top_k(3).implode(),
    "least": pl.struct("amount", "kind").bottom_k_by("amount", 2).implode(),
    "twice": pl.col("amount").sum() * 2,
}
WINDOWS: dict[str, Callable[[Flow], Any]] = {
    "tumbling": lambda flow: flow.group_by("user").window(tumbling("5m")),
    "hopping": lambda flow: flow.group_by("user").window(hopping("5m", every="1m")),
    "corrected": lambda flow: flow.group_by("user").window(tumbling("5m"), early="1m", allowed_lateness="10m"),
    "all": lambda flow: flow.window(tumbling("10m")),
    "session": lambda flow: flow.group_by("user").window(session("40s")),
    "count": lambda flow: flow.group_by("user").window(count(20)),
    "calendar": lambda flow: flow.group_by("user").window(calendar("1h", time_zone="Asia/Kolkata")),
    "sliding": lambda flow: flow.select("user", "ts", "kind", "amount").group_by("user").window(sliding("1m")),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_the_parts_of_every_window_come_to_the_same_in_whatever_batches(name: str) -> None:
    rows = clicks(4, 400)
    flow = WINDOWS[name](source).agg(**AGGREGATES)
    whole = play(flow, rows)
    assert whole.height > 5
    for seed in (1, 2):
        assert play(flow, rows, seed).equals(whole)


def test_the_values_of_a_group_are_those_that_its_rows_give() -> None:
    rows = clicks(5, 3_000)
    found = play(source.group_by("user").window(tumbling("10m")).agg(**AGGREGATES), rows, 5)
    times = pl.col("ts").dt.truncate("10m").alias("window_start")
    seen = 0
    for (user, start), group in rows.group_by("user", times):
        [row] = found.filter(pl.col("user").eq_missing(user), pl.col("window_start") == start).to_dicts()
        for values, q, error, got in (
            (group["amount"], 0.1, 0.01, row["low"]),
            (group.filter(pl.col("kind") == "click")["amount"], 0.9, 0.05, row["high"]),
        ):
            if values.is_empty():
                assert got is None
                continue
            exact = sorted(values)[math.floor(q * (len(values) - 1))]
            assert abs(got - exact) <= error * abs(exact) * (1 + 1e-9)
            seen += 1
        assert row["kinds"] == group["kind"].n_unique()
        assert row["seconds"] == pytest.approx(group.filter(pl.col("amount") > 0)["ts"].n_unique(), abs=2)
        assert row["top"] == group["amount"].sort(descending=True).head(3).to_list()
        in_order = group.with_row_index("place").sort("amount", "ts", "place").head(2)
        assert row["least"] == in_order.select("amount", "kind").to_dicts()
    assert seen > 50


@settings(max_examples=40)
@given(
    st.lists(st.one_of(st.none(), st.floats(width=64, allow_subnormal=False)), min_size=1, max_size=60),
    st.floats(0, 1),
    st.sampled_from([1e-4, 0.01, 0.3]),
)
def test_a_quantile_is_as_near_as_it_says(values: list[float | None], q: float, error: float) -> None:
    times = [datetime(2024, 1, 1)] * len(values)
    rows = pl.DataFrame({"ts": times, "v": values}, schema_overrides={"v": pl.Float64})
    found = play(stream("s", time="ts").window(tumbling("1h")).agg(v=quantile("v", q, error=error)), rows, len(values))
    present = sorted((v for v in values if v is not None), key=lambda v: (math.isnan(v), v))
    [got] = found["v"]
    if not present:
        assert got is None
        return
    exact = present[math.floor(q * (len(present) - 1))]
    if math.isnan(exact) or math.isinf(exact):
        assert str(got) == str(exact)
    else:
        assert abs(got - exact) <= error * abs(exact) * (1 + 1e-9)


@pytest.mark.parametrize("distinct", [10, 300, 5_000, 40_000, 200_000])
def test_distinct_values_are_counted_to_within_a_few_percent(distinct: int) -> None:
    r = np.random.default_rng(distinct)
    n = distinct * 2
    values = np.concatenate([np.arange(distinct), r.integers(0, distinct, n - distinct)])
    r.shuffle(values)
    rows = (
        pl.DataFrame({"ts": [datetime(2024, 1, 1)], "v": [0]})
        .select("ts")
        .join(pl.DataFrame({"v": values}), how="cross")
    )
    agg = {"numbers": pl.col("v").approx_n_unique(), "texts": pl.format("user-{}", "v").approx_n_unique()}
    flow = stream("s", time="ts").window(tumbling("1h"))
    found = flow.agg(**agg).over(rows)
    for name in agg:
        # Four standard errors of 0.81 %.
        assert found[name].item() == pytest.approx(distinct, rel=0.033, abs=1)


def test_a_hash_stays_what_it_is() -> None:
    """What flows have stored rests on it."""
    known = hashed(pl.Series(["", "a", "eight by", "nine bytes", "λόγος", None])).tolist()
    assert known == KNOWN
    assert hashed(pl.Series([1, -5, None])).tolist() == hashed(pl.Series([1.0, -5.0, None])).tolist()
    assert hashed(pl.Series([1, 0], dtype=pl.UInt64)).tolist() == hashed(pl.Series([True, False])).tolist()
    assert hashed(pl.Series([1], dtype=pl.Int8)).tolist() == NUMBERS[:1]
    assert hashed(pl.Series([Decimal("1.00")])).tolist() == hashed(pl.Series([1])).tolist()
    moment = datetime(2024, 1, 1)
    for series in (pl.Series([moment]).dt.cast_time_unit("ns"), pl.Series([date(2024, 1, 1)])):
        assert hashed(series).tolist() == hashed(pl.Series([moment])).tolist()
    both = pl.DataFrame({"a": ["x", "y"], "b": ["y", "x"]}).to_struct()
    assert len(set(hashed(both).tolist())) == 2
    assert hashed(pl.Series([-0.0])).tolist() == hashed(pl.Series([0])).tolist()
    assert hashed(pl.Series([b"a"])).tolist() == KNOWN[1:2]
    with pytest.raises(UnsupportedExpression, match="have no hash"):
        hashed(pl.Series([[1]]))


NUMBERS = [10451216379200822465]
KNOWN = [
    11266542361958686163,
    677702050853578258,
    5684547453433556730,
    55746222539463574,
    14618834185991633727,
    11400714819323198485,
]


def test_texts_with_one_byte_between_them_have_hashes_of_their_own() -> None:
    texts = [f"{'x' * n}{c}" for n in range(40) for c in "abc"]
    assert len(set(hashed(pl.Series(texts)).tolist())) == len(texts)


@settings(max_examples=15)
@given(st.integers(0, 10_000))
def test_the_best_are_those_of_sql(seed: int) -> None:
    rows = clicks(seed, 400)
    best = pl.struct("amount", "kind").top_k_by("amount", 3).implode()
    flow = source.group_by("user").window(tumbling("5m")).agg(best=best)
    query = """
        select "user", list({'amount': amount, 'kind': kind} order by amount desc, ts, n)[:3] as best
        from rows group by "user", time_bucket(interval '5 minutes', ts)
    """
    agree(play(flow, rows, seed).select("user", "best"), query, rows=rows.with_row_index("n"))


def test_the_column_that_the_best_are_chosen_by_is_read_though_nothing_else_asks_for_it() -> None:
    rows = clicks(1, 100)
    best = pl.col("kind").top_k_by("amount", 3).implode()
    flow = source.group_by("user").window(tumbling("5m")).agg(best=best)
    query = """
        select "user", list(kind order by amount desc, ts, n)[:3] as best
        from rows group by "user", time_bucket(interval '5 minutes', ts)
    """
    agree(play(flow, rows, 1).select("user", "best"), query, rows=rows.with_row_index("n"))


def test_the_best_of_values_that_only_kept_rows_give_come_best_first() -> None:
    amounts = [1, None, 5, 3, 9, 2]
    rows = pl.DataFrame({"user": 7, "amount": amounts, "ts": datetime(2024, 1, 1)})
    amount = pl.col("amount").drop_nulls()
    for window in (tumbling("5m"), sliding("5m")):
        windows = source.group_by("user").window(window)
        best = windows.agg(
            all=amount.top_k(5).implode(), least=amount.bottom_k(9).implode(), two=amount.top_k(2).implode()
        )
        assert best.over(rows).select("all", "least", "two").row(0) == ([9, 5, 3, 2, 1], [1, 2, 3, 5, 9], [9, 5])


def test_what_is_kept_is_small_and_quantiles_of_one_column_share_it() -> None:
    aggregates = {f"p{q}": quantile("amount", q / 100) for q in (1, 50, 99)}
    windows = source.window(tumbling("1h")).agg(**aggregates).stages[-1]
    assert len(windows.aggregation.partials) == 1  # type: ignore[union-attr]
    kept = source.window(tumbling("1h")).agg(t=pl.col("amount").top_k(3).implode()).stages[-1]
    assert kept.aggregation.partials[0].kind == "top 3"  # type: ignore[union-attr]


def test_a_sketch_goes_on_after_a_restart(home: str | None) -> None:
    from millstream.streams.runner import Worker

    rows = clicks(8, 300)
    flow = source.group_by("user").window(tumbling("5m")).agg(**AGGREGATES).to("out", type="SketchedOut")
    with ms.open(home) as log:
        for start in range(0, 300, 60):
            log.append("clicks", rows.slice(start, 60), type="SketchedClick")
            worker = Worker(log, flow, rows=20, commit_every=0)
            while worker.advance(log.head):
                pass
        assert log.scan("out").collect().equals(flow.over(log, final=False))


def test_what_has_no_quantile_is_refused() -> None:
    with pytest.raises(UsageError, match="a quantile of 99"):
        quantile("amount", 99)
    with pytest.raises(UsageError, match="error=0"):
        quantile("amount", 0.5, error=0)
    with pytest.raises(UnsupportedExpression, match="have no quantile"):
        source.window(tumbling("1h")).agg(v=quantile("kind", 0.5)).over(clicks(1, 10))
    with pytest.raises(UnsupportedExpression, match="depends on other rows"):
        source.window(tumbling("1h")).agg(v=quantile(pl.col("amount").cum_sum(), 0.5))


def test_what_has_no_hash_is_refused_by_name() -> None:
    rows = pl.DataFrame({"k": [[1], [2]], "ts": [datetime(2024, 1, 1), datetime(2024, 1, 2)]})
    flow = ms.stream("s", time="ts").window(ms.tumbling("1d")).agg(n=pl.col("k").approx_n_unique())
    with pytest.raises(UnsupportedExpression, match="have no hash"):
        flow.over(rows)
