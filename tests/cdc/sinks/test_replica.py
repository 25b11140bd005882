"""The copy in another database equals the table, change by change, exactly once."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from datetime import UTC, date, datetime, timedelta
from datetime import time as clock
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest

import millstream as ms
from millstream.cdc import Interval, Json, Range, SchemaChanged, Unchanged, sync
from millstream.storage.sqlite.database import open_database

from ..following import NOON, Source, change, put, shape, until


class Copy:
    """A database that copies are kept in, and a look at them."""

    def __init__(self, url: str) -> None:
        self.url = url

    def rows(self, query: str = "select * from users order by 1") -> list[tuple[Any, ...]]:
        if self.url.startswith("sqlite"):
            db = open_database(self.url.removeprefix("sqlite:///"))
            try:
                return db.execute(query).fetchall()
            finally:
                db.close()
        with psycopg.connect(self.url) as connection:
            return connection.execute(query).fetchall()


@pytest.fixture(params=["sqlite", "postgres"])
def copy(request: pytest.FixtureRequest, tmp_path: Path) -> Copy:
    return Copy(request.getfixturevalue("postgres") if request.param == "postgres" else f"sqlite:///{tmp_path}/copy.db")


def source_of(folder: Path, create: str) -> Source:
    return Source(folder, create)


def follow(log: ms.Log, copy: Copy, **options: Any) -> int:
    followers = sync(log, "users", ms.Replica(copy.url, **options), start=False)
    count = followers.catch_up()
    assert followers.parked() == []
    return count


def test_a_copy_is_what_the_table_is(tmp_path: Path, copy: Copy) -> None:
    source = Source(tmp_path)
    source.sql("INSERT INTO users VALUES (1, 'ann@x'), (2, 'bob@x'), (3, NULL)")
    assert follow(source.log, copy) == 3
    assert copy.rows() == source.rows()
    source.sql("UPDATE users SET email = 'new' WHERE id = 1", "DELETE FROM users WHERE id = 2")
    source.sql("UPDATE users SET id = 77 WHERE id = 3", "INSERT INTO users VALUES (2, 'again')")
    source.sql("INSERT OR REPLACE INTO users VALUES (1, 'replaced')")
    follow(source.log, copy)
    assert copy.rows() == source.rows() == [(1, "replaced"), (2, "again"), (77, None)]
    assert follow(source.log, copy) == 0
    source.close()


def test_keys_may_swap_and_move_within_one_batch(tmp_path: Path, copy: Copy) -> None:
    source = Source(tmp_path)
    source.sql("INSERT INTO users VALUES (1, 'a'), (2, 'b'), (3, 'c')")
    source.sql("UPDATE users SET id = -id", "UPDATE users SET id = 4 + id", "UPDATE users SET email = email || id")
    follow(source.log, copy)
    assert copy.rows() == source.rows()
    source.close()


def test_composite_and_unicode_keys(tmp_path: Path, copy: Copy) -> None:
    columns = """"Straße '" TEXT, "n""r" INTEGER, "漢" TEXT, PRIMARY KEY ("Straße '", "n""r")"""
    source = Source(tmp_path, f"CREATE TABLE users ({columns})")
    rows = [("Ä", 1, "x"), ("Ä", 2, "y"), ("ä\u0308", 1, "\U0001f333"), ("%s ? $1 :n", 3, "';--")]
    source.db.executemany("INSERT INTO users VALUES (?, ?, ?)", rows)
    source.sql('UPDATE users SET 漢 = \'変\' WHERE "n""r" = 1', 'DELETE FROM users WHERE "n""r" = 2')
    follow(source.log, copy)
    assert sorted(copy.rows("select * from users")) == sorted(source.rows())
    source.close()


def test_tables_without_a_key_keep_equal_rows(tmp_path: Path, copy: Copy) -> None:
    source = Source(tmp_path, "CREATE TABLE users (a, b)")
    source.sql("INSERT INTO users VALUES (1, 'x'), (1, 'x'), (1, NULL), (2, 'y')")
    source.sql("DELETE FROM users WHERE rowid = 1", "UPDATE users SET b = 'z' WHERE b IS NULL")
    follow(source.log, copy)
    query = "select a, b from users order by a, b"
    assert copy.rows(query) == source.rows(query) == [(1, "x"), (1, "z"), (2, "y")]
    source.close()


def test_columns_that_come_go_and_are_renamed(log: ms.Log, copy: Copy) -> None:
    old = shape(("id", "int"), ("mail", "text"), ("gone", "int"))
    new = shape(("id", "int"), ("email", "text"), ("age", "int"))
    put(log, old, *(change("READ", None, {"id": i, "mail": f"u{i}", "gone": i}, old) for i in (1, 2)))
    follow(log, copy)
    put(
        log,
        new,
        SchemaChanged(
            table="users", columns=["id", "email", "age"], added={"age": 18}, dropped=["gone"],
            renamed={"mail": "email"}, timestamp=NOON,
        ),
        change("UPDATE", None, {"id": 2, "email": "b", "age": 20}, new),
        change("INSERT", None, {"id": 3, "email": "c", "age": None}, new),
    )  # fmt: skip
    follow(log, copy)
    assert copy.rows("select id, email, age from users order by id") == [(1, "u1", 18), (2, "b", 20), (3, "c", None)]
    assert [row[:1] for row in copy.rows("select * from users where id = 1")] == [(1,)]


def test_a_column_added_at_a_sqlite_source_is_added_with_its_default(tmp_path: Path, copy: Copy) -> None:
    source = Source(tmp_path)
    source.sql("INSERT INTO users VALUES (1, 'a')", "ALTER TABLE users ADD COLUMN age INTEGER DEFAULT 7")
    source.sql("INSERT INTO users VALUES (2, 'b', 3)")
    follow(source.log, copy)
    assert copy.rows() == source.rows() == [(1, "a", 7), (2, "b", 3)]
    source.close()


def test_a_truncate_empties_the_copy(log: ms.Log, copy: Copy) -> None:
    users = shape(("id", "int"), ("email", "text"))
    put(log, users, *(change("READ", None, {"id": i, "email": "a"}, users) for i in range(5)))
    follow(log, copy)
    put(log, users, change("INSERT", None, {"id": 7, "email": "b"}, users), change("TRUNCATE", None, None, users))
    put(log, users, change("INSERT", None, {"id": 9, "email": "c"}, users))
    follow(log, copy)
    assert copy.rows() == [(9, "c")]


def test_values_that_an_update_does_not_tell_stay_as_they_are(log: ms.Log, copy: Copy) -> None:
    users = shape(("id", "int"), ("bio", "text"), ("n", "int"))
    long = "b" * 5_000
    put(log, users, change("READ", None, {"id": 1, "bio": long, "n": 1}, users))
    put(log, users, change("READ", None, {"id": 2, "bio": long, "n": 1}, users))
    follow(log, copy)
    # Told of none, of one that is new in the same batch, and of one whose key changes.
    put(log, users, change("UPDATE", None, {"id": 1, "bio": Unchanged, "n": 2}, users))
    put(log, users, change("INSERT", None, {"id": 3, "bio": "new", "n": 1}, users))
    put(log, users, change("UPDATE", None, {"id": 3, "bio": Unchanged, "n": 2}, users))
    put(log, users, change("UPDATE", {"id": 2}, {"id": 20, "bio": Unchanged, "n": 2}, users))
    put(log, users, change("UPDATE", {"id": 20}, {"id": 21, "bio": Unchanged, "n": 3}, users))
    follow(log, copy)
    assert copy.rows() == [(1, long, 2), (3, "new", 2), (21, long, 3)]


ALL = [
    ("b", "bool", True, 1),
    ("i", "int", -(2**63), -(2**63)),
    ("f", "float", 0.1, 0.1),
    ("d", "decimal", Decimal("123456789012345678901234567890.0123456789"), "123456789012345678901234567890.0123456789"),
    ("t", "text", "naïve 漢字 \U0001f333 \\ \" ' {,}", "naïve 漢字 \U0001f333 \\ \" ' {,}"),
    ("y", "bytes", bytes(range(256)), bytes(range(256))),
    ("u", "uuid", UUID(int=7), str(UUID(int=7))),
    ("da", "date", date(1, 1, 1), "0001-01-01"),
    ("ti", "time", clock(23, 59, 59, 999999), "23:59:59.999999"),
    ("ts", "timestamp", datetime(2024, 1, 15, 10, 30, 0, 1), "2024-01-15T10:30:00.000001"),
    ("tz", "timestamptz", datetime(2024, 1, 15, 10, 30, tzinfo=UTC), "2024-01-15T10:30:00Z"),
    ("du", "duration", timedelta(hours=30, microseconds=5), "30:00:00.000005"),
    ("j", "json", Json('{"a": 1.00}'), '{"a": 1.00}'),
    ("l", "text[]", ["a", None, 'q"\\,{}', "NULL", ""], '["a",null,"q\\"\\\\,{}","NULL",""]'),
    ("ll", "int[]", [[1, 2], [3, 4]], "[[1,2],[3,4]]"),
]


def test_every_kind_of_value_arrives(log: ms.Log, copy: Copy) -> None:
    all = shape(("id", "int"), *((name, kind) for name, kind, _, _ in ALL))
    values = {name: value for name, _, value, _ in ALL}
    put(log, all, change("INSERT", None, {"id": 1, **values}, all))
    put(log, all, change("INSERT", None, {"id": 2, **dict.fromkeys(values)}, all))
    follow(log, copy)
    first, second = copy.rows()
    assert set(second[1:]) == {None}
    if copy.url.startswith("sqlite"):
        assert dict(zip(values, first[1:], strict=True)) == {name: stored for name, _, _, stored in ALL}
    else:
        expected = {**values, "j": {"a": 1.0}}
        assert dict(zip(values, first[1:], strict=True)) == expected


def test_what_python_has_no_value_for_reaches_postgresql(log: ms.Log, postgres: str) -> None:
    kinds = {
        "id": "int",
        "n": "decimal",
        "t": "timestamptz",
        "d": "date",
        "i": "interval",
        "r": "range:int",
        "f": "float",
    }
    odd = shape(*kinds.items())
    row = {
        "id": 1, "n": Decimal("NaN"), "t": "infinity", "d": "0044-03-15 BC",
        "i": Interval(months=-14, days=3, microseconds=-1), "r": Range(1, 5, "[)"), "f": float("-inf"),
    }  # fmt: skip
    put(log, odd, change("INSERT", None, row, odd))
    copy = Copy(postgres)
    follow(log, copy)
    query = "select n::text, t::text, d::text, i::text, r::text, f::text from users"
    [found] = copy.rows(query)
    assert found[:3] == ("NaN", "infinity", "0044-03-15 BC")
    assert found[3:] == ("-1 years -2 mons +3 days -00:00:00.000001", "[1,5)", "-Infinity")


def test_columns_of_sqlite_get_the_narrowest_type_of_postgresql_that_holds_them(tmp_path: Path, postgres: str) -> None:
    source = Source(tmp_path, "CREATE TABLE users (id INTEGER PRIMARY KEY, a, b, c, d)")
    source.sql("INSERT INTO users VALUES (1, 1, 1, NULL, x'00ff')")
    copy = Copy(postgres)
    follow(source.log, copy)
    types = (
        "select attname, format_type(atttypid, -1) from pg_attribute"
        " where attrelid = 'users'::regclass and attnum > 1 order by attnum"
    )
    assert copy.rows(types) == [("a", "bigint"), ("b", "bigint"), ("c", "text"), ("d", "bytea")]
    source.sql("INSERT INTO users VALUES (2, 2.5, 'x', 3, NULL)")
    follow(source.log, copy)
    assert copy.rows(types) == [("a", "numeric"), ("b", "text"), ("c", "bigint"), ("d", "bytea")]
    assert copy.rows() == [(1, 1, "1", None, b"\0\xff"), (2, Decimal("2.5"), "x", 3, None)]
    source.close()


def test_a_huge_value_and_many_rows(log: ms.Log, copy: Copy) -> None:
    users = shape(("id", "int"), ("email", "text"))
    put(log, users, change("INSERT", None, {"id": 0, "email": "x" * 20_000_000}, users))
    put(log, users, *(change("READ", None, {"id": i, "email": f"u{i}"}, users) for i in range(1, 12_000)))
    assert follow(log, copy) == 12_000
    assert copy.rows("select count(*), max(length(email)) from users") == [(12_000, 20_000_000)]


def test_a_row_that_the_copy_refuses_is_parked_and_retried(log: ms.Log, postgres: str) -> None:
    copy = Copy(postgres)
    with psycopg.connect(postgres) as connection:
        connection.execute("create table users (id bigint primary key, email varchar(5) check (email <> 'bad'))")
    users = shape(("id", "int"), ("email", "text"))
    emails = ["a", "bad", "toolong", "nul\0", "e"]
    put(log, users, *(change("INSERT", None, {"id": i, "email": e}, users) for i, e in enumerate(emails)))
    followers = sync(log, "users", ms.Replica(postgres), start=False)
    assert followers.catch_up() == 2
    assert [p.position for p in followers.parked()] == [2, 3, 4]
    with psycopg.connect(postgres) as connection:
        connection.execute("alter table users drop constraint users_email_check")
    followers.retry(2)
    assert followers.catch_up() == 1
    assert copy.rows() == [(0, "a"), (1, "bad"), (4, "e")]


def test_a_copy_that_is_removed_is_made_anew(tmp_path: Path) -> None:
    source = Source(tmp_path)
    source.sql("INSERT INTO users VALUES (1, 'a')")
    copy = Copy(f"sqlite:///{tmp_path}/copy.db")
    follow(source.log, copy)
    for file in tmp_path.glob("copy.db*"):
        file.unlink()
    source.sql("INSERT INTO users VALUES (2, 'b')")
    assert follow(source.log, copy) == 2
    assert copy.rows() == source.rows()
    source.close()


def test_a_copy_never_takes_the_place_of_a_table_or_of_another_logs_copy(tmp_path: Path, copy: Copy) -> None:
    source = Source(tmp_path)
    source.sql("INSERT INTO users VALUES (1, 'a')")
    follow(source.log, copy, table="mine")
    with ms.open(str(tmp_path / "other.db")) as other:
        users = shape(("id", "int"), ("email", "text"))
        put(other, users, change("INSERT", None, {"id": 7, "email": "b"}, users))
        with pytest.raises(ms.UsageError, match="another log"):
            follow(other, copy, table="mine")
        put(other, users, change("INSERT", None, {"id": 8, "email": "b"}, users), table="people")
        with pytest.raises(ms.UsageError, match="is there already"):
            sync(other, "people", ms.Replica(copy.url, table="mine"), start=False).catch_up()
    assert copy.rows("select id from mine") == [(1,)]
    source.close()


def test_unusable_places_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ms.UsageError, match="cannot be kept"):
        ms.Replica("redis://localhost")
    with ms.open(str(tmp_path / "log.db")) as log:
        with pytest.raises(ms.UsageError, match="own file"):
            sync(log, "users", ms.Replica(f"sqlite:///{tmp_path}/log.db"), start=False).catch_up()
    replica = ms.Replica("postgresql://ann:secret@localhost:1/shop")
    assert "secret" not in replica.name


def test_a_server_that_is_not_there_is_waited_for(log: ms.Log) -> None:
    users = shape(("id", "int"), ("email", "text"))
    put(log, users, change("INSERT", None, {"id": 1, "email": "a"}, users))
    followers = sync(log, "users", ms.Replica("postgresql://ann:secret@127.0.0.1:1/shop"), start=False)
    with pytest.raises(ms.ConnectionFailed) as failed:
        followers.catch_up()
    assert "secret" not in str(failed.value)
    assert followers.parked() == []


def test_of_two_workers_the_later_one_goes_on(tmp_path: Path, copy: Copy) -> None:
    source = Source(tmp_path)
    first = sync(source.log, "users", ms.Replica(copy.url))
    source.sql("INSERT INTO users VALUES (1, 'a')")
    until(lambda: list(first.positions.values()) == [source.log.head])
    second = sync(source.log, "users", ms.Replica(copy.url))
    until(lambda: list(second.positions.values()) == [source.log.head])
    source.sql("INSERT INTO users VALUES (2, 'b')")
    until(lambda: first.errors)
    with pytest.raises(ms.ConsumerFenced):
        first.stop()
    source.sql("INSERT INTO users VALUES (3, 'c')")
    until(lambda: list(second.positions.values()) == [source.log.head])
    second.stop()
    assert copy.rows() == source.rows()
    source.close()


FOLLOWS = """
import sys
import millstream as ms
log = ms.open(sys.argv[1])
ms.sync(log, "users", ms.Replica(sys.argv[2], size=int(sys.argv[3]))).run()
"""


def test_kill_9_in_mid_batch_neither_loses_nor_doubles_a_change(tmp_path: Path, copy: Copy) -> None:
    # Without a key, each change that came twice, or never, would show as a row too many or too few.
    source = Source(tmp_path, "CREATE TABLE users (n INTEGER, email TEXT)")
    command = [sys.executable, "-c", FOLLOWS, source.log_path, copy.url, "7"]
    deadline = time.monotonic() + 5
    kills, n = 0, 0
    child = subprocess.Popen(command)
    dies = time.monotonic() + 0.8
    while time.monotonic() < deadline:
        for _ in range(20):
            n += 1
            source.db.execute("INSERT INTO users VALUES (?, 'x')", (n % 50,))
            if n % 3 == 0:
                source.db.execute("DELETE FROM users WHERE rowid = (SELECT min(rowid) FROM users)")
        source.capture.catch_up(source.log)
        if time.monotonic() > dies:
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
            kills += 1
            child = subprocess.Popen(command)
            dies = time.monotonic() + random.uniform(0.5, 1.1)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    follow(source.log, copy)
    query = "select n, count(*) from users group by n order by n"
    assert kills >= 3
    assert copy.rows(query) == source.rows(query)
    source.close()


def test_a_parked_change_at_the_end_that_is_retried_is_applied_once(log: ms.Log, copy: Copy) -> None:
    # The copy's own position stands before it; without a key, a second time would show.
    rows = shape(("n", "int"), key=())
    refused = [2, 3]

    class Picky(ms.Replica):
        def apply(self, changes: Any, db: Any) -> None:
            if any(c.after["n"] in refused for c, _ in changes):
                raise ms.Rejected("not now")
            super().apply(changes, db)

    put(log, rows, *(change("INSERT", None, {"n": n}, rows) for n in (1, 2, 3)))
    followers = sync(log, "users", Picky(copy.url), start=False)
    assert followers.catch_up() == 1
    refused.clear()
    followers.retry(3)
    assert followers.catch_up() == 1
    followers.retry()
    assert followers.catch_up() == 1
    put(log, rows, change("INSERT", None, {"n": 4}, rows))
    assert followers.catch_up() == 1
    assert copy.rows() == [(1,), (2,), (3,), (4,)]
