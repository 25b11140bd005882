"""Captures that are killed, for real, at the worst moments: the log is the source's history, each change once."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

import millstream as ms
from millstream.cdc import Change

from .conftest import Database, replay

WRITER = """
import random, sys, time
import psycopg
random.seed(5)
db = psycopg.connect(sys.argv[1])
end = time.monotonic() + float(sys.argv[2])
n = 0
while time.monotonic() < end:
    for _ in range(random.choice([1, 2, 5, 30])):
        n += 1
        id = random.randrange(400)
        if id % 7 == 0:
            db.execute(f"delete from users where id = {id} + 1000")
        db.execute(random.choice([
            f"insert into users values ({id}, 'n{n}', '') on conflict (id) do update set email = 'n{n}'",
            f"update users set name = 'u{n}' where id = {id}",
            f"update users set id = {id} + 1000, name = 'm{n}' where id = {id} and {id} % 7 = 0",
            f"delete from users where id = {id}",
        ]) if random.random() < 0.95 else "savepoint s")
    if random.random() < 0.02:
        db.execute("insert into users select g, repeat('x', 200), 'big' from generate_series(5000, 8000) g"
                   " on conflict (id) do update set name = 'again'")
    (db.rollback if random.random() < 0.2 else db.commit)()
    time.sleep(0.002)
"""

CAPTURES = """
import os, random, signal, sys, time
import millstream as ms
from millstream.cdc import spill
from millstream.cdc.postgres import assemble, backfill, session, snapshot
backfill.WHOLE_BYTES = int(sys.argv[4])
assemble.SPILL_BYTES, spill.CHUNK_BYTES, session.STAGE_BYTES = 100_000, 50_000, 50_000
snapshot.PAGE_ROWS = 50
random.seed(3)
points = sys.argv[5].split(",")
url, log_path, times = sys.argv[1], sys.argv[2], int(sys.argv[3])
for n in range(times):
    child = os.fork()
    if not child:
        with ms.open(log_path) as log:
            made = ms.capture(url, tables=["users", "history"], chunk_rows=50)
            point = points[n % len(points)]
            if point == "any":
                made.run(log)
            with ms.testing.crash_at(point, after=random.choice([1, 1, 2, 5])):
                made.run(log)
        os._exit(1)
    end = time.monotonic() + (random.uniform(0.15, 0.5) if points[n % len(points)] == "any" else 3)
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.005)
    assert os.WIFSIGNALED(status), "the capture ended by itself"
"""


def prepare(shop: Database) -> None:
    shop.sql(
        "create table users (id int primary key, email text, name text)",
        "alter table users replica identity full",
        "create table history (n bigserial primary key, xid bigint, op text, old jsonb, new jsonb)",
        """create function note() returns trigger language plpgsql as $$ begin
           insert into history (xid, op, old, new) values (txid_current(), tg_op,
               case when tg_op <> 'INSERT' then to_jsonb(old) end, case when tg_op <> 'DELETE' then to_jsonb(new) end);
           return null; end $$""",
        "create trigger noting after insert or update or delete on users for each row execute function note()",
        "insert into users select g, 'e', 'n' from generate_series(1, 400) g",
    )


def equal(shop: Database) -> None:
    """The log's changes of each transaction are those that the source noted, in its order, once."""
    noted: dict[int, list[Any]] = {}
    for xid, op, old, new in shop.rows("select xid, op, old, new from history order by n"):
        noted.setdefault(xid, []).append((op, old, new))
    found: dict[int, list[Any]] = {}
    numbers: Counter[tuple[int, int]] = Counter()
    for run in shop.log.runs("users", types=[Change]):
        if "xid" not in run.metadata:
            continue
        numbers.update((run.metadata["lsn"], n) for low, high in run.metadata["sequence"] for n in range(low, high + 1))
        assert sum(high - low + 1 for low, high in run.metadata["sequence"]) == run.count
        changes = found.setdefault(run.metadata["xid"], [])
        changes += [(c.operation, c.before, c.after) for c in run.events(Change)]
    assert max(numbers.values()) == 1
    for xid, changes in found.items():
        assert changes == noted[xid], xid
    first = min(found)
    assert {xid for xid in noted if xid >= first} == found.keys(), "a transaction is missing"


