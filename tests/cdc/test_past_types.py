"""Columns of a captured table have the types of the source's, and are text where a value is beyond them."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import polars as pl
import pytest

import millstream as ms
from millstream.cdc import Column, Shape, table

from .past import Made, shape

TYPED = [
    ("int", "bigint", [2**63 - 1, None], pl.Int64, [2**63 - 1, None]),
    ("uint", "bigint unsigned", [2**64 - 1, 0], pl.UInt64, [2**64 - 1, 0]),
    ("int", "numeric", [2**70, 1], pl.String, [str(2**70), "1"]),
    ("float", "double", [1.5, "-Infinity"], pl.Float64, [1.5, float("-inf")]),
    ("bool", "boolean", [True, None], pl.Boolean, [True, None]),
    ("decimal", "numeric(10,4)", ["1.5", "-2"], pl.Decimal(38, 4), [Decimal("1.5"), Decimal(-2)]),
    ("decimal", "numeric", ["0.125", "-20"], pl.Decimal(38, 3), [Decimal("0.125"), Decimal(-20)]),
    ("decimal", "numeric", ["NaN", "1"], pl.String, ["NaN", "1"]),
    ("decimal", "numeric", ["1" * 50, None], pl.String, ["1" * 50, None]),
    ("text", "text", ["a\n\x00\u2028", ""], pl.String, ["a\n\x00\u2028", ""]),
    ("bytes", "bytea", ["AP8=", ""], pl.Binary, [b"\x00\xff", b""]),
    ("uuid", "uuid", ["0b9f0f4e-0000-0000-0000-000000000000", None], pl.String, None),
    ("json", "json", ['{"a": 1.0}', None], pl.String, None),
    ("date", "date", ["2024-02-29", "0001-01-01"], pl.Date, [date(2024, 2, 29), date(1, 1, 1)]),
    ("date", "date", ["infinity", "2024-02-29"], pl.String, None),
    ("date", "date", ["0044-03-15 BC", "10000-01-01"], pl.String, None),
    ("time", "time", ["23:59:59.999999", "00:00:00"], pl.Time, [time(23, 59, 59, 999999), time()]),
    ("time", "time", ["24:00:00", "00:00:00"], pl.String, None),
    ("timestamp", "", ["2024-02-29T12:00:00.5", None], pl.Datetime("us"),
     [datetime(2024, 2, 29, 12, 0, 0, 500000), None]),
    ("timestamptz", "", ["2024-02-29T12:00:00Z"], pl.Datetime("us", "UTC"), [datetime(2024, 2, 29, 12, tzinfo=UTC)]),
    ("timestamptz", "", ["2024-02-29T12:00:00+01:00"], pl.Datetime("us", "UTC"),
     [datetime(2024, 2, 29, 11, tzinfo=UTC)]),
    ("timestamptz", "", ["-infinity", None], pl.String, None),
    ("duration", "time", ["-838:59:59.5", "00:00:01"], pl.Duration("us"),
     [-timedelta(hours=838, minutes=59, seconds=59.5), timedelta(seconds=1)]),
    ("int[]", "int[]", [[1, None], []], pl.List(pl.Int64), [[1, None], []]),
    ("int[]", "int[]", [[[1], [2]], [3]], pl.String, ["[[1],[2]]", "[3]"]),
    ("decimal[]", "numeric[]", [["1.5", "NaN"], None], pl.List(pl.String), [["1.5", "NaN"], None]),
    ("date[]", "date[]", [["2024-01-01"], None], pl.List(pl.Date), [[date(2024, 1, 1)], None]),
    ("range:int", "int4range", ["[1,5)", "empty"], pl.String, None),
    ("any", "", [1, {"$bytes": "AA=="}], pl.String, ["1", "\x00"]),
    ("any", "", [{"$real": "Infinity"}, 2], pl.Float64, [float("inf"), 2.0]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "type", "values", "dtype", "expected"), TYPED)
def test_a_column_has_its_type(kind: str, type: str, values: list[Any], dtype: Any, expected: list[Any] | None) -> None:
    made = Made(Shape((Column("id", "int"), Column("v", kind, type)), ("id",)))
    made.read(*[{"id": n, "v": value} for n, value in enumerate(values)])
    for _ in range(2):
        seen = table(made.log, "users")["v"]
        assert seen.dtype == dtype
        assert seen.to_list() == (values if expected is None else expected)
        ms.cdc.image(made.log, "users")


@pytest.mark.parametrize("kind", ["int", "decimal", "date", "bytes", "any", "int[]"])
def test_an_empty_table_has_its_columns(kind: str) -> None:
    made = Made(shape(("id", "int"), ("v", kind)))
    made.read()
    seen = table(made.log, "users")
    assert seen.columns == ["id", "v"]
    assert seen.height == 0


def test_a_retyped_column_keeps_the_values_of_the_rows_that_were_there() -> None:
    made = Made(shape(("id", "int"), ("v", "int")))
    made.read({"id": 1, "v": 7})
    made.reshape(shape(("id", "int"), ("v", "decimal")), retyped={"v": "numeric"})
    made.write(made.change("INSERT", None, {"id": 2, "v": "1.5"}))
    assert table(made.log, "users").rows() == [(1, Decimal(7)), (2, Decimal("1.5"))]
    made.reshape(shape(("id", "int"), ("v", "text")), retyped={"v": "text"})
    made.write(made.change("INSERT", None, {"id": 3, "v": "x"}))
    assert table(made.log, "users")["v"].to_list() == ["7", "1.5", "x"]


def test_a_value_beyond_its_kind_leaves_the_others_as_they_were() -> None:
    made = Made(shape(("id", "int"), ("v", "float"), ("t", "text")))
    made.read({"id": 1, "v": "NaN", "t": "a"}, {"id": 2, "v": 0.5, "t": None})
    made.write(made.change("INSERT", None, {"id": 3, "v": [1], "t": 7}))
    seen = table(made.log, "users")
    assert seen["v"].to_list() == ["nan", "0.5", "[1]"]
    assert seen["t"].to_list() == ["a", None, "7"]
    assert seen["id"].to_list() == [1, 2, 3]


def test_moments_go_by_the_commits_time_where_runs_have_it() -> None:
    made = Made(shape(("id", "int"), ("n", "int")))
    micros = 1_700_000_000_000_000
    made.read({"id": 1, "n": 0})
    for n in range(1, 5):
        # The times of the changes say otherwise, and are not asked.
        made.write(made.change("UPDATE", None, {"id": 1, "n": n}), effective=micros + n * 1_000_000)
    assert made.log.table("users", at="2023-11-14T22:13:22Z").rows() == [(1, 2)]
    assert made.log.table("users", at="2023-11-14T22:13:22.999Z").rows() == [(1, 2)]
    assert made.log.table("users", at="2023-11-14T22:13:23Z").rows() == [(1, 3)]


def test_a_truncation_of_the_source_empties_a_table_and_it_stays_whole() -> None:
    made = Made(shape(("id", "int")))
    made.read({"id": 1})
    made.write(made.change("TRUNCATE"), made.change("INSERT", None, {"id": 2}))
    assert table(made.log, "users").rows() == [(2,)]
    made.write(made.change("TRUNCATE"))
    assert table(made.log, "users").rows() == []
    made.write(made.change("TRUNCATE"), made.change("READ", None, {"id": 3}), metadata={"snapshot": True})
    with pytest.raises(ms.NotCapturedYet):
        table(made.log, "users")
    made.complete()
    assert table(made.log, "users").rows() == [(3,)]


def test_rows_without_a_key_are_told_apart_by_all_that_they_hold() -> None:
    made = Made(shape(("a", "float"), ("b", "text"), key=()))
    made.read({"a": "NaN", "b": "x"}, {"a": "NaN", "b": "x"}, {"a": 1.0, "b": None})
    made.write(made.change("DELETE", {"a": "NaN", "b": "x"}))
    made.write(made.change("UPDATE", {"a": 1.0, "b": None}, {"a": 2.0, "b": {"$unchanged": True}}))
    seen = table(made.log, "users").sort("b", nulls_last=True)
    assert seen["b"].to_list() == ["x", None]
    assert seen["a"].to_list()[1] == 2.0


def test_damaged_changes_are_named() -> None:
    made = Made(shape(("id", "int")))
    made.read({"id": 1})
    made.log.append("users", ms.Plain("Change", {"operation": 5}))
    with pytest.raises(ms.DamagedLog, match="position 3"):
        table(made.log, "users")
