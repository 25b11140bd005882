"""Every type at its extremes: what the snapshot shows is what the stream tells, and Python's values lose nothing."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from math import inf
from typing import Any
from uuid import UUID

from millstream.cdc import Interval, Json, Range, decoded

from .conftest import Database

TYPES: dict[str, list[tuple[str, Any]]] = {
    "boolean": [("true", True), ("false", False)],
    "smallint": [("-32768", -32768)],
    "integer": [("2147483647", 2147483647)],
    "bigint": [("-9223372036854775808", -(2**63)), ("9223372036854775807", 2**63 - 1)],
    "real": [("1.1", 1.1), ("'-infinity'", -inf), ("3.4028235e38", 3.4028235e38)],
    "double precision": [("0.1", 0.1), ("1e308", 1e308), ("5e-324", 5e-324), ("'infinity'", inf)],
    "numeric": [
        ("'NaN'", "NaN"),
        ("'Infinity'", Decimal("Infinity")),
        ("1e-30", Decimal("0.000000000000000000000000000001")),
        ("123456789012345678901234567890.5", Decimal("123456789012345678901234567890.5")),
    ],
    "numeric(10,2)": [("1.5", Decimal("1.50"))],
    "text": [("''", ""), ("'é\"\\\n\t\u2028😀'", 'é"\\\n\t\u2028😀'), ("E'\\x01\\x7f'", "\x01\x7f")],
    "varchar(5)": [("'ab'", "ab")],
    "char(5)": [("'ab'", "ab   ")],
    "bytea": [("'\\x'", b""), ("'\\x00ff5c22'", b'\x00\xff\\"'), (f"'\\x{'ab' * 100}'", b"\xab" * 100)],
    "uuid": [("'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'", UUID("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"))],
    "date": [
        ("'2024-02-29'", date(2024, 2, 29)),
        ("'infinity'", "infinity"),
        ("'0044-03-15 BC'", "0044-03-15 BC"),
        ("'12345-01-01'", "12345-01-01"),
    ],
    "time": [("'23:59:59.999999'", time(23, 59, 59, 999999)), ("'24:00'", "24:00:00")],
    "timetz": [("'10:00+05:30'", time(10, 0, tzinfo=timezone(timedelta(hours=5, minutes=30))))],
    "timestamp": [
        ("'2024-01-15 10:29:00.12'", datetime(2024, 1, 15, 10, 29, 0, 120000)),
        ("'infinity'", "infinity"),
        ("'-infinity'", "-infinity"),
        ("'0044-03-15 BC'", "0044-03-15T00:00:00 BC"),
    ],
    "timestamptz": [
        ("'2024-01-15 10:29:00+05:30'", datetime(2024, 1, 15, 4, 59, tzinfo=UTC)),
        ("'infinity'", "infinity"),
        ("'10000-01-01 00:00:00Z'", "10000-01-01T00:00:00+00:00"),
        ("'0044-03-15 00:00:00Z BC'", "0044-03-15T00:00:00+00:00 BC"),
    ],
    "interval": [
        ("'1 year 2 mons 3 days 04:05:06.7'", Interval(14, 3, 14_706_700_000)),
        ("'-1 day +01:00'", Interval(0, -1, 3_600_000_000)),
        ("'-00:00:00.000001'", Interval(0, 0, -1)),
        ("'-178000000 years'", Interval(-178_000_000 * 12)),
        ("'0'", Interval()),
    ],
    "json": [("""'{"a" :  1.10}'""", Json('{"a" :  1.10}')), ("'null'", Json("null"))],
    "jsonb": [("""'{"b": [1, "\\u00e9\\""]}'""", Json('{"b": [1, "é\\""]}'))],
    "int4range": [("'[1,5)'", Range(1, 5)), ("'(,3]'", Range(None, 4, "()")), ("'empty'", Range(bounds="empty"))],
    "tstzrange": [
        (
            "'[2024-01-01 00:00Z, infinity)'",
            Range(datetime(2024, 1, 1, tzinfo=UTC), "infinity", "[)"),
        )
    ],
    "daterange": [("'[2024-01-01,2024-01-03]'", Range(date(2024, 1, 1), date(2024, 1, 4)))],
    "int[]": [("'{1,NULL,3}'", [1, None, 3]), ("'{{1,2},{3,4}}'", [[1, 2], [3, 4]]), ("'{}'", [])],
    "text[]": [("""array['a,b', '"q"', '', 'NULL', '{x}', 'é\\']""", ["a,b", '"q"', "", "NULL", "{x}", "é\\"])],
    "numeric[]": [("'{1.50,NaN}'", [Decimal("1.50"), "NaN"])],
    "timestamptz[]": [("'{2024-01-01 00:00Z}'", [datetime(2024, 1, 1, tzinfo=UTC)])],
    "double precision[]": [("'{0.1,NaN,-Infinity}'", [0.1, "nan", -inf])],
    "bytea[]": [("'{\"\\\\x00\"}'", '{"\\\\x00"}')],
    "mood": [("'so so'", "so so")],
    "mood[]": [("'{happy,\"so so\"}'", ["happy", "so so"])],
    "price": [("7.5", Decimal("7.50"))],
    "place": [("""row('a "b"', 1)""", '("a ""b""",1)')],
    "inet": [("'192.168.1.1'", "192.168.1.1"), ("'10.0.0.0/8'", "10.0.0.0/8")],
    "point": [("'(1.5,2)'", "(1.5,2)")],
    "bit(3)": [("B'101'", "101")],
    "money": [("12.5", "$12.50")],
    "tsvector": [("'a:1 b:2'", "'a':1 'b':2")],
    "oid": [("4294967295", 4294967295)],
}