@pytest.mark.parametrize(
    ("points", "whole_bytes", "times"),
    [
        ("before-commit,after-commit,after-acknowledge,put-ahead,any", 1 << 30, 20),
        ("in-chunk,before-commit,after-commit,any", 0, 16),
        ("in-snapshot,before-commit,after-commit,any", 1 << 30, 14),
    ],
    ids=["stream", "chunks", "whole"],
)
def test_a_capture_that_is_killed_fifty_times_neither_loses_nor_doubles_a_change(
    shop: Database, points: str, whole_bytes: int, times: int
) -> None:
    prepare(shop)
    if "put-ahead" in points:
        shop.capture("users", "history").catch_up(shop.log)
    shop.log.close()
    writer = subprocess.Popen([sys.executable, "-c", WRITER, shop.url, "6"])
    arguments = [shop.url, shop.log_path, str(times), str(whole_bytes), points]
    killed = subprocess.run([sys.executable, "-c", CAPTURES, *arguments], capture_output=True, text=True)
    assert writer.wait(30) == 0
    assert killed.returncode == 0, killed.stderr
    shop.reopen()
    shop.capture("users", "history").catch_up(shop.log)
    for table in ("users", "history"):
        found = sorted(tuple(map(str, row.values())) for row in replay(shop.log, table, (shop_key(table),)))
        rows = shop.rows(
            f"select * from {table}" if table == "users" else "select n, xid, op, old::text, new::text from history"
        )
        assert found == sorted(tuple(map(str, row)) for row in rows), table
    if "put-ahead" in points:
        equal(shop)
    shop.log.verify()
    with shop.log.connect() as db:
        assert not db.query(f"select * from {db.own('millstream_ahead')}")


def shop_key(table: str) -> str:
    return "id" if table == "users" else "n"


def test_a_large_transaction_is_seen_whole_or_not_at_all(shop: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    from millstream.cdc import spill
    from millstream.cdc.postgres import assemble, session

    monkeypatch.setattr(assemble, "SPILL_BYTES", 200_000)
    monkeypatch.setattr(spill, "CHUNK_BYTES", 100_000)
    monkeypatch.setattr(session, "STAGE_BYTES", 100_000)
    shop.sql("create table big (id int primary key, t text)", "create table other (id int primary key)")
    capture = shop.capture("big", "other")
    capture.catch_up(shop.log)
    before = shop.log.head
    heads = []
    real = shop.log.store.put_body

    def put(*args: Any) -> int:
        heads.append(shop.log.head)
        return real(*args)

    monkeypatch.setattr(shop.log.store, "put_body", put)
    shop.sql("set logical_decoding_work_mem = '64kB'")
    shop.together(
        "insert into big select g, repeat('y', 100) from generate_series(1, 5000) g",
        "insert into other values (1)",
        "update big set t = 'z' where id <= 100",
        "insert into other values (2)",
    )
    assert capture.catch_up(shop.log) == 5102
    assert len(heads) > 5
    assert set(heads) == {before}, "nothing is seen before all of it is there"
    runs = [run for t in ("big", "other") for run in shop.log.runs(t, types=[Change])]
    assert len({run.recorded for run in runs}) == 1
    numbers = [n for run in runs for low, high in run.metadata["sequence"] for n in range(low, high + 1)]
    assert sorted(numbers) == list(range(5102))
    assert len(replay(shop.log, "big", ("id",))) == 5000
    shop.log.verify()


def test_a_large_transaction_that_is_streamed_before_its_end(own_streaming: Database) -> None:
    shop = own_streaming
    capture = shop.capture("big")
    capture.catch_up(shop.log)
    with shop.db.transaction():
        shop.sql("insert into big select g, repeat('y', 100) from generate_series(1, 3000) g")
        shop.sql("savepoint s", "insert into big select g, 'gone' from generate_series(5000, 8000) g", "rollback to s")
        capture.catch_up(shop.log)
        assert shop.changes("big") == []
        shop.sql("update big set t = 'z' where id <= 10")
    with shop.db.transaction(force_rollback=True):
        shop.sql("insert into big select g, repeat('n', 100) from generate_series(10000, 13000) g")
        assert capture.catch_up(shop.log) == 3010
    shop.sql("insert into big values (4000, 'after')")
    assert capture.catch_up(shop.log) == 1
    found = sorted(tuple(row.values()) for row in replay(shop.log, "big", ("id",)))
    assert found == sorted(shop.rows("select * from big"))
    stamps = {e.data["timestamp"] for e in shop.log.read("big", types=[Change])}
    assert len(stamps) == 2
    assert "\0" not in "".join(stamps)


@pytest.fixture(scope="module")
def streaming_server() -> Any:
    with ms.testing.PostgresServer("logical_decoding_work_mem=64kB") as server:
        yield server


@pytest.fixture
def own_streaming(streaming_server: Any, tmp_path: Any) -> Any:
    shop = Database(streaming_server.url(), str(tmp_path / "log.db"))
    shop.sql("create table big (id int primary key, t text)", "alter table big replica identity full")
    yield shop
    shop.close()
