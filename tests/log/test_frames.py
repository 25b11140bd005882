"""Frames of other libraries, and how frames are hashed and widened."""

import random
import threading
from datetime import UTC, datetime

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing.parametric import dataframes

import millstream as ms
from millstream import frames

ROWS = {"user": [1, 2, 3], "page": ["a", "ä", "c"], "price": [1.5, 2.5, 3.5]}


@pytest.mark.parametrize("make", [pl.DataFrame, pl.LazyFrame, pa.table, pd.DataFrame], ids=lambda make: make.__module__)
def test_a_frame_of_any_library_is_taken(make):
    log = ms.open()
    assert log.append("clicks", make(ROWS), type="Click").count == 3
    assert log.scan("clicks").collect().to_dict(as_series=False) == ROWS


def test_a_pandas_frame_keeps_its_times():
    log = ms.open()
    moments = pd.to_datetime(["2024-01-01T00:00:00Z", "2024-01-01T00:00:01.5Z"], format="ISO8601")
    log.append("f", pd.DataFrame({"at": moments}), type="Row")
    assert log.scan("f").collect()["at"].to_list() == [
        datetime(2024, 1, 1, tzinfo=UTC),
        datetime(2024, 1, 1, 0, 0, 1, 500_000, tzinfo=UTC),
    ]


@pytest.mark.parametrize(
    "column",
    [
        pl.Series([-(10**17)]).cast(pl.Datetime("us")),
        pl.Series([2**62]).cast(pl.Datetime("ms", "UTC")),
        pl.Series([2**31 - 1], dtype=pl.Int32).cast(pl.Date),
        pl.Series([2**62]).cast(pl.Duration("ms")),
    ],
    ids=lambda column: str(column.dtype),
)
def test_what_python_does_not_have_is_told_when_it_is_asked_for_by_the_event(column, tmp_path):
    log = ms.open()
    log.append("far", column.alias("x").to_frame(), type="Far")
    assert log.scan("far").collect()["x"].equals(column)
    [recorded] = log.read("far")
    [run] = log.runs("far")
    asked = [lambda: recorded.data, lambda: recorded.event, run.data, run.events]
    for ask in [*asked, lambda: log.export(str(tmp_path / "far.ndjson"))]:
        with pytest.raises(ms.InvalidEvent, match="the frame at position 1 holds a value that Python does not have"):
            ask()


def test_categories_are_kept_as_text():
    log = ms.open()
    frame = pl.DataFrame({"c": ["x", "y", None]}).with_columns(
        pl.col("c").cast(pl.Categorical), e=pl.col("c").cast(pl.Enum(["x", "y"]))
    )
    log.append("f", frame, type="Row")
    assert log.scan("f").collect().rows() == [("x", "x"), ("y", "y"), (None, None)]
    log.verify()


def test_a_name_of_the_logs_own_is_refused_as_a_column():
    with pytest.raises(ms.InvalidEvent, match="_position"):
        ms.open().append("f", pl.DataFrame({"_position": [1]}), type="Row")
    with pytest.raises(ms.InvalidEvent, match="no columns"):
        ms.open().append("f", pl.DataFrame(), type="Row")


SUPPORTED = [
    pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64, pl.Float32, pl.Float64,
    pl.Boolean, pl.String, pl.Binary, pl.Date, pl.Time, pl.Datetime("us"), pl.Datetime("ns"),
    pl.Datetime("ms", "America/New_York"), pl.Duration("us"), pl.Decimal(10, 2), pl.List(pl.Int64),
    pl.List(pl.String), pl.Struct({"a": pl.Int64, "b": pl.String}), pl.Array(pl.Int32, 2),
]  # fmt: skip


@settings(max_examples=150)
@given(frame=dataframes(min_cols=1, max_cols=4, max_size=12, allowed_dtypes=SUPPORTED, allow_null=True), data=st.data())
def test_any_frame_comes_back_and_its_hash_knows_content_alone(frame, data):
    log = ms.open()
    log.append("f", frame, type="Row")
    if not frame.height:
        assert log.head == 0
        return
    assert log.scan("f").collect().equals(frame)
    log.verify()
    # Chunks, slices and what lies under nulls are no content.
    cut = data.draw(st.integers(0, frame.height))
    in_chunks = pl.concat([frame.head(cut), frame.tail(frame.height - cut)], rechunk=False)
    padded = pl.concat([frame, frame]).slice(0, frame.height)
    for same in (in_chunks, padded, frames.decode_frame(frames.encode_frame(frame))):
        assert frames.frame_hash(same) == frames.frame_hash(frame)
    if frame.height > 1:
        turned = frame.reverse()
        assert turned.equals(frame) or frames.frame_hash(turned) != frames.frame_hash(frame)


@given(a=st.sampled_from(SUPPORTED), b=st.sampled_from(SUPPORTED))
def test_widening_goes_both_ways_and_is_an_upper_bound(a, b):
    a, b = (t() if isinstance(t, type) else t for t in (a, b))
    wider = frames.widen(a, b)
    assert wider == frames.widen(b, a)
    if wider is not None:
        assert frames.widen(wider, a) == wider
        assert frames.widen(wider, b) == wider


def test_many_appends_from_many_threads_hash_as_one_would():
    log = ms.open()
    rng = random.Random(7)
    for _ in range(5):
        rows = rng.randrange(8_000, 90_000)
        log.append("f", pl.DataFrame({"n": range(rows), "s": [str(n) for n in range(rows)]}), type="Row")
    log.verify()


def test_a_frame_may_be_looked_at_by_another_thread_while_it_is_appended() -> None:
    frame = pl.DataFrame({"n": range(100_000), "text": [str(i) for i in range(100_000)]})
    done = threading.Event()

    def append() -> None:
        with ms.open() as log:
            for _ in range(20):
                log.append("numbers", frame, type="Number")
        done.set()

    appender = threading.Thread(target=append, daemon=True)
    appender.start()
    while not done.is_set():
        assert frame.height == 100_000
    appender.join()


@pytest.mark.parametrize("unit", ["ns", "us", "ms"])
@given(numbers=st.lists(st.one_of(st.none(), st.integers(-5_000, 5_000)), max_size=5))
def test_the_range_of_a_column_of_times_leaves_none_of_them_out(unit: str, numbers: list[int | None]) -> None:
    column = pl.Series("at", numbers, dtype=pl.Int64).cast(pl.Datetime(unit))
    found = frames.time_ranges(pl.DataFrame([column, pl.Series("n", numbers, dtype=pl.Int64)]))
    held = [number for number in numbers if number is not None]
    if not held:
        assert found == []
        return
    [(name, low, high)] = found
    # In nanoseconds, as exact numbers.
    scale = {"ns": 1, "us": 1_000, "ms": 1_000_000}[unit]
    assert name == "at"
    assert low * 1_000 <= min(held) * scale < (low + 1) * 1_000
    assert (high - 1) * 1_000 <= max(held) * scale < high * 1_000
