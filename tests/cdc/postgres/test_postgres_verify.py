"""What the log says of a PostgreSQL table, compared with the table."""

from __future__ import annotations

import threading
from datetime import UTC, datetime

import psycopg

import millstream as ms
from millstream.cdc import verify

from .conftest import Database
from .test_postgres_types import TYPES


def test_every_differing_row_is_named_and_mended(users: Database) -> None:
    users.sql("insert into users select g, 'e' || g, 'n' from generate_series(1, 50) g")
    capture = users.capture("users")
    capture.catch_up(users.log)
    users.sql("update users set name = 'm' where id = 7", "delete from users where id = 9")
    capture.catch_up(users.log)
    assert verify(capture, users.log, chunk=7).ok
    before = {"id": 3, "email": "e3", "name": "n"}
    lost = ms.Change(operation="DELETE", table="users", before=before, after=None, timestamp=datetime.now(UTC))
    users.log.append("users", lost)
    found = verify(capture, users.log, "users")
    assert [(d.kind, d.key) for d in found.differences] == [("missing", {"id": 3})]
    assert verify(capture, users.log, "users", repair=True).repaired == 1
    assert verify(capture, users.log, "users").ok


def test_a_table_is_verified_while_it_is_written_to(users: Database) -> None:
    users.sql("insert into users select g, 'e' || g, 'n' from generate_series(1, 2000) g")
    capture = users.capture("users")
    capture.start(users.log)
    stopping = threading.Event()

    def write() -> None:
        with psycopg.connect(users.url, autocommit=True) as db:
            n = 0
            while not stopping.is_set():
                n += 1
                db.execute("update users set name = %s where id = %s", (str(n), n % 2000))
                db.execute("delete from users where id = %s", (n * 7 % 2000,))
                db.execute("insert into users values (%s, 'e', 'n') on conflict do nothing", (n * 13 % 2000,))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(3):
            found = verify(capture, users.log, chunk=300)
            assert found.ok, str(found)
            assert found.rows > 1000
    finally:
        stopping.set()
        writer.join()
        capture.stop()


def test_all_types_compare_equal(shop: Database) -> None:
    shop.sql(
        "create type mood as enum ('happy', 'so so')",
        "create domain price as numeric(10,2) check (value > 0)",
        "create type place as (name text, floor int)",
    )
    pairs = [(type, text) for type, examples in TYPES.items() for text, _ in examples]
    columns = ", ".join(f"c{n} {type}" for n, (type, _) in enumerate(pairs))
    values = ", ".join(f"({text})::{type}" for type, text in pairs)
    shop.sql(f"create table every (id int primary key, {columns})", f"insert into every values (1, {values})")
    capture = shop.capture("every")
    capture.catch_up(shop.log)
    shop.sql(f"insert into every values (2, {values})", "insert into every (id) values (3)")
    capture.catch_up(shop.log)
    found = verify(capture, shop.log)
    assert found.ok, str(found)
    assert found.rows == 3
