"""State as bytes: what is packed comes back as it was, and takes little room."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from millstream.frames import encode_frame
from millstream.streams.packing import pack, unpack

LEAST, MOST = -(2**63), 2**63 - 1

DTYPES = [
    pl.Int64,
    pl.Datetime("us", "UTC"),
    pl.Datetime("us", "America/New_York"),
    pl.Datetime("ns"),
    pl.Duration("ms"),
]


@st.composite
def numbers(draw: st.DrawFn, height: int) -> list[int]:
    """Numbers near each other, in an order or in none, anywhere among those of 64 bits."""
    reach = draw(st.sampled_from([0, 1, 255, 256, 65_535, 65_536, 2**32 - 1, 2**32, 2**40]))
    base = draw(st.sampled_from([LEAST, -5, 0, 1_700_000_000_000_000, MOST - 2**41]))
    held = draw(st.lists(st.integers(base, base + reach), min_size=height, max_size=height))
    return sorted(held) if draw(st.booleans()) else held


@st.composite
def frames(draw: st.DrawFn) -> pl.DataFrame:
    height = draw(st.sampled_from([0, 1, 2, 63, 64, 65, 66, 130]))
    columns: list[pl.Series] = []
    for place in range(draw(st.integers(1, 4))):
        match draw(st.sampled_from(["numbers", "steps", "same", "nulls", "any", "texts"])):
            case "numbers":
                held = pl.Series(draw(numbers(height)), dtype=pl.Int64).cast(draw(st.sampled_from(DTYPES)))
            case "steps":
                steps = draw(
                    st.lists(st.integers(0, draw(st.sampled_from([255, 256]))), min_size=height, max_size=height)
                )
                held = pl.Series(np.cumsum([draw(st.sampled_from([LEAST, 0, MOST - 2**20])), *steps])[:height])
                held = held.cast(pl.Int64)
            case "same" if columns:
                held = (
                    columns[0].to_physical().cast(draw(st.sampled_from(DTYPES)))
                    if _is_whole(columns[0])
                    else columns[0]
                )
            case "nulls":
                some = st.one_of(st.none(), st.integers(LEAST, MOST))
                held = pl.Series(draw(st.lists(some, min_size=height, max_size=height)), dtype=pl.Int64)
            case "any":
                held = pl.Series(
                    draw(st.lists(st.integers(LEAST, MOST), min_size=height, max_size=height)), dtype=pl.Int64
                )
            case _:
                texts = draw(st.lists(st.one_of(st.none(), st.text(max_size=3)), min_size=height, max_size=height))
                held = pl.Series(texts, dtype=pl.String)
        columns.append(held.alias(f"c{place}"))
    return pl.DataFrame(columns)


def _is_whole(series: pl.Series) -> bool:
    return series.dtype in (pl.Int64, *DTYPES)


@given(frames())
def test_packed_rows_come_back_as_they_were(frame: pl.DataFrame) -> None:
    found = unpack(pack(frame))
    assert found.schema == frame.schema
    assert_frame_equal(found, frame)


@pytest.mark.parametrize(
    "values",
    [
        [True, False, None],
        [1.5, float("nan"), float("-inf")],
        [date(2026, 1, 1), None, date(1, 1, 1)],
        [time(0, 0), time(23, 59, 59, 999_999), time(12, 0)],
        [timedelta(days=-1), timedelta(0), timedelta(microseconds=1)],
        [[1, 2], [], None],
        [{"a": 1}, {"a": None}, {"a": 3}],
        [b"", b"\xff", None],
        [None, None, None],
    ],
    ids=lambda values: type(values[0]).__name__,
)
def test_columns_of_every_type_come_back_beside_packed_ones(values: list[object]) -> None:
    frame = pl.DataFrame({"before": [1, 2, 3], "column": values, "after": [datetime(2026, 1, 1, tzinfo=UTC)] * 3})
    found = unpack(pack(frame))
    assert found.schema == frame.schema
    assert_frame_equal(found, frame)


@pytest.mark.parametrize(
    "dtype", [pl.UInt64, pl.Int32, pl.UInt8, pl.Categorical, pl.Enum(["1", "7"]), pl.Decimal(10, 2)]
)
def test_types_that_are_not_packed_come_back(dtype: pl.DataType) -> None:
    texts = pl.Series("column", ["1", "7", "1"])
    frame = pl.DataFrame([texts.cast(dtype), pl.Series("beside", [5, 6, 7])])
    found = unpack(pack(frame))
    assert found.schema == frame.schema
    assert_frame_equal(found, frame)


def test_state_that_was_stored_as_arrow_alone_is_read() -> None:
    frame = pl.DataFrame({"key": [1, 2], "text": ["a", None]})
    assert_frame_equal(unpack(encode_frame(frame)), frame)


def test_rows_that_wait_for_a_window_take_few_bytes() -> None:
    r = np.random.default_rng(3)
    at = 1_700_000_000_000_000 + np.arange(100_000) * 1_000 - r.integers(0, 2_000_000, 100_000)
    frame = pl.DataFrame(
        {
            "ts": pl.Series(at).cast(pl.Datetime("us", "UTC")),
            "user": r.integers(1, 100_000, 100_000),
            "_position": np.arange(5_000_000, 5_100_000),
            "__at": at,
        }
    )
    # Four bytes for the time and the user, one for the position, none for the time once more.
    assert len(pack(frame)) < 9.1 * 100_000 < len(encode_frame(frame)) / 1.5