def cells(value: Any) -> Any:
    """NaN equals itself here, and -0.0 is not 0.0."""
    if isinstance(value, list):
        return [cells(item) for item in value]
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, Decimal) and value.is_nan():
        return "NaN"
    return type(value).__name__, value


def test_every_type_at_its_extremes(shop: Database) -> None:
    shop.sql(
        "create type mood as enum ('happy', 'so so')",
        "create domain price as numeric(10,2) check (value > 0)",
        "create type place as (name text, floor int)",
    )
    columns, wanted, values = ["id int primary key"], [], []
    for type, examples in TYPES.items():
        for text, value in examples:
            columns.append(f"c{len(columns)} {type}")
            values.append(f"({text})::{type}")
            wanted.append(value)
    shop.sql(f"create table every ({', '.join(columns)})", f"insert into every values (1, {', '.join(values)})")
    shop.sql("insert into every values (2)")
    capture = shop.capture("every")
    capture.catch_up(shop.log)
    shop.sql(f"insert into every values (3, {', '.join(values)})", "insert into every values (4)")
    capture.catch_up(shop.log)
    found = {}
    for recorded in shop.log.read("every", types=["Change"]):
        after = decoded(recorded).after
        assert after is not None
        found[after["id"]] = list(after.values())[1:]
    assert found[2] == found[4] == [None] * len(wanted)
    kinds = [type for type, examples in TYPES.items() for _ in examples]
    for i, (kind, value) in enumerate(zip(kinds, wanted, strict=True)):
        expected = cells(Decimal("NaN") if value == "NaN" and kind == "numeric" else value)
        if kind == "numeric[]":
            expected = [cells(Decimal("1.50")), "NaN"]
        if kind.startswith("double precision["):
            expected = ["0.1", "nan", "-inf"]
        assert (kind, cells(found[1][i])) == (kind, expected), "in the snapshot"
        assert (kind, cells(found[3][i])) == (kind, expected), "in the stream"


def test_the_text_of_a_value_is_the_same_in_snapshot_and_stream(shop: Database) -> None:
    shop.sql("create table t (id int primary key, a timestamptz, b jsonb, c numeric, d float4, e text[], f interval)")
    values = "'2024-01-01 00:00:00.100Z', '{\"a\": 1.0}', 1.10, 0.1, array['x y', 'z'], '1 mon'"
    shop.sql(f"insert into t values (1, {values})")
    capture = shop.capture("t")
    capture.catch_up(shop.log)
    shop.sql(f"insert into t values (1, {values}) on conflict (id) do update set id = 1")
    shop.sql("delete from t", f"insert into t values (1, {values})")
    capture.catch_up(shop.log)
    rows = [e.data["after"] for e in shop.log.read("t", types=["Change"]) if e.data["after"]]
    assert len(rows) == 3
    assert rows[0] == rows[1] == rows[2]


def test_a_zero_keeps_its_sign_in_the_stream(shop: Database) -> None:
    shop.sql("create table t (id int primary key, a float8)")
    capture = shop.capture("t")
    capture.catch_up(shop.log)
    shop.sql("insert into t values (1, '-0')")
    capture.catch_up(shop.log)
    [change] = [decoded(e) for e in shop.log.read("t", types=["Change"])]
    assert change.after is not None
    assert repr(change.after["a"]) == "-0.0"
