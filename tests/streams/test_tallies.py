"""Counts and sums by place in an array give what groups by hash give."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import polars as pl
import pytest
from hypothesis import given
from polars.testing import assert_frame_equal

from millstream.streams import aggregates
from millstream.streams.aggregates import Aggregation, aggregation, merge_partials, partials_of
from millstream.streams.tallies import tallied

KEYS: dict[Any, tuple[int, int]] = {
    pl.Int8: (-128, 127),
    pl.Int16: (-(1 << 15), (1 << 15) - 1),
    pl.Int64: (-(1 << 63), (1 << 63) - 1),
    pl.UInt8: (0, 255),
    pl.UInt32: (0, (1 << 32) - 1),
    pl.UInt64: (0, (1 << 64) - 1),
}
VALUES: dict[Any, st.SearchStrategy[Any]] = {
    pl.Boolean: st.booleans(),
    pl.Int16: st.integers(-(1 << 15), (1 << 15) - 1),
    pl.UInt32: st.integers(0, (1 << 32) - 1),
    # Their sums go round, as those of Polars do.
    pl.Int64: st.integers(-(1 << 63), (1 << 63) - 1),
}


@st.composite
def frames(draw: st.DrawFn, keys: int, nulls: bool = False) -> pl.DataFrame:
    height = draw(st.integers(1, 40))
    columns = []
    for number in range(keys):
        dtype = draw(st.sampled_from(list(KEYS)))
        low, high = KEYS[dtype]
        start = draw(st.integers(low, high))
        near = st.integers(start, min(start + draw(st.sampled_from([0, 3, 50])), high))
        if nulls and draw(st.booleans()):
            near = st.one_of(st.none(), near)
        columns.append(pl.Series(f"k{number}", draw(st.lists(near, min_size=height, max_size=height)), dtype=dtype))
    dtype = draw(st.sampled_from(list(VALUES)))
    values = st.lists(st.one_of(st.none(), VALUES[dtype]), min_size=height, max_size=height)
    columns.append(pl.Series("v", draw(values), dtype=dtype))
    columns.append(pl.Series("__at", range(height), dtype=pl.Int64))
    columns.append(pl.Series("_position", range(height), dtype=pl.Int64))
    return pl.DataFrame(columns)


SUMS = aggregation(
    {
        "n": pl.len(),
        "there": pl.col("v").count(),
        "sum": pl.col("v").sum(),
        "even": (pl.col("__at") % 2 == 0).sum(),
        "late": pl.col("v").filter(pl.col("__at") > 5).sum(),
        "some": pl.col("v").filter(pl.col("__at") > 5).len(),
        "others": pl.col("v").filter(pl.col("v").is_null()).count(),
    }
)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The partials of rows in halves, merged, as Polars alone gives them."""

    def compute(which: Aggregation, rows: pl.DataFrame, by: list[str]) -> pl.DataFrame:
        with monkeypatch.context() as patched:
            patched.setattr(aggregates, "tallied", lambda *_: None)
            return halves(which, rows, by)

    return compute


def halves(which: Aggregation, rows: pl.DataFrame, by: list[str]) -> pl.DataFrame:
    middle = rows.height // 2
    pieces = [partials_of(which, rows[start:end], by) for start, end in ((0, middle), (middle, None))]
    return merge_partials(which, pl.concat(pieces), by)


@given(frame=st.one_of(frames(1), frames(2), frames(3)))
def test_whole_numbers_that_lie_close_together_are_added_up_as_polars_does(frame: pl.DataFrame) -> None:
    by = [name for name in frame.columns if name.startswith("k")]
    found = tallied(frame, by, {"n": None, "sum": pl.col("v"), "half": pl.col("v").is_not_null()})
    expected = frame.group_by(by).agg(
        pl.len().cast(pl.Int64).alias("n"), pl.col("v").cast(pl.Int64).sum().alias("sum"), half=pl.col("v").count()
    )
    if found is None:
        spans = frame.select((pl.col(by).max().cast(pl.Int128) - pl.col(by).min().cast(pl.Int128)) + 1).row(0)
        assert math.prod(spans) > 4096
    else:
        assert_frame_equal(found, expected.with_columns(pl.col("half").cast(pl.Int64)).sort(by))


@pytest.mark.parametrize("keys", [0, 1, 2])
def test_partials_are_the_same_either_way(keys: int, hashed: Any) -> None:
    @given(frame=frames(keys, nulls=True))
    def check(frame: pl.DataFrame) -> None:
        by = [f"k{number}" for number in range(keys)]
        found, expected = halves(SUMS, frame, by), hashed(SUMS, frame, by)
        assert_frame_equal(found, expected, check_row_order=False)

    check()


@pytest.mark.parametrize(
    "aggregates",
    [
        {"one": pl.lit(1).sum()},
        {"n": pl.len(), "most": pl.col("v").max()},
        {"distinct": pl.col("v").n_unique()},
    ],
    ids=["a literal", "a maximum", "distinct values"],
)
def test_what_is_more_than_counts_and_sums_goes_the_other_way(aggregates: dict[str, pl.Expr]) -> None:
    assert aggregation(aggregates).tallies is None


@pytest.mark.parametrize(
    ("column", "value"),
    [
        (pl.Series("k", [1, None]), 1),
        (pl.Series("k", ["a", "b"]), 1),
        (pl.Series("k", [0.5, 1.5]), 1),
        (pl.Series("k", [1, 1 << 40]), 1),
        (pl.Series("k", [1, 2]), 0.5),
        (pl.Series("k", [1, 2], dtype=pl.Int128), 1),
        (pl.Series("k", [1, 2]), (1 << 63) + 1),
    ],
    ids=["a null", "text", "fractions", "far apart", "128 bits", "sums of fractions", "sums beyond 64 bits"],
)
def test_what_is_not_for_this_way_is_left(column: pl.Series, value: Any) -> None:
    frame = pl.DataFrame([column, pl.Series("v", [value, value], strict=False)])
    assert tallied(frame, ["k"], {"sum": pl.col("v")}) is None
