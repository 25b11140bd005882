from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from referee import agree, clicks, play

from millstream.errors import UsageError
from millstream.streams import FlowError, stream, tumbling

source = stream("clicks", time="ts", lateness="2s")


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from([1, 5, 40, 600]), st.booleans())
def test_distinct_rows_are_those_of_which_sql_finds_none_shortly_before(seed: int, within: int, both: bool) -> None:
    rows = clicks(seed, 300, minutes=20).with_row_index("n")
    keys = ("user", "kind") if both else ("user",)
    flow = source.distinct(*keys, within=f"{within}s")
    result = play(flow, rows, seed)
    query = f"""
        with marked as (
            select *, ts - lag(ts) over (partition by {", ".join(keys)} order by ts, n) < interval '{within} seconds'
            as again from rows
        )
        select user, ts, kind, amount, n from marked where not coalesce(again, false)
    """
    agree(result, query, rows=rows)
    assert result.equals(play(flow, rows))
    assert result["ts"].is_sorted()


@pytest.mark.parametrize("seed", range(4))
def test_the_top_rows_of_each_window_are_those_of_sql(seed: int) -> None:
    rows = clicks(seed, 1_000)
    counts = source.group_by("user", "kind").window(tumbling("5m")).agg(n=pl.len())
    flow = counts.top(2, by="n", per="kind")
    result = play(flow, rows, seed)
    agree(
        result,
        """select user, kind, window_start, window_start + interval '5 minute' as window_end, n from (
             select user, kind, time_bucket(interval '5 minute', ts) as window_start, count(*) as n from rows
             group by all)
           qualify row_number() over (partition by window_start, kind order by n desc, user nulls first) <= 2""",
        rows=rows,
    )
    assert result.equals(play(flow, rows))
    least = play(counts.top(1, by="n", descending=False), rows, seed)
    assert (
        least["n"].to_list()
        == play(counts, rows).group_by("window_end").agg(pl.col("n").min()).sort("window_end")["n"].to_list()
    )


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(FlowError, match="over the results of a window"):
        source.top(3, by="amount")
    with pytest.raises(UsageError, match="no time"):
        source.distinct("user", within="0s")
    with pytest.raises(UsageError, match="names of columns"):
        source.distinct(within="1s")
