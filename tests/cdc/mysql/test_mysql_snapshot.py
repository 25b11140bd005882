"""The rows that are there, read while programs go on writing: with the changes after them, they are the table."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import millstream as ms
from millstream.cdc.mysql import snapshot

from .conftest import Shop, kept, replay, waiting


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "PAGE_ROWS", 70)


@contextmanager
def writing(shop: Shop, *tables: str, alter: bool = False) -> Iterator[None]:
    """A program that writes to tables all along."""
    stop = threading.Event()
    failed: list[Exception] = []

    def write() -> None:
        chance = random.Random(7)
        db = shop.connect()
        n = 0
        with db.cursor() as cursor:
            while not stop.is_set():
                cursor.execute("begin")
                for _ in range(chance.choice([1, 2, 5])):
                    n += 1
                    for table in tables:
                        id = chance.randrange(3000)
                        cursor.execute(
                            chance.choice(
                                [
                                    f"replace into {table} (id, email, name) values ({id}, 'n{n}', 'w')",
                                    f"update {table} set email = 'u{n}' where id = {id}",
                                    f"update ignore {table} set id = {id} + 1 where id = {id}",
                                    f"delete from {table} where id = {id}",
                                ]
                            )
                        )
                cursor.execute(chance.choice(["commit", "commit", "rollback"]))
                if alter and n % 40 == 0:
                    cursor.execute(f"alter table {tables[0]} add column c{n} int default {n}")
                time.sleep(0.0005)
        db.close()

    def run() -> None:
        try:
            write()
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert not failed, failed


def fill(shop: Shop, table: str, rows: int = 2000) -> None:
    shop.sql(f"insert into {table} (id, email, name) values " + ",".join(f"({n}, 'e{n}', 'n')" for n in range(rows)))


def test_a_keyed_table_is_read_in_chunks_while_it_is_written_to(users: Shop) -> None:
    fill(users, "users")
    with writing(users, "users"):
        capture = users.capture("users", chunk_rows=150)
        capture.start(users.log)
        waiting(lambda: any(isinstance(e, ms.cdc.SnapshotCompleted) for e in completed(users)))
        time.sleep(0.2)
        capture.stop()
        users.capture("users").catch_up(users.log)
    users.capture("users").catch_up(users.log)
    kept(users)
    operations = [e.data["operation"] for e in users.log.read("users", types=["Change"])]
    first_write = next(i for i, operation in enumerate(operations) if operation != "READ")
    assert "READ" in operations[first_write:], "changes go on between the chunks"


def completed(shop: Shop, table: str = "users") -> list[ms.Event]:
    return shop.events(table) if shop.log.version(table) else []


@pytest.mark.parametrize("resync", [False, True], ids=["asked for", "resync"])
def test_a_table_is_read_again_while_it_is_written_to(users: Shop, resync: bool) -> None:
    fill(users, "users")
    users.capture("users", chunk_rows=100).catch_up(users.log)
    with writing(users, "users"):
        time.sleep(0.1)
        capture = users.capture("users", chunk_rows=100)
        if not resync:
            capture.snapshot(users.log, "users")
        capture.start(users.log, resync=resync)
        waiting(lambda: len([e for e in completed(users) if isinstance(e, ms.cdc.SnapshotCompleted)]) == 2)
        capture.stop()
    users.capture("users").catch_up(users.log)
    kept(users)
    operations = [e.data["operation"] for e in users.log.read("users", types=["Change"])]
    assert operations.count("TRUNCATE") == 1


def test_columns_changed_behind_the_logs_back_while_a_table_is_written_to(users: Shop) -> None:
    fill(users, "users")
    capture = users.capture("users", chunk_rows=100)
    capture.catch_up(users.log)
    with writing(users, "users"):
        time.sleep(0.1)
        users.sql("set sql_log_bin = 0", "alter table users add column age int default 4", "set sql_log_bin = 1")
        time.sleep(0.2)
        capture.catch_up(users.log)
    capture.catch_up(users.log)
    kept(users)


def test_a_table_without_a_key_is_read_whole_while_it_is_written_to(shop: Shop) -> None:
    shop.sql("create table bag (id int, email varchar(100), name text)")
    fill(shop, "bag", 3000)
    with writing(shop, "bag"):
        capture = shop.capture("bag")
        capture.catch_up(shop.log)
        time.sleep(0.1)
        capture.catch_up(shop.log)
    capture.catch_up(shop.log)
    kept(shop, "bag", ())


def test_several_tables_of_each_kind(users: Shop) -> None:
    users.sql("create table bag (id int, email varchar(100), name text)", "create table more like users")
    for table in ("users", "bag", "more"):
        fill(users, table, 1000)
    with writing(users, "users", "bag", "more"):
        users.capture("users", "bag", "more", chunk_rows=100).catch_up(users.log)
    users.capture("users", "bag", "more").catch_up(users.log)
    kept(users)
    kept(users, "more")
    kept(users, "bag", ())


def test_columns_are_added_while_chunks_are_read(users: Shop) -> None:
    fill(users, "users")
    with writing(users, "users", alter=True):
        users.capture("users", chunk_rows=100).catch_up(users.log)
    users.capture("users").catch_up(users.log)
    kept(users)


def test_a_column_is_dropped_and_the_table_truncated_while_chunks_are_read(
    users: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(users, "users")
    real, statements = (
        snapshot.view,
        iter(
            [
                "alter table users drop column name",
                "alter table users rename column email to mail",
                "truncate table users",
            ]
        ),
    )

    def view(*args: Any) -> int:
        found = real(*args)
        statement = next(statements, None)
        if statement is not None:
            other = users.connect()
            with other.cursor() as cursor:
                # Under another name, since the view holds the table.
                cursor.execute("set session lock_wait_timeout = 1")
                threading.Thread(target=later, args=(users, statement)).start()
            other.close()
        return found

    monkeypatch.setattr(snapshot, "view", view)
    users.capture("users", chunk_rows=100).catch_up(users.log)
    waiting(lambda: next(statements, None) is None)
    waiting(lambda: users.rows("select count(*) from users") == [(0,)])
    users.sql("insert into users (id, mail) values (5, 'after')")
    users.capture("users").catch_up(users.log)
    kept(users)


def later(shop: Shop, statement: str) -> None:
    db = shop.connect()
    with db.cursor() as cursor:
        cursor.execute(statement)
    db.close()


def test_keys_of_several_columns_and_of_every_type_that_has_an_order(shop: Shop) -> None:
    tables = {
        "a": ("a int, b varchar(20), primary key (a, b)", "({0} mod 7, concat('k', {0}))", ("a", "b")),
        "b": ("a decimal(10,2), b date, primary key (a, b)", "({0} / 4, '2024-01-01' + interval {0} day)", ("a", "b")),
        "c": ("a datetime(3) primary key", "('2024-01-01' + interval {0} * 1234567 microsecond)", ("a",)),
        "d": ("a varbinary(16) primary key", "(unhex(md5({0})))", ("a",)),
        "e": ("a varchar(20) character set latin1 primary key", "(concat('é''\\\\\\\\', {0}))", ("a",)),
        "f": ("a bigint unsigned primary key", "(18446744073709551615 - {0})", ("a",)),
        "g": ("a timestamp(2) default now(2) primary key", "('2024-01-01' + interval {0} second)", ("a",)),
        "h": ("a enum('x','y','z'), b float, primary key (a, b)", "({0} mod 3 + 1, {0} / 7)", ("a", "b")),
        "i": ("a char(10) collate utf8mb4_bin primary key", "(concat(if({0} mod 2, 'a', 'A'), {0}))", ("a",)),
    }
    for name, (columns, values, _) in tables.items():
        shop.sql(f"create table {name} ({columns})")
        shop.sql(f"insert into {name} values " + ",".join(values.format(n) for n in range(40)))
    shop.capture(*tables, chunk_rows=100).catch_up(shop.log)
    shop.log.close()
    shop.log_path += "2"
    shop.log = ms.open(shop.log_path)
    original, snapshot.CHUNK_BYTES = snapshot.CHUNK_BYTES, 1
    limits, snapshot.max = getattr(snapshot, "max", None), lambda *found: 7  # type: ignore[attr-defined]
    try:
        shop.capture(*tables).catch_up(shop.log)
    finally:
        snapshot.CHUNK_BYTES = original
        del snapshot.max  # type: ignore[attr-defined]
    assert limits is None
    for name, (_, _, key) in tables.items():
        assert len(replay(shop.log, name, key)) == 40, name
        reads = [e.data["operation"] for e in shop.log.read(name, types=["Change"])]
        assert reads == ["READ"] * 40, name


def test_a_snapshot_goes_on_after_the_last_chunk_that_is_in_the_log(
    users: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(users, "users")
    real, left = snapshot.view, iter(range(5))

    def view(*args: Any) -> int:
        if next(left, None) is None:
            raise ms.CaptureError("as if the program died", hint="")
        return real(*args)

    monkeypatch.setattr(snapshot, "view", view)
    with writing(users, "users"):
        with pytest.raises(ms.CaptureError, match="as if"):
            users.capture("users", chunk_rows=200).catch_up(users.log)
        monkeypatch.setattr(snapshot, "view", real)
        users.reopen()
        users.capture("users", chunk_rows=200).catch_up(users.log)
    users.capture("users").catch_up(users.log)
    kept(users)
    assert "TRUNCATE" not in [e.data["operation"] for e in users.log.read("users", types=["Change"])]
    [done] = [e for e in users.events() if isinstance(e, ms.cdc.SnapshotCompleted)]
    assert done.rows >= 1000


def test_a_table_is_added_and_one_read_again_without_touching_the_others(users: Shop) -> None:
    fill(users, "users", 10)
    users.capture("users").catch_up(users.log)
    users.sql("create table orders (id int primary key)", "insert into orders values (1)")
    before = users.log.version("users")
    users.capture("users", "orders").catch_up(users.log)
    assert users.log.version("users") == before
    users.sql("insert into orders values (2)")
    capture = users.capture("users", "orders")
    capture.catch_up(users.log)
    kept(users, "orders")
    assert [e.data["operation"] for e in users.log.read("orders", types=["Change"])] == ["READ", "INSERT"]
    capture.snapshot(users.log, "orders")
    capture.catch_up(users.log)
    assert users.log.version("users") == before
    kept(users, "orders")
    users.capture("orders").catch_up(users.log)
    users.sql("delete from users where id = 2")
    users.capture("users", "orders").catch_up(users.log)
    kept(users)


def test_what_a_program_does_after_the_start_comes_as_changes(shop: Shop) -> None:
    shop.sql("create table users (id int primary key)", "create table bag (id int)")
    shop.sql("insert into users values (1)", "insert into bag values (1)")
    capture = shop.capture("users", "bag")
    capture.start(shop.log)
    shop.sql("insert into users values (2)", "insert into bag values (2)")
    waiting(lambda: shop.changes("users") and shop.changes("bag"))
    capture.stop()
    for table in ("users", "bag"):
        assert shop.changes(table) == [("INSERT", None, {"id": 2})]


def test_an_empty_table_is_complete_at_once(users: Shop) -> None:
    assert users.capture("users").catch_up(users.log) == 1
    [event] = users.events()
    assert isinstance(event, ms.cdc.SnapshotCompleted)
    assert event.columns == ["id", "email", "name"]
    assert ms.cdc.table(users.log, "users").rows() == []
