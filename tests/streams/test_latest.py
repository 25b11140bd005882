from __future__ import annotations

import random

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from referee import agree, clicks, play

from millstream.errors import UsageError
from millstream.streams import Flow, stream, tumbling

source = stream("clicks", time="ts", lateness="2s")

CHANGES = """
    select user, ts, kind, amount, n from rows
    qualify coalesce(ts >= max(ts) over (partition by {keys} order by n rows between unbounded preceding
        and 1 preceding), true)
"""


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 2.0, 600.0]), st.booleans())
def test_a_row_comes_out_when_no_row_of_its_key_before_it_is_newer(seed: int, late: float, both: bool) -> None:
    rows = clicks(seed, 300, minutes=20, late=late).with_row_index("n")
    keys = ("user", "kind") if both else ("user",)
    flow = source.latest(*keys)
    result = play(flow, rows, seed)
    agree(result, CHANGES.format(keys=", ".join(keys)), rows=rows)
    assert result.equals(play(flow, rows))
    assert result["n"].is_sorted()


def test_each_row_put_in_the_place_of_the_one_before_gives_the_table() -> None:
    rows = clicks(3, 800, late=300).with_row_index("n")
    table = play(source.latest("user"), rows, 3).unique("user", keep="last")
    agree(
        table,
        "select * from rows qualify row_number() over (partition by user order by ts desc, n desc) = 1",
        rows=rows,
    )


def test_it_goes_before_windows_and_after_them_and_rows_without_a_time_are_put_aside() -> None:
    rows = clicks(5, 500)
    shuffled = rows.sample(fraction=1, shuffle=True, seed=1)
    for flow in (
        source.latest("user").group_by("user").window(tumbling("1m")).agg(n=pl.len()),
        source.group_by("user")
        .window(tumbling("1m"))
        .agg(n=pl.len())
        .latest("user")
        .alert(pl.col("n") > 1, cooldown="5m"),
    ):
        assert play(flow, shuffled, 5).equals(play(flow, shuffled))
    untimed = rows.with_columns(ts=pl.when(pl.int_range(pl.len()) % 3 > 0).then("ts"))
    assert play(source.latest("user"), untimed, 5)["ts"].null_count() == 0
    with pytest.raises(UsageError, match="names of columns"):
        source.latest()


def grown(flow: Flow, rows: pl.DataFrame) -> list[int]:
    """How large the state is, at each of ten batches."""
    from millstream.streams.pipeline import Pipeline

    pipeline = Pipeline(flow)
    state, sizes = pipeline.start(), []
    rows = rows.with_columns(pl.int_range(1, pl.len() + 1, dtype=pl.Int64).alias("_position"))
    for start in range(0, rows.height, rows.height // 10):
        state, _, _ = pipeline.step(state, rows.slice(start, rows.height // 10))
        sizes.append(state.operators[0].parts.rows)
    return sizes


def test_what_is_kept_follows_the_keys_and_not_the_rows() -> None:
    r = random.Random(1)
    rows = clicks(1, 20_000).with_columns(user=pl.Series([r.randrange(50) for _ in range(20_000)]))
    assert max(grown(source.latest("user"), rows)) <= 50 * 8
