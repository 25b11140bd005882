"""What goes wrong with a PostgreSQL source is named, with the way out, and nothing is lost or doubled."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

import millstream as ms
from millstream.cdc import Change, capture
from servers import PostgresServer

from .conftest import Database, replay


def slot_of(shop: Database) -> str:
    [(name,)] = shop.rows("select slot_name from pg_replication_slots where database = current_database()")
    return str(name)


def kept(shop: Database, table: str = "users") -> None:
    found = sorted(tuple(row.values()) for row in replay(shop.log, table, ("id",)))
    assert found == sorted(shop.rows(f"select * from {table}"))


@pytest.fixture
def captured(users: Database) -> Database:
    """A table with rows that were captured, and changes that were not."""
    users.sql("insert into users select g, 'e' || g, 'n' from generate_series(1, 5) g")
    users.capture("users").catch_up(users.log)
    users.sql("delete from users where id = 1", "insert into users values (6, 'f', 'n')")
    return users


def resynced(shop: Database, match: str) -> None:
    """The error says what it is about, and a resync finds what was inserted and deleted meanwhile."""
    with pytest.raises(ms.CaptureError, match=match) as caught:
        shop.capture("users").catch_up(shop.log)
    assert "resync=True" in caught.value.hint
    shop.capture("users").catch_up(shop.log, resync=True)
    kept(shop)
    shop.sql("insert into users values (7, 'after', 'n')")
    shop.capture("users").catch_up(shop.log)
    kept(shop)


def test_a_slot_that_was_dropped(captured: Database) -> None:
    captured.sql(f"select pg_drop_replication_slot('{slot_of(captured)}')")
    resynced(captured, "is gone")


def test_a_slot_that_another_program_has_read_from(captured: Database) -> None:
    captured.sql(f"select pg_replication_slot_advance('{slot_of(captured)}', pg_current_wal_lsn())")
    resynced(captured, "was read by another program")


def test_a_slot_that_the_server_has_given_up(own_server: Callable[..., PostgresServer], tmp_path: Path) -> None:
    server = own_server(
        "max_slot_wal_keep_size=1MB", "wal_segment_size=1MB"[:0] or "min_wal_size=32MB", "max_wal_size=48MB"
    )
    shop = Database(server.url(), str(tmp_path / "log.db"))
    try:
        shop.sql("create table users (id int primary key, a text, b text)", "insert into users values (1, 'a')")
        shop.capture("users").catch_up(shop.log)
        shop.sql("create table filler (t text)", "delete from users", "insert into users values (2, 'b')")
        for _ in range(8):
            shop.sql(
                "insert into filler select repeat(md5(g::text), 40) from generate_series(1, 20000) g", "checkpoint"
            )
        resynced(shop, "was invalidated")
    finally:
        shop.close()


def test_a_slot_that_holds_back_too_much_is_told_or_dropped(users: Database) -> None:
    users.capture("users").catch_up(users.log)
    users.sql("insert into users select g, 'e', 'n' from generate_series(1, 2000) g")
    with pytest.warns(ms.CaptureWarning, match="holds back"):
        users.capture("users", slot_limit=1000).catch_up(users.log)
    with pytest.raises(ms.CaptureError, match="its slot was dropped"):
        users.capture("users", slot_limit=1000, drop_slot=True).catch_up(users.log)
    assert users.rows("select 1 from pg_replication_slots where database = current_database()") == []
    users.sql("delete from users where id < 1000")
    resynced(users, "is gone")


def test_a_slot_of_another_kind_or_database(users: Database) -> None:
    users.sql("select pg_create_physical_replication_slot('physical')")
    try:
        with pytest.raises(ms.CaptureError, match="not one of pgoutput"):
            users.capture("users", slot="physical").catch_up(users.log)
    finally:
        users.sql("select pg_drop_replication_slot('physical')")


def test_a_given_slot_and_publication_are_used_as_they_are(users: Database) -> None:
    users.sql("create publication mine for table users")
    users.sql("select pg_create_logical_replication_slot('given', 'pgoutput')")
    users.sql("insert into users values (1, 'a', 'A')")
    made = users.capture("users", slot="given", publication="mine")
    made.catch_up(users.log)
    users.sql("insert into users values (2, 'b', 'B')")
    made.catch_up(users.log)
    kept(users)
    made.uninstall()
    assert slot_of(users) == "given"
    users.sql("create table other (id int primary key)")
    with pytest.raises(ms.CaptureError, match="does not tell of table 'other'") as caught:
        users.capture("other", slot="given", publication="mine", name="o").catch_up(users.log)
    assert 'ALTER PUBLICATION "mine" ADD TABLE "public"."other"' in caught.value.hint
    with pytest.raises(ms.CaptureError, match="has no publication 'none'"):
        users.capture("users", publication="none", name="n").catch_up(users.log)


def test_two_captures_of_one_source_never_double_a_change(users: Database) -> None:
    first, second = users.capture("users"), users.capture("users")
    first.start(users.log)
    users.sql("insert into users values (1, 'a', 'A')")
    second.start(users.log)
    users.sql("insert into users values (2, 'b', 'B')")
    deadline = time.monotonic() + 20
    while first.error is None and time.monotonic() < deadline:
        time.sleep(0.02)
    with pytest.raises(ms.ConsumerFenced):
        first.stop()
    users.sql("insert into users values (3, 'c', 'C')")
    second.stop()
    users.capture("users").catch_up(users.log)
    assert [after and after["id"] for _, _, after in users.changes()] == [1, 2, 3]


def test_two_captures_under_two_names_have_a_slot_each(users: Database) -> None:
    users.sql("create table orders (id int primary key)")
    one, two = users.capture("users", name="one"), users.capture("orders", name="two")
    one.catch_up(users.log)
    two.catch_up(users.log)
    users.sql("insert into users values (1, 'a', 'A')", "insert into orders values (1)")
    assert one.catch_up(users.log) == two.catch_up(users.log) == 1
    assert len(users.rows("select 1 from pg_replication_slots where database = current_database()")) == 2


def test_a_table_is_added_and_one_read_again_without_touching_the_others(captured: Database) -> None:
    captured.capture("users").catch_up(captured.log)
    captured.sql("create table orders (id int primary key)", "insert into orders values (1)")
    before = captured.log.version("users")
    captured.capture("users", "orders").catch_up(captured.log)
    assert captured.log.version("orders") == 2
    assert captured.log.version("users") == before
    captured.capture("orders").catch_up(captured.log)
    captured.sql("delete from users where id = 2")
    captured.capture("users", "orders").catch_up(captured.log)
    kept(captured)
    kept(captured, "orders")


def test_a_server_that_restarts_and_a_network_that_drops_lose_nothing(
    own_server: Callable[..., PostgresServer], tmp_path: Path
) -> None:
    server = own_server()
    proxy = DroppingProxy(server.port)
    shop = Database(server.url(), str(tmp_path / "log.db"))
    try:
        shop.sql("create table users (id int primary key, email text)")
        made = capture(server.url().replace(str(server.port), str(proxy.port)), tables=["users"])
        made.start(shop.log)
        for n, first in enumerate(range(0, 20_000, 5_000), 1):
            proxy.drop_after(100_000)
            shop.sql(f"insert into users select g, 'a' from generate_series({first + 1}, {first + 5_000}) g")
            waiting(lambda n=n: proxy.drops == n)
        waiting(lambda: shop.log.version("users") >= 20_001)
        server.stop()
        server.start()
        shop.db.close()
        shop.db = psycopg.connect(shop.url, autocommit=True)
        shop.sql("insert into users values (70000, 'after')", "delete from users where id <= 10")
        waiting(lambda: len(shop.changes()) >= 20_011)
        made.stop()
        assert made.trouble is None
        kept(shop)
        runs = [run for run in shop.log.runs("users", types=["Change"]) if "lsn" in run.metadata]
        found = [(run.metadata["lsn"], low) for run in runs for low, _ in run.metadata["sequence"]]
        assert found == sorted(set(found))
    finally:
        proxy.close()
        shop.captures.append(capture(shop.url, tables=["users"]))
        shop.close()


class DroppingProxy:
    """Stands before a server, and drops a connection in the middle of what the server sends."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._left: int | None = None
        self.drops = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def drop_after(self, size: int) -> None:
        """Drop the connection that brings the server's total beyond so many bytes from now on."""
        self._left = size

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                client.close()
                continue
            threading.Thread(target=self._pass, args=(client, server, False), daemon=True).start()
            threading.Thread(target=self._pass, args=(server, client, True), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 14):
                if counted and self._left is not None:
                    self._left -= len(data)
                    if self._left < 0:
                        self._left = None
                        self.drops += 1
                        target.sendall(data[: len(data) // 2])
                        break
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def waiting(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 40
    while not condition():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.05)


def synced(shop: Database, standby: psycopg.Connection[Any]) -> bool:
    """Whether the primary's slot is at the standby, too, and can be gone on with: it has to move for that."""
    shop.sql(
        "create table if not exists moves (n int)", "insert into moves values (1)", "select pg_log_standby_snapshot()"
    )
    shop.captures[0].catch_up(shop.log)
    with suppress(psycopg.Error):
        standby.execute("select pg_sync_replication_slots()")
    return standby.execute("select count(*) from pg_replication_slots where synced and not temporary").fetchone() == (
        1,
    )


def test_a_failover_is_survived_with_its_slot_and_named_when_it_lost_what_was_captured(
    own_server: Callable[..., PostgresServer], tmp_path: Path
) -> None:
    primary = own_server()
    shop = Database(primary.url(), str(tmp_path / "log.db"))
    shop.sql("create table users (id int primary key, a text, b text)")
    shop.sql("select pg_create_physical_replication_slot('standby')")
    source = f"host=127.0.0.1 port={primary.port} user=postgres dbname=postgres"
    standby = own_server(
        "hot_standby_feedback=on", "primary_slot_name=standby", f"primary_conninfo={source}", standby_of=primary
    )
    made = shop.capture("users", failover=True)
    made.catch_up(shop.log)
    shop.sql("insert into users values (1, 'a', 'A')")
    made.catch_up(shop.log)
    with psycopg.connect(standby.url(), autocommit=True) as there:
        waiting(lambda: synced(shop, there))
        shop.sql("insert into users values (2, 'b', 'B')")
        waiting(lambda: there.execute("select count(*) from users").fetchone() == (2,))
        [(slot,)] = there.execute("select slot_name from pg_replication_slots where synced").fetchall()
        lost = psycopg.connect(primary.url(), autocommit=True)
        there.execute("select pg_wal_replay_pause()")
        primary.stop()
        there.execute("select pg_wal_replay_resume()")
        there.execute("select pg_promote()")
        there.execute("insert into users values (3, 'c', 'C')")
        lost.close()
        shop.db.close()
        shop.db = psycopg.connect(standby.url(), autocommit=True)
        shop.captures.clear()
        moved = capture(standby.url(), tables=["users"])
        moved.catch_up(shop.log)
        assert sorted(row["id"] for row in replay(shop.log, "users", ("id",))) == [1, 2, 3]
        assert slot == slot_of(shop)
    # The old primary comes back, takes a change that the new one never sees, and is captured: two histories.
    primary.start()
    with psycopg.connect(primary.url(), autocommit=True) as old:
        for n in range(10, 200):
            old.execute("insert into users values (%s, repeat('x', 500))", (n,))
    with pytest.raises(ms.CaptureError):
        capture(primary.url(), tables=["users"]).catch_up(shop.log)
    moved.uninstall()
    shop.close()


def test_wrong_settings_are_named_with_the_statement_that_mends_them(
    own_server: Callable[..., PostgresServer], tmp_path: Path
) -> None:
    server = own_server("wal_level=replica")
    with ms.open(str(tmp_path / "log.db")) as log:
        with psycopg.connect(server.url(), autocommit=True) as db:
            db.execute("create table users (id int primary key)")
            db.execute("create role reader login password 'geheim-42'")
        with pytest.raises(ms.CaptureError, match="wal_level is 'replica'") as caught:
            capture(server.url(), tables=["users"]).catch_up(log)
        assert "ALTER SYSTEM SET wal_level = 'logical'" in caught.value.hint
        server.stop()
        server.options.append("wal_level=logical")
        server.start()
        url = server.url().replace("postgres@", "reader:geheim-42@")
        with pytest.raises(ms.CaptureError, match="may not replicate") as caught:
            capture(url, tables=["users"]).catch_up(log)
        assert caught.value.hint == 'ALTER ROLE "reader" REPLICATION'
        with psycopg.connect(server.url(), autocommit=True) as db:
            db.execute('ALTER ROLE "reader" REPLICATION')
        with pytest.raises(ms.CaptureError, match="may not be read") as caught:
            capture(url, tables=["users"]).catch_up(log)
        assert "GRANT SELECT" in caught.value.hint
        with psycopg.connect(server.url(), autocommit=True) as db:
            db.execute("grant select on users to reader")
        with pytest.raises(ms.CaptureError) as caught:
            capture(url, tables=["users"]).catch_up(log)
        assert "geheim-42" not in f"{caught.value!r} {caught.value} {caught.value.__cause__}"
        made = capture(url, tables=["users"])
        assert "geheim-42" not in made.name + made.source.url
        with pytest.raises(ms.CaptureError, match="has no table 'nothing'"):
            capture(server.url(), tables=["nothing"]).catch_up(log)
        server.stop()
        with pytest.raises(ms.SourceUnavailable) as unreachable:
            capture(url, tables=["users"], lock_timeout=0.2).catch_up(log)
        assert "geheim-42" not in str(unreachable.value)


def test_a_running_capture_sees_a_commit_and_stops_when_it_is_told(users: Database) -> None:
    made = users.capture("users")
    made.start(users.log)
    done = threading.Event()

    def look() -> None:
        for recorded in users.log.follow():
            if isinstance(recorded.event, Change) and recorded.event.operation == "INSERT":
                done.set()
                return

    follower = threading.Thread(target=look, daemon=True)
    follower.start()
    users.sql("insert into users values (1, 'a', 'A')")
    assert done.wait(10)
    made.stop()
    follower.join()
    assert made.error is None
    waiting(lambda: users.pending() < 20_000)
