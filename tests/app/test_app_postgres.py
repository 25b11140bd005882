"""All four patterns on a log in PostgreSQL whose connections are cut again and again: once each, all the same."""

from __future__ import annotations

import sqlite3
import threading
import time
from typing import Any

import polars as pl
import psycopg
import pytest

import millstream as ms


class Added(ms.Event):
    n: int


class Adder(ms.Aggregate):
    total: int = 0

    def add(self, n: int) -> None:
        self.record(Added(n=n))

    @ms.on
    def added(self, event: Added) -> None:
        self.total += event.n


class Add(ms.Command):
    adder: ms.Ref[Adder]
    n: int


class Written(ms.Projection):
    schema = "create table written (position bigint primary key, n integer)"

    @ms.on
    def added(self, event: Added, db: ms.Database, recorded: ms.Recorded) -> None:
        db.execute("insert into written values (?, ?)", (recorded.position, event.n))


class Followed(ms.Projection):
    schema = "create table followed (position bigint primary key, n integer)"

    @ms.on
    def added(self, event: Added, db: ms.Database, recorded: ms.Recorded) -> None:
        db.execute("insert into followed values (?, ?)", (recorded.position, event.n))


class Sums(ms.Query[dict[str, Any]]):
    pass


class Cutter:
    """Ends every connection to a database, now and then: but only when something went through since the last time."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.cuts = 0
        self.through = 0

    def _run(self) -> None:
        with psycopg.connect(self._url, autocommit=True) as connection:
            seen = -1
            while not self._stop.wait(0.15):
                if self.through == seen:
                    continue  # on a busy machine nothing would ever go through
                seen = self.through
                row = connection.execute(
                    "select count(pg_terminate_backend(pid)) from pg_stat_activity"
                    " where datname = current_database() and pid <> pg_backend_pid()"
                ).fetchone()
                assert row is not None
                self.cuts += row[0]

    def __enter__(self) -> Cutter:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()


@pytest.fixture
def source(tmp_path):
    with sqlite3.connect(tmp_path / "shop.sqlite", isolation_level=None) as db:
        db.execute("create table users (id integer primary key)")
        yield db
    db.close()


def test_connections_that_are_cut_again_and_again_neither_lose_nor_double_anything(postgres, source, tmp_path):
    with ms.open(postgres) as log:
        app = ms.App(
            log,
            projections=[Written.inline(), Followed.into()],
            captures=[ms.capture(f"sqlite:///{tmp_path}/shop.sqlite", tables=["users"])],
            flows=[ms.stream("adder-1").select("n").to("copies", type="Copy")],
        )

        @app.command
        def add(command: Add, adder: Adder) -> None:
            adder.add(command.n)

        @app.query
        def sums(query: Sums, db: ms.Database) -> dict[str, Any]:
            return db.one(
                "select (select count(*) from written) as written, (select sum(n) from written) as sum,"
                " (select count(*) from followed) as followed"
            )

        with app, Cutter(postgres) as cutter:
            count = 0
            ended = time.monotonic() + 3
            while time.monotonic() < ended or cutter.cuts < 30:
                count += 1
                app.execute(Add("adder-1", count), id=f"add-{count}")
                source.execute("insert into users values (?)", (count,))
                cutter.through += 1
        # Nothing is cut any more: it all comes level.
        with app:
            receipt = app.execute(Add("adder-1", 0))
            assert app.query(Sums(), after=receipt, timeout=30) == {
                "written": count + 1,
                "sum": count * (count + 1) // 2,
                "followed": count + 1,
            }
            deadline = time.monotonic() + 30
            while log.version("users") < count or log.version("copies") < count + 1:
                assert time.monotonic() < deadline, app.status()
                time.sleep(0.02)
        numbers = [*range(1, count + 1), 0]
        assert ms.Repository(log, Adder).get("adder-1").total == sum(numbers)
        assert [e.data["n"] for e in log.read("adder-1")] == numbers
        assert log.scan("copies").select(pl.col("n")).collect()["n"].to_list() == numbers
        changes = [e.data["after"]["id"] for e in log.read("users", types=["Change"]) if e.data["after"]]
        assert changes == list(range(1, count + 1))
        log.verify()


def test_a_query_after_the_connections_were_cut_is_answered(postgres):
    with ms.open(postgres) as log:
        app = ms.App(log, projections=[Written.inline()])

        @app.query
        def sums(query: Sums, db: ms.Database) -> dict[str, Any]:
            return db.one("select count(*) as n from written")

        assert app.query(Sums()) == {"n": 0}
        for _ in range(3):
            with psycopg.connect(postgres, autocommit=True) as connection:
                connection.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity"
                    " where datname = current_database() and pid <> pg_backend_pid()"
                )
            assert app.query(Sums()) == {"n": 0}
