"""A scan answers every query as the same rows in memory do, and reads only what can matter."""

from datetime import UTC, datetime, time, timedelta

import polars as pl
import pytest
from polars.testing import assert_frame_equal

import millstream as ms

ROWS = pl.DataFrame({"user": [1, 2, 3] * 1_000, "kind": ["a", "b", "c"] * 1_000, "n": range(3_000)})
QUERIES = {
    "filter, then select": lambda rows: rows.filter(pl.col("kind") == "a").select("user"),
    "head, then filter": lambda rows: rows.head(5).filter(pl.col("user") == 2),
    "filter, then head": lambda rows: rows.filter(pl.col("user") == 2).head(5),
    "slice": lambda rows: rows.slice(2_995, 10),
    "tail": lambda rows: rows.tail(4),
    "sort and head": lambda rows: rows.sort("n", descending=True).head(5).select("kind"),
    "count": lambda rows: rows.select(pl.len()),
    "group": lambda rows: rows.group_by("kind").agg(pl.len(), pl.col("n").sum()).sort("kind"),
    "a computed column": lambda rows: rows.select((pl.col("n") + 1).alias("m")).filter(pl.col("m") == 5),
    "two filters": lambda rows: rows.filter(pl.col("user") > 1).head(100).filter(pl.col("kind") == "c"),
}


@pytest.fixture(scope="module")
def log():
    log = ms.open()
    for _ in range(3):
        log.append("clicks", ROWS, type="Click")
    return log


@pytest.mark.parametrize("engine", ["in-memory", "streaming"])
@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES)
def test_a_query_over_a_scan_is_the_query_over_its_rows(log, query, engine):
    rows = pl.concat([ROWS] * 3)
    got = query(log.scan("clicks")).collect(engine=engine)
    assert got.sort(pl.all()).equals(query(rows.lazy()).collect().sort(pl.all()))


def test_a_scan_by_time_reads_no_body_that_lies_outside(monkeypatch):
    log = ms.open()
    for day in range(1, 29):
        rows = pl.DataFrame({"n": range(100)}).with_columns(
            ts=pl.datetime(2024, 2, day, time_zone="UTC") + pl.duration(minutes=pl.col("n"))
        )
        log.append("ticks", rows, type="Tick")
    read = []
    body = log.store.body
    monkeypatch.setattr(log.store, "body", lambda ref: read.append(ref) or body(ref))
    found = log.scan("ticks", by="ts", since="2024-02-10T00:00:00Z", until="2024-02-11T00:30:00Z").collect()
    assert found.height == 130
    assert len(read) == 2


def test_a_scan_by_what_is_no_time_is_refused(log):
    for by in ("user", "nothing"):
        with pytest.raises(ms.InvalidTime):
            log.scan("clicks", by=by)
    with pytest.raises(ms.StreamNotFound):
        log.scan("nowhere")


def test_a_scan_sees_the_log_as_it_was_when_it_was_made(log):
    log = ms.open()
    log.append("f", pl.DataFrame({"n": [1]}), type="Row")
    scan = log.scan("f")
    log.append("f", pl.DataFrame({"n": [2], "more": ["x"]}), type="Row")
    assert scan.collect().to_dict(as_series=False) == {"n": [1]}
    assert log.scan("f").collect().rows() == [(1, None), (2, "x")]


def test_values_of_frames_become_the_text_that_those_of_objects_become(home: str | None) -> None:
    moment = datetime(2024, 1, 1, 12, tzinfo=UTC)
    row = {
        "moment": moment, "span": timedelta(seconds=5), "day": moment.date(), "time": time(1, 2), "float": 1.0,
        "whole": 7, "truth": True, "list": [1, 2], "struct": {"x": moment}, "bytes": b"ab",
    }  # fmt: skip
    text = ms.Plain("Drifting", dict.fromkeys(row, "text"))
    with ms.open(home) as log:
        log.append("objects", [ms.Plain("Drifting", row), text])
        log.append("frames", pl.DataFrame([row]), type="Drifting")
        log.append("frames", text)
        found = log.scan("frames").collect()
        assert_frame_equal(found, log.scan("objects").collect())
        assert found["moment"].to_list() == ["2024-01-01T12:00:00Z", "text"]
        log.append("numbers", pl.DataFrame({"v": [float("nan"), float("-inf"), 0.5, None]}), type="Drifting")
        log.append("numbers", ms.Plain("Drifting", {"v": "text"}))
        assert log.scan("numbers").collect()["v"].to_list() == ["NaN", "-inf", "0.5", None, "text"]


def test_what_is_trimmed_while_a_scan_learns_its_columns_is_passed_over(monkeypatch):
    from millstream.log import scan

    quick, log = scan.quick_frame, ms.open()
    for n in range(5):
        log.append("t", [ms.Plain("T", {"n": n}), ms.Plain("T", {"n": n + 10})])

    def trimmed(*given):
        log.trim("t", keep=4)
        return quick(*given)

    monkeypatch.setattr(scan, "quick_frame", trimmed)
    assert log.scan("t").collect()["n"].to_list() == [3, 13, 4, 14]


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_times_at_the_end_of_their_type_are_kept_and_scanned_by(unit, home):
    ts = pl.Series([-(1 << 63) + 1, 0, (1 << 63) - 1], dtype=pl.Int64).cast(pl.Datetime(unit))
    with ms.open(home) as log:
        log.append("far", pl.DataFrame({"n": [0, 1, 2], "ts": ts}), type="FarTimes")
        assert log.scan("far").collect()["ts"].equals(ts)
        near = log.scan("far", since="1960-01-01T00:00:00Z", until="1980-01-01T00:00:00Z", by="ts")
        assert near.collect()["n"].to_list() == [1]
