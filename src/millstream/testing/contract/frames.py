"""What a log promises of frames: as they went in, whatever came before, with columns that come and go."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import Any

import polars as pl
import pytest

from ... import errors
from ...events import Plain
from ...log import Log
from .opening import Opening, click_frame


class Frames(Opening):
    """Frames, and scans of them."""

    def test_a_frame_comes_back_as_it_went_in(self, log: Log) -> None:
        frame = pl.DataFrame(
            {
                "i": [1, None, 3],
                "f": [1.5, float("nan"), None],
                "s": ["a", "ä\U0001f333", None],
                "b": [True, None, False],
                "raw": [b"\x00", b"", None],
                "d": [Decimal("1.10"), None, Decimal("-2")],
                "day": [date(2024, 1, 1), None, date(1900, 1, 1)],
                "list": [[1, 2], [], None],
                "deep": [{"a": 1, "b": "x"}, {"a": None, "b": "y"}, None],
                "nothing": [None, None, None],
            }
        )
        receipt = log.append("f", frame, type="Row")
        assert receipt.count == 3
        assert log.scan("f").collect().equals(frame)
        assert [e.data["s"] for e in log.read("f")] == ["a", "ä\U0001f333", None]
        log.verify()

    def test_a_long_frame_is_cut_into_runs_and_scanned_whole(self, log: Log) -> None:
        frame = click_frame(150_000)
        log.append("clicks", frame, type="Click")
        assert [run.count for run in log.runs("clicks")] == [65_536, 65_536, 18_928]
        assert log.scan("clicks").collect().equals(frame)
        assert log.scan("clicks").select(pl.len()).collect().item() == 150_000
        assert [e.data["user"] for e in log.read("clicks", since_version=65_536, limit=3)] == [65_535, 65_536, 65_537]

    def test_columns_may_come_and_go_between_frames(self, log: Log) -> None:
        log.append("f", pl.DataFrame({"a": [1], "b": ["x"]}), type="Row")
        log.append("f", pl.DataFrame({"a": [2], "c": [1.5]}), type="Row")
        assert log.scan("f").collect().rows() == [(1, "x", None), (2, None, 1.5)]

    def test_a_type_is_widened_where_nothing_is_lost_and_refused_otherwise(self, log: Log) -> None:
        log.append("f", pl.DataFrame({"a": pl.Series([1], dtype=pl.Int16)}), type="Row")
        log.append("f", pl.DataFrame({"a": [2**40]}), type="Row")
        assert log.scan("f").collect()["a"].to_list() == [1, 2**40]
        with pytest.raises(errors.SchemaConflict) as raised:
            log.append("f", pl.DataFrame({"a": ["text"]}), type="Row")
        assert (raised.value.stored, raised.value.given) == ("Int64", "String")
        assert log.head == 2

    def test_a_scan_of_columns_that_few_frames_have_keeps_every_row(self, log: Log) -> None:
        log.append("f", pl.DataFrame({"a": [1, 2, 3]}), type="Row")
        log.append("f", pl.DataFrame({"a": [4, 5], "c": [1, 2]}), type="Row")
        whole = log.scan("f", envelope=True).collect()
        assert whole["c"].to_list() == [None, None, None, 1, 2]
        for columns in (["c"], ["_position", "c"], ["_type"], ["c", "a"]):
            assert log.scan("f", envelope=True).select(columns).collect().equals(whole.select(columns))

    def test_what_a_stream_accepts_does_not_depend_on_the_order_of_others(self, log: Log) -> None:
        def frame(dtype: Any) -> pl.DataFrame:
            return pl.DataFrame({"a": pl.Series([1], dtype=dtype)})

        log.append("sensor-b", frame(pl.Int8), type="Row")
        for dtype in (pl.UInt32, pl.Float64, pl.Int8):
            log.append("sensor-a", frame(dtype), type="Row")
        assert log.scan("sensor-a").collect()["a"].to_list() == [1.0, 1.0, 1.0]
        with pytest.raises(errors.SchemaConflict, match="sensor-a"):
            log.append("sensor-a", frame(pl.Int64), type="Row")
        log.append("sensor-a", frame(pl.Int16), type="Other")

    def test_dictionaries_of_strings_are_text_at_any_depth(self, log: Log) -> None:
        frame = pl.DataFrame({"l": [["b", "a"]], "s": [{"x": "b"}]}).cast(
            {"l": pl.List(pl.Categorical), "s": pl.Struct({"x": pl.Categorical})}
        )
        log.append("f", frame, type="Row")
        log.append("f", pl.DataFrame({"l": [["c"]], "s": [{"x": "c"}]}), type="Row")
        assert log.scan("f").collect().rows() == [(["b", "a"], {"x": "b"}), (["c"], {"x": "c"})]
        log.verify()

    def test_a_frame_with_python_objects_is_refused(self, log: Log) -> None:
        with pytest.raises(errors.UnsupportedColumn):
            log.append("f", pl.DataFrame({"a": [object()]}), type="Row")
        with pytest.raises(errors.InvalidEvent):
            log.append("f", pl.DataFrame({"a": [1]}))
        assert log.head == 0

    def test_a_scan_by_event_time_takes_the_rows_in_the_half_open_range(self, log: Log) -> None:
        for start in range(0, 1000, 100):
            log.append("clicks", click_frame(100, start), type="Click")
        rows = log.scan("clicks", by="ts", since="2024-01-01T00:04:10Z", until="2024-01-01T00:05:00Z").collect()
        assert rows["user"].to_list() == list(range(250, 300))

    def test_a_scan_of_objects_is_the_union_of_their_fields(self, log: Log) -> None:
        log.append("s", [Plain("T", {"a": 1}), Plain("T", {"b": "x"})])
        assert log.scan("s", envelope=True).select("a", "b", "_position", "_version").collect().rows() == [
            (1, None, 1, 1),
            (None, "x", 2, 2),
        ]
