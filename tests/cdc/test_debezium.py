"""Debezium's envelope: each field as Debezium's documentation has it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from datetime import time as clock
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

import millstream as ms
from millstream.cdc import Interval, Json, Range, Unchanged, debezium, debezium_events

from .following import NOON, Source, change, put, shape

USERS = shape(("id", "int"), ("email", "text"))


@pytest.fixture
def log(tmp_path: Path) -> Iterator[ms.Log]:
    with ms.open(str(tmp_path / "log.db")) as log:
        yield log


def last(log: ms.Log) -> ms.Recorded:
    return next(log.read(backwards=True))


def test_the_envelope_of_a_change_of_postgresql(log: ms.Log) -> None:
    about = {"database": "shop", "lsn": 24023128, "sequence": [[0, 0]], "slot": "shop_slot", "xid": 555}
    put(log, USERS, change("UPDATE", {"id": 1, "email": "a"}, {"id": 1, "email": "b"}, USERS), metadata=about)
    recorded = last(log)
    envelope = debezium(recorded)
    assert json.loads(json.dumps(envelope)) == envelope
    version = envelope["source"].pop("version")
    assert isinstance(version, str)
    noon = int(NOON.timestamp())
    assert envelope == {
        "before": {"id": 1, "email": "a"},
        "after": {"id": 1, "email": "b"},
        "source": {
            "connector": "postgresql",
            "name": "shop_slot",
            "ts_ms": noon * 1_000,
            "ts_us": noon * 1_000_000,
            "ts_ns": noon * 1_000_000_000,
            "snapshot": "false",
            "db": "shop",
            "sequence": '[null,"24023128"]',
            "schema": "public",
            "table": "users",
            "txId": 555,
            "lsn": 24023128,
            "xmin": None,
            "origin": None,
            "origin_lsn": None,
            "log_position": 1,
        },
        "op": "u",
        "ts_ms": recorded.recorded // 1_000,
        "ts_us": recorded.recorded,
        "ts_ns": recorded.recorded * 1_000,
        "transaction": None,
    }


@pytest.mark.parametrize(
    ("operation", "op", "snapshot"),
    [("INSERT", "c", "false"), ("READ", "r", "true"), ("DELETE", "d", "false"), ("TRUNCATE", "t", "false")],
)
def test_each_operation_has_its_letter(log: ms.Log, operation: str, op: str, snapshot: str) -> None:
    row = {"id": 1, "email": "a"}
    before = row if operation == "DELETE" else None
    after = row if operation in ("INSERT", "READ") else None
    put(log, USERS, change(operation, before, after, USERS))
    envelope = debezium(last(log))
    assert (envelope["op"], envelope["source"]["snapshot"]) == (op, snapshot)
    assert (envelope["before"], envelope["after"]) == (before, after)


VALUES: list[tuple[str, str, Any, Any]] = [
    ("bool", "boolean", True, True),
    ("int", "bigint", -(2**63), -(2**63)),
    ("float", "double precision", 0.1, 0.1),
    ("float", "double precision", float("nan"), "NaN"),
    ("decimal", "numeric(10,2)", Decimal("12.50"), "12.50"),
    ("decimal", "numeric", Decimal("1E+3"), "1000"),
    ("decimal", "numeric", Decimal("NaN"), "NAN"),
    ("text", "text", "naïve", "naïve"),
    ("bytes", "bytea", b"\xde\xad", "3q0="),
    ("uuid", "uuid", UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    ("json", "jsonb", Json('{"a": 1.0}'), '{"a": 1.0}'),
    ("date", "date", date(1970, 1, 10), 9),
    ("date", "date", date(1969, 12, 31), -1),
    ("date", "date", "0044-03-15 BC", "0044-03-15 BC"),
    ("time", "time without time zone", clock(0, 0, 1, 5), 1_000_005),
    ("time", "time(3) without time zone", clock(0, 0, 1, 5_000), 1_005),
    ("timetz", "time with time zone", clock(13, 51, 30, 123_000, UTC), "13:51:30.123Z"),
    ("timestamp", "timestamp without time zone", datetime(2018, 6, 20, 15, 13, 16, 945104), 1529507596945104),
    ("timestamp", "timestamp(3) without time zone", datetime(2018, 6, 20, 15, 13, 16, 945000), 1529507596945),
    ("timestamp", "timestamp without time zone", "infinity", 9223372036825200000),
    ("timestamp", "timestamp without time zone", "-infinity", -9223372036832400000),
    ("timestamp", "datetime", datetime(2018, 6, 20, 15, 13, 16), 1529507596000),
    ("timestamp", "datetime(6)", datetime(2018, 6, 20, 15, 13, 16, 945104), 1529507596945104),
    (
        "timestamptz",
        "timestamp with time zone",
        datetime(2018, 6, 20, 13, 37, 3, tzinfo=UTC),
        "2018-06-20T13:37:03.000000Z",
    ),
    ("timestamptz", "timestamptz", datetime(2018, 6, 20, 13, 37, 3, 500_000, UTC), "2018-06-20T13:37:03.500000Z"),
    (
        "timestamptz",
        "timestamp(3) with time zone",
        datetime(2018, 6, 20, 13, 37, 3, 500_000, UTC),
        "2018-06-20T13:37:03.500Z",
    ),
    ("timestamptz", "timestamp", datetime(2018, 6, 20, 13, 37, 3, tzinfo=UTC), "2018-06-20T13:37:03Z"),
    ("duration", "time", timedelta(hours=30, microseconds=1), 108_000_000_001),
    ("interval", "interval", Interval(14, 3, 14_706_780_000), 37_091_106_780_000),
    ("range:int", "int4range", Range(1, 5, "[)"), "[1,5)"),
    ("int[]", "integer[]", [1, None, 3], [1, None, 3]),
    ("decimal[]", "numeric[]", [Decimal("1.5")], ["1.5"]),
    ("text", "text", Unchanged, "__debezium_unavailable_value"),
    ("bytes", "bytea", Unchanged, "X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ=="),
    ("text", "text", None, None),
]


@pytest.mark.parametrize(("kind", "type", "value", "told"), VALUES)
def test_values_are_told_as_debeziums_json_converter_does(
    log: ms.Log, kind: str, type: str, value: Any, told: Any
) -> None:
    one = shape(("id", "int"), ("v", kind, type))
    put(log, one, change("INSERT", None, {"id": 1, "v": value}, one))
    found = debezium(last(log))["after"]["v"]
    assert (found, found.__class__) == (told, told.__class__)
    json.dumps(found, allow_nan=False)


def test_a_row_of_which_only_the_key_is_known_has_all_columns(log: ms.Log) -> None:
    put(log, USERS, change("DELETE", {"id": 1}, None, USERS))
    assert debezium(last(log))["before"] == {"id": 1, "email": None}


def test_a_change_of_the_key_is_told_as_debezium_tells_it(log: ms.Log) -> None:
    put(log, USERS, change("UPDATE", {"id": 1, "email": "a"}, {"id": 2, "email": "a"}, USERS))
    assert debezium(last(log))["op"] == "u"
    assert [(e["op"], e["before"], e["after"]) for e in debezium_events(last(log))] == [
        ("d", {"id": 1, "email": "a"}, None),
        ("c", None, {"id": 2, "email": "a"}),
    ]
    put(log, USERS, change("UPDATE", {"id": 2, "email": "a"}, {"id": 2, "email": "b"}, USERS))
    assert [e["op"] for e in debezium_events(last(log))] == ["u"]


def test_a_table_outside_of_public_tells_its_schema(log: ms.Log) -> None:
    put(
        log, USERS, change("INSERT", None, {"id": 1, "email": "a"}, USERS, "sales.users"), metadata={"lsn": 1, "xid": 2}
    )
    source = debezium(last(log))["source"]
    assert (source["schema"], source["table"], source["txId"]) == ("sales", "users", 2)


def test_changes_of_sqlite_have_one_too(tmp_path: Path) -> None:
    source = Source(tmp_path, "CREATE TABLE users (id INTEGER PRIMARY KEY, v)")
    source.sql("INSERT INTO users VALUES (1, x'dead'), (2, 9e999), (3, 1.5), (4, CAST(x'ff' AS TEXT))")
    found = [debezium(e) for e in source.log.read("users", types=[ms.Change])]
    assert [e["after"]["v"] for e in found] == ["3q0=", "Infinity", 1.5, "/w=="]
    assert {e["source"]["connector"] for e in found} == {"sqlite"}
    with pytest.raises(ms.UsageError, match="no change"):
        debezium(next(source.log.read("users", types=["SnapshotCompleted"])))
    source.close()


def test_a_change_of_mysql_tells_its_place_in_the_servers_log(log: ms.Log) -> None:
    about = {"gtid": "0-1-7", "position": ["binlog.000002", 512], "sequence": [[0, 0]], "source": 1}
    put(log, USERS, change("INSERT", None, {"id": 1, "email": "a"}, USERS), metadata=about)
    source = debezium(last(log))["source"]
    assert (source["connector"], source["file"], source["pos"], source["gtid"]) == (
        "mysql",
        "binlog.000002",
        512,
        "0-1-7",
    )


def test_a_function_gets_what_debezium_would_have_sent(log: ms.Log) -> None:
    put(log, USERS, change("INSERT", None, {"id": 1, "email": "a"}, USERS))
    put(log, USERS, change("UPDATE", {"id": 1, "email": "a"}, {"id": 2, "email": "a"}, USERS))
    seen: list[dict[str, Any]] = []
    ms.sync(log, "users", ms.Callback(seen.append, name="old", envelope="debezium"), start=False).catch_up()
    assert [(e["op"], e["before"], e["after"]) for e in seen] == [
        ("c", None, {"id": 1, "email": "a"}),
        ("d", {"id": 1, "email": "a"}, None),
        ("c", None, {"id": 2, "email": "a"}),
    ]
    with pytest.raises(ms.UsageError, match="no envelope"):
        ms.Callback(print, envelope="avro")  # type: ignore[arg-type]
