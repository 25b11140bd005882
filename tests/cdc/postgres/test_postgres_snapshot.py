"""Snapshots: whole tables at one moment, big ones in chunks while everything goes on."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from random import Random
from typing import Any

import psycopg
import pytest

import millstream as ms
from millstream.cdc.postgres import snapshot

from .conftest import Database, replay

TABLES = ("accounts", "notes")


def busy(shop: Database, stopping: threading.Event, seed: int) -> None:
    """Moves money and rewrites notes until told to stop; the total never changes."""
    random = Random(seed)
    with psycopg.connect(shop.url, autocommit=True) as db:
        while not stopping.is_set():
            a, b = random.randrange(2000), random.randrange(2000)
            with suppress(psycopg.errors.DeadlockDetected), db.transaction():
                db.execute("update accounts set balance = balance - 1 where id = %s", (a,))
                if random.random() < 0.1:
                    db.execute("update accounts set id = id + 100000 where id = %s", (b,))
                    b = b + 100000
                db.execute("update accounts set balance = balance + 1 where id = %s", (b,))
                if random.random() < 0.1:
                    db.execute("delete from accounts where id = %s", (random.randrange(2000),))
                    db.execute(
                        "insert into accounts values (%s, 1, '') on conflict do nothing", (random.randrange(3000),)
                    )
                db.execute("insert into notes values (%s)", (str(a % 7),))
                if random.random() < 0.5:
                    db.execute("delete from notes where ctid in (select ctid from notes limit 1)")
            if random.random() < 0.05:
                with suppress(psycopg.errors.DeadlockDetected), db.transaction(force_rollback=True):
                    db.execute("update accounts set balance = -1000000")


def prepare(shop: Database) -> None:
    shop.sql(
        "create table accounts (id int primary key, balance int, filler text)",
        "create table notes (t text)",
        "alter table notes replica identity full",
        "insert into accounts select g, 100, repeat('x', 50) from generate_series(0, 1999) g",
        "insert into notes select (g % 7)::text from generate_series(1, 500) g",
    )


def same(shop: Database) -> None:
    key = {"accounts": ("id",), "notes": ()}
    for table in TABLES:
        found = sorted(tuple(row.values()) for row in replay(shop.log, table, key[table]))
        assert found == sorted(shop.rows(f"select * from {table}")), table


@pytest.mark.parametrize("whole_bytes", [snapshot.WHOLE_BYTES, 0], ids=["whole", "in chunks"])
def test_a_snapshot_meets_the_stream_while_writers_write(
    shop: Database, monkeypatch: pytest.MonkeyPatch, whole_bytes: int
) -> None:
    monkeypatch.setattr("millstream.cdc.postgres.backfill.WHOLE_BYTES", whole_bytes)
    prepare(shop)
    stopping = threading.Event()
    writers = [threading.Thread(target=busy, args=(shop, stopping, seed)) for seed in (1, 2)]
    for writer in writers:
        writer.start()
    try:
        time.sleep(0.1)
        capture = shop.capture(*TABLES, chunk_rows=100)
        capture.catch_up(shop.log)
        capture.catch_up(shop.log)
    finally:
        stopping.set()
        for writer in writers:
            writer.join()
    capture.catch_up(shop.log)
    same(shop)
    completed = [e for t in TABLES for e in shop.events(t) if isinstance(e, ms.cdc.SnapshotCompleted)]
    assert len(completed) == 2


@pytest.mark.parametrize("whole_bytes", [snapshot.WHOLE_BYTES, 0], ids=["whole", "in chunks"])
def test_a_snapshot_that_was_cut_short_goes_on_or_begins_again(
    shop: Database, monkeypatch: pytest.MonkeyPatch, whole_bytes: int
) -> None:
    monkeypatch.setattr("millstream.cdc.postgres.backfill.WHOLE_BYTES", whole_bytes)
    monkeypatch.setattr(snapshot, "PAGE_ROWS", 100)
    prepare(shop)
    commits = 0
    capture = shop.capture(*TABLES, chunk_rows=100)

    def cut(log: ms.Log) -> Any:
        real = log.commit

        def commit(*args: Any, **kwargs: Any) -> Any:
            nonlocal commits
            commits += 1
            if commits > 12:
                raise KeyboardInterrupt
            return real(*args, **kwargs)

        return commit

    monkeypatch.setattr(shop.log, "commit", cut(shop.log))
    with pytest.raises(KeyboardInterrupt):
        capture.catch_up(shop.log)
    monkeypatch.undo()
    monkeypatch.setattr("millstream.cdc.postgres.backfill.WHOLE_BYTES", whole_bytes)
    before = shop.log.version("accounts")
    assert 0 < before < 2000
    shop.sql("update accounts set balance = balance + 1", "delete from accounts where id % 3 = 0", "delete from notes")
    shop.reopen()
    again = shop.capture(*TABLES, chunk_rows=100)
    again.catch_up(shop.log)
    same(shop)
    operations = [e.operation for e in shop.events("accounts") if isinstance(e, ms.Change)]
    assert ("TRUNCATE" in operations) is bool(whole_bytes), "chunks go on where they were"


def test_chunks_follow_any_key(shop: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream.cdc.postgres.backfill.WHOLE_BYTES", 0)
    shop.sql(
        'create table t (a numeric, "b c" text, d bytea, e timestamptz, v int, primary key (a, "b c", d, e))',
        """insert into t select g % 3 + 0.5, chr(64 + g % 5) || '''"\\%', decode(lpad(to_hex(g % 256), 2, '0'), 'hex'),
           '2024-01-01Z'::timestamptz + g * interval '1 second', g from generate_series(1, 500) g""",
        "insert into t values ('NaN', '', '', 'infinity', 0)",
    )
    capture = shop.capture("t", chunk_rows=7)
    capture.catch_up(shop.log)
    assert sorted(e.data["after"]["v"] for e in shop.log.read("t", types=[ms.Change])) == list(range(501))


def test_empty_tables_and_tables_without_columns(shop: Database) -> None:
    shop.sql(
        "create table empty (id int primary key)", "create table bare ()", "alter table bare replica identity full"
    )
    shop.sql("insert into bare default values")
    capture = shop.capture("empty", "bare")
    assert capture.catch_up(shop.log) == 3
    shop.sql("insert into bare default values")
    assert capture.catch_up(shop.log) == 1
    assert shop.changes("bare") == [("INSERT", None, {})]


def test_all_tables_of_a_snapshot_show_one_moment(shop: Database) -> None:
    shop.sql("create table a (id int primary key)", "create table b (id int primary key)")
    stopping = threading.Event()

    def write() -> None:
        with psycopg.connect(shop.url, autocommit=True) as db:
            for n in range(100_000):
                if stopping.is_set():
                    return
                with db.transaction():
                    db.execute("insert into a values (%s)", (n,))
                    db.execute("insert into b values (%s)", (n,))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        time.sleep(0.2)
        shop.capture("a", "b").catch_up(shop.log)
    finally:
        stopping.set()
        writer.join()
    read = {
        t: {e.data["after"]["id"] for e in shop.log.read(t, types=[ms.Change]) if e.data["operation"] == "READ"}
        for t in "ab"
    }
    assert read["a"] == read["b"] != set()


def test_columns_that_change_while_a_table_is_read_in_chunks(shop: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream.cdc.postgres.backfill.WHOLE_BYTES", 0)
    shop.sql("create table t (id int primary key, a text, b text)")
    shop.sql("insert into t select g, 'a' || g, 'b' from generate_series(1, 2000) g")
    made = shop.capture("t", chunk_rows=50)
    made.start(shop.log)
    deadline = time.monotonic() + 20
    while shop.log.version("t") < 200 and time.monotonic() < deadline:
        time.sleep(0.002)
    shop.sql("alter table t drop b, add c int default 7", "update t set a = 'new' where id in (1, 1999)")
    made.stop()
    shop.capture("t", chunk_rows=50).catch_up(shop.log)
    shop.capture("t", chunk_rows=50).catch_up(shop.log)
    found = sorted((row["id"], row["a"], row.get("c", 7)) for row in replay(shop.log, "t", ("id",)))
    assert found == shop.rows("select id, a, c from t order by id")
    changed = [e for e in shop.events("t") if isinstance(e, ms.SchemaChanged)]
    assert [(e.added, e.dropped) for e in changed] == [({"c": 7}, ["b"])]


def test_a_publication_that_tells_some_columns_and_rows_is_the_snapshots_measure(shop: Database) -> None:
    shop.sql("create table t (id int primary key, a int, secret text)")
    shop.sql("insert into t values (1, 1, 'x'), (2, 5, 'y')")
    shop.sql("create publication part for table t (id, a) where (id > 1)")
    made = shop.capture("t", publication="part")
    made.catch_up(shop.log)
    shop.sql("insert into t values (3, 7, 'z')", "insert into t values (0, 0, '')")
    made.catch_up(shop.log)
    assert replay(shop.log, "t", ("id",)) == [{"id": 2, "a": 5}, {"id": 3, "a": 7}]
    assert not [e for e in shop.events("t") if isinstance(e, ms.SchemaChanged)]


def test_a_table_whose_identity_is_an_index_is_known_by_it(shop: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream.cdc.postgres.backfill.WHOLE_BYTES", 0)
    shop.sql("create table t (id int primary key, email text not null)", "create unique index e on t (email)")
    shop.sql("alter table t replica identity using index e", "insert into t values (1, 'a'), (2, 'b'), (3, 'c')")
    made = shop.capture("t", chunk_rows=2)
    made.catch_up(shop.log)
    shop.sql("delete from t where id = 2", "update t set email = 'z' where id = 3", "update t set id = 9 where id = 1")
    made.catch_up(shop.log)
    found = sorted(replay(shop.log, "t", ("email",)), key=lambda row: row["id"])
    assert found == [{"id": 3, "email": "z"}, {"id": 9, "email": "a"}]


def test_a_table_with_a_new_name_is_read_again_in_its_stream(shop: Database) -> None:
    shop.sql("create table t (id int primary key)", "insert into t values (1)")
    made = shop.capture("t")
    made.catch_up(shop.log)
    shop.sql("alter table t rename to u", "insert into u values (2)")
    made.snapshot(shop.log, "t")
    made.catch_up(shop.log)
    assert replay(shop.log, "t", ("id",)) == [{"id": 1}, {"id": 2}]
    assert shop.log.version("u") == 0


def test_a_capture_with_an_outbox_begins_in_the_background(shop: Database) -> None:
    shop.sql("create table outbox (id int generated always as identity primary key, stream text, type text, data json)")
    shop.sql("""insert into outbox (stream, type, data) values ('o-1', 'Before', '{}')""")
    made = shop.capture("outbox", outbox="outbox")
    made.start(shop.log)
    shop.sql("""insert into outbox (stream, type, data) values ('o-1', 'Placed', '{"n": 1}')""")
    placed = next(iter(shop.log.follow("o-1", timeout=10)))
    made.stop()
    assert (placed.type, placed.data) == ("Placed", {"n": 1})
