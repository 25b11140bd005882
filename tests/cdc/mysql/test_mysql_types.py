"""Every type at its extremes: what the snapshot shows is what the stream tells, and Python's values lose nothing."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from millstream.cdc import decoded
from millstream.cdc.shape import shape_of

from .conftest import MYSQLD, Shop, only_mariadb, only_mysql

LONGEST = timedelta(hours=838, minutes=59, seconds=59)

TYPES: dict[str, list[tuple[str, Any]]] = {
    "tinyint": [("-128", -128), ("127", 127)],
    "tinyint unsigned": [("255", 255)],
    "bool": [("true", 1)],
    "smallint": [("-32768", -32768)],
    "smallint unsigned": [("65535", 65535)],
    "mediumint": [("-8388608", -8388608), ("8388607", 8388607)],
    "mediumint unsigned": [("16777215", 16777215)],
    "int": [("-2147483648", -2147483648)],
    "int unsigned": [("4294967295", 4294967295)],
    "int(8) unsigned zerofill": [("42", 42)],
    "bigint": [("-9223372036854775808", -(2**63)), ("9223372036854775807", 2**63 - 1)],
    "bigint unsigned": [("18446744073709551615", 2**64 - 1)],
    "decimal(65,30)": [
        (f"-{'9' * 35}.{'9' * 30}", Decimal(f"-{'9' * 35}.{'9' * 30}")),
        ("0.000000000000000000000000000001", Decimal("0.000000000000000000000000000001")),
        ("0", Decimal("0E-30")),
    ],
    "decimal(10,2)": [("-0.05", Decimal("-0.05")), ("99999999.99", Decimal("99999999.99"))],
    "decimal(12,2) unsigned zerofill": [("1234567890.10", Decimal("1234567890.10"))],
    "decimal(20,0)": [("-12345678901234567890", Decimal("-12345678901234567890"))],
    "decimal(9,9)": [("-0.123456789", Decimal("-0.123456789"))],
    "decimal(18,9)": [("-123456789.000000001", Decimal("-123456789.000000001"))],
    "float": [("1.1", 1.1), ("-3.402823466e38", -3.4028235e38), ("16777217", 16777216.0), ("1e-30", 1e-30)],
    "float(10,2)": [("12345.67", 12345.67)],
    "double": [
        ("0.1", 0.1),
        ("-1.7976931348623157e308", -1.7976931348623157e308),
        ("2.2250738585072014e-308", 2.2250738585072014e-308),
    ],
    "bit(1)": [("b'1'", 1)],
    "bit(13)": [("b'1000000000001'", 4097)],
    "bit(64)": [("b'" + "1" * 64 + "'", 2**64 - 1)],
    "year": [("1901", 1901), ("2155", 2155), ("0", 0)],
    "date": [
        ("'1000-01-01'", date(1000, 1, 1)),
        ("'9999-12-31'", date(9999, 12, 31)),
        ("'0000-00-00'", "0000-00-00"), ("'2024-00-15'", "2024-00-15"),
    ],
    "time": [("'838:59:59'", LONGEST), ("'-838:59:59'", -LONGEST), ("'00:00:00'", timedelta(0))],
    "time(1)": [("'-00:00:00.5'", timedelta(microseconds=-500_000))],
    "time(3)": [("'-12:34:56.789'", -timedelta(hours=12, minutes=34, seconds=56, milliseconds=789))],
    "time(6)": [
        ("'-838:59:58.999999'", -LONGEST + timedelta(microseconds=1)),
        ("'-00:00:00.000001'", timedelta(microseconds=-1)),
    ],
    "datetime": [("'1000-01-01 00:00:00'", datetime(1000, 1, 1)), ("'0000-00-00 00:00:00'", "0000-00-00T00:00:00")],
    "datetime(2)": [("'2024-02-29 23:59:59.98'", datetime(2024, 2, 29, 23, 59, 59, 980_000))],
    "datetime(5)": [("'2024-02-29 23:59:59.00098'", datetime(2024, 2, 29, 23, 59, 59, 980))],
    "datetime(6)": [("'9999-12-31 23:59:59.999999'", datetime(9999, 12, 31, 23, 59, 59, 999_999))],
    "timestamp null": [
        ("'2038-01-19 03:14:07'", datetime(2038, 1, 19, 3, 14, 7, tzinfo=UTC)),
        ("'1970-01-01 00:00:01'", datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)),
        ("'0000-00-00 00:00:00'", "0000-00-00T00:00:00Z"),
    ],
    "timestamp(3) null": [("'2024-01-15 10:29:00.123'", datetime(2024, 1, 15, 10, 29, 0, 123_000, tzinfo=UTC))],
    "char(5)": [("'ab'", "ab"), ("'é😀'", "é😀")],
    "char(255)": [("'x'", "x")],
    "varchar(100)": [("''", ""), ("'é\"\\\\\\n\\t\u2028😀'", 'é"\\\n\t\u2028😀'), ("x'01027f'", "\x01\x02\x7f")],
    "varchar(1000)": [("repeat('é', 1000)", "é" * 1000)],
    "varchar(20) character set latin1": [("'é€ÿ'", "é€ÿ"), ("'plain'", "plain")],
    "varchar(20) character set utf16": [("'é😀a'", "é😀a")],
    "varchar(20) character set koi8r": [("'Привет'", "Привет")],
    "text character set latin1": [("'naïve'", "naïve")],
    "tinytext": [("repeat('a', 255)", "a" * 255)],
    "mediumtext": [("repeat('b', 70000)", "b" * 70_000)],
    "longtext": [("'long'", "long")],
    "binary(4)": [("x'00ff0000'", b"\x00\xff\x00\x00"), ("''", b"\0\0\0\0")],
    "varbinary(300)": [("x'00ff5c22'", b'\x00\xff\\"'), ("''", b"")],
    "blob": [("repeat(x'ab', 1000)", b"\xab" * 1000)],
    "longblob": [("x''", b"")],
    "enum('happy','so so','l''été','a,b')": [("'happy'", "happy"), ("'l''été'", "l'été"), ("'a,b'", "a,b"), ("''", "")],
    "set('a','b','c d')": [("'a,c d'", ["a", "c d"]), ("''", [])],
    "set(" + ",".join(f"'v{i}'" for i in range(64)) + ")": [("'v0,v63'", ["v0", "v63"])],
    "point": [("point(1.5, -2)", bytes.fromhex("000000000101000000000000000000f83f00000000000000c0"))],
}  # fmt: skip

OF_MARIADB: dict[str, list[tuple[str, Any]]] = {
    "uuid": [
        ("'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'", UUID("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11")),
        ("'019ab7f2-3c4d-7abc-8def-0123456789ab'", UUID("019ab7f2-3c4d-7abc-8def-0123456789ab")),
        ("'00000000-0000-0000-0000-000000000000'", UUID(int=0)),
    ],
    "inet6": [("'::1'", "::1"), ("'fe80::1:0'", "fe80::1:0"), ("'::ffff:1.2.3.4'", "::ffff:1.2.3.4"), ("'::'", "::")],
    "json": [("""'{"a" :  1.10}'""", '{"a" :  1.10}')],
    "text compressed": [("repeat('é', 400)", "é" * 400), ("'short'", "short"), ("''", "")],
    "varbinary(900) compressed": [("repeat('a', 900)", b"a" * 900)],
}

DOCUMENTS = [
    "null", "true", "1", "-32769", "18446744073709551615", "-9223372036854775808", "1.5", "1e300", "1e-7", "0.1",
    "\"é\\\"\\n\"",
    "[]", "{}", '{"b": 1, "aa": [1, 2.0, null, "x", {"c": false}]}', "[70000, -70000, 65535, 32768]",
    "[" + ",".join(f'"{"x" * 1000}{i}"' for i in range(80)) + "]",
]  # fmt: skip


def cells(value: Any) -> Any:
    """Values that equal only their like."""
    return [cells(item) for item in value] if isinstance(value, list) else (type(value).__name__, value)


def both(shop: Shop, types: dict[str, list[tuple[str, Any]]]) -> None:
    columns, wanted, kinds, texts = ["id int primary key"], [], [], []
    for type, examples in types.items():
        for text, value in examples:
            columns.append(f"c{len(columns)} {type}")
            texts.append(text)
            wanted.append(value)
            kinds.append(type)
    shop.sql("set sql_mode = ''", "set time_zone = '+00:00'", f"create table every ({', '.join(columns)})")
    values = ", ".join(texts)
    shop.sql(f"insert into every values (1, {values})", "insert into every (id) values (2)")
    capture = shop.capture("every")
    capture.catch_up(shop.log)
    shop.sql(f"insert into every values (3, {values})", "insert into every (id) values (4)")
    shop.sql("update every set id = 5 where id = 3", "update every set c1 = null where id = 5", "delete from every")
    capture.catch_up(shop.log)
    changes = [decoded(e) for e in shop.log.read("every", types=["Change"])]
    rows = [list(change.after.values())[1:] for change in changes if change.after]
    first, nulls, inserted, nulls_too, moved, updated = rows
    assert nulls == nulls_too == [None] * len(wanted)
    for i, (kind, value) in enumerate(zip(kinds, wanted, strict=True)):
        for name, row in (("in the snapshot", first), ("in the stream", inserted), ("after an update", moved)):
            assert (kind, cells(row[i])) == (kind, cells(value)), name
    assert updated == [None, *moved[1:]]
    before = [list(change.before.values())[1:] for change in changes if change.before]
    assert before[:2] == [inserted, moved]
    raw = [e.data["after"] for e in shop.log.read("every", types=["Change"]) if e.data["after"]]
    assert list(raw[0].values())[1:] == list(raw[2].values())[1:], "the same text in snapshot and stream"


def test_every_type_at_its_extremes(shop: Shop) -> None:
    both(shop, TYPES)


@only_mariadb
def test_the_types_of_mariadb_alone(shop: Shop) -> None:
    both(shop, OF_MARIADB)


@only_mysql
def test_documents_in_mysqls_binary_form_are_the_text_that_it_gives_for_them(shop: Shop) -> None:
    shop.sql("create table documents (id int primary key, j json)")
    for i, text in enumerate(DOCUMENTS):
        with shop.db.cursor() as cursor:
            cursor.execute("insert into documents values (%s, %s)", (i, text))
    shop.sql(
        """insert into documents values (100, json_object('d', cast('2024-01-15' as date), 't', cast('-12:34:56.5' as
        time(6)), 'dt', cast('2024-01-15 10:29:00.25' as datetime(6)), 'n', cast(-12.50 as decimal(10,2)),
        'b', x'00ff'))"""
    )
    capture = shop.capture("documents")
    capture.catch_up(shop.log)
    snapshot = {e.data["after"]["id"]: e.data["after"]["j"] for e in shop.log.read("documents", types=["Change"])}
    shop.sql("update documents set id = id + 1000")
    capture.catch_up(shop.log)
    stream = {e.data["after"]["id"] - 1000: e.data["after"]["j"] for e in shop.log.read("documents", types=["Change"])}
    stream = {id: text for id, text in stream.items() if id >= 0}
    assert stream == snapshot


def test_the_shape_names_the_types_as_the_source_does(shop: Shop) -> None:
    shop.sql(
        "create table typed (a int unsigned not null, b tinyint(1), c varchar(5) not null, d decimal(8,3) zerofill,"
        " e bigint(20), unique key (c, a), unique key (e))"
    )
    shop.sql("insert into typed values (1, 1, 'x', 1, null)")
    shop.capture("typed").catch_up(shop.log)
    run = next(iter(shop.log.runs("typed", types=["Change"])))
    shape = shape_of(run.schema)
    assert shape is not None
    assert [(c.name, c.kind, c.type) for c in shape.columns] == [
        ("a", "int", "int unsigned"), ("b", "int", "tinyint(1)"), ("c", "text", "varchar(5)"),
        ("d", "decimal", "decimal(8,3) unsigned"), ("e", "int", "bigint"),
    ]  # fmt: skip
    assert shape.key == ("c", "a")


@pytest.mark.parametrize("width", [1, 8, 9, 16, 17, 260])
def test_tables_of_every_width(shop: Shop, width: int) -> None:
    shop.sql(f"create table wide ({', '.join(f'c{i} int' for i in range(width))})")
    capture = shop.capture("wide")
    capture.catch_up(shop.log)
    rows = [[(i * 7 + n) % 1000 if (i + n) % 3 else None for i in range(width)] for n in range(4)]
    with shop.db.cursor() as cursor:
        cursor.executemany(f"insert into wide values ({','.join(['%s'] * width)})", rows)
    shop.sql("update wide set c0 = 5")
    capture.catch_up(shop.log)
    assert [list(after.values()) for op, _, after in shop.changes("wide") if after and op == "INSERT"] == rows
    updates = [(before, after) for op, before, after in shop.changes("wide") if op == "UPDATE"]
    assert [list(before.values()) for before, _ in updates if before] == [row for row in rows if row[0] != 5]


def test_generated_and_invisible_columns_are_told_with_their_values(shop: Shop) -> None:
    invisible = "secret int default 7" if MYSQLD else "secret int invisible default 7"
    shop.sql(
        "create table made (id int primary key, twice int as (id * 2) virtual, thrice int as (id * 3) stored,"
        f" {invisible})"
    )
    shop.sql("insert into made (id) values (1)")
    capture = shop.capture("made")
    capture.catch_up(shop.log)
    shop.sql("insert into made (id) values (2)", "update made set id = 3 where id = 2")
    capture.catch_up(shop.log)
    rows = [e.data["after"] for e in shop.log.read("made", types=["Change"])]
    assert [tuple(row.values()) for row in rows] == [(1, 2, 3, 7), (2, 4, 6, 7), (3, 6, 9, 7)]


def test_names_that_need_quotes(shop: Shop) -> None:
    shop.sql('create table `we"ird %s ``t` (`a"b` int primary key, `100%` varchar(10), `näme` int)')
    name = 'we"ird %s `t'
    shop.sql("insert into `we\"ird %s ``t` values (1, 'x', 1)")
    capture = shop.capture(name)
    capture.catch_up(shop.log)
    shop.sql("update `we\"ird %s ``t` set `100%` = 'y'")
    capture.catch_up(shop.log)
    assert shop.changes(capture.stream(name)) == [
        ("UPDATE", {'a"b': 1, "100%": "x", "näme": 1}, {'a"b': 1, "100%": "y", "näme": 1})
    ]
