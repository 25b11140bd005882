"""What the guide says of a log in PostgreSQL, done: backups, standbys, a driver that is not installed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import polars as pl
import psycopg
import pytest

import millstream as ms
from servers import PostgresServer


class Added(ms.Event):
    n: int


class Numbers(ms.Projection):
    schema = "create table numbers (n integer)"

    @ms.on
    def added(self, event: Added, db: ms.Database) -> None:
        db.execute("insert into numbers values (?)", (event.n,))


class Count(ms.Query[int]):
    pass


def fill(log: ms.Log) -> None:
    log.append("a", [Added(n=1), Added(n=2)], tags=["t"], id="first")
    log.append("clicks", pl.DataFrame({"user": ["ann", "bob"]}), type="Click")
    ms.run(log, ms.stream("clicks").select("user").to("users", type="User"), until="head")
    log.close_stream("a")


def test_many_that_open_a_new_log_at_once_all_get_it(postgres):
    count, rounds = 6, 8
    together = threading.Barrier(count)
    ids: dict[int, set[str]] = {number: set() for number in range(rounds)}
    failures = []

    def open_all() -> None:
        for number, found in ids.items():
            together.wait(30)
            try:
                with ms.open(f"{postgres}?schema=s{number}") as log:
                    found.add(log.id)
                    log.append("a", Added(n=1))
            except ms.MillstreamError as error:
                failures.append(error)

    threads = [threading.Thread(target=open_all) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert [len(found) for found in ids.values()] == [1] * rounds
    with ms.open(f"{postgres}?schema=s0") as log:
        assert log.head == count


def test_a_dump_that_is_restored_is_the_log(postgres, postgres_server, tmp_path):
    with ms.open(f"{postgres}?schema=events") as log:
        fill(log)
        told = [(e.position, e.stream, e.type, e.data, e.tags, e.time) for e in log.read()]
        hash, id = log.verify().hash, log.id
    dump = tmp_path / "events.dump"
    tool = postgres_server.tool
    subprocess.run([tool("pg_dump"), "--format=custom", "--schema=events", f"--file={dump}", postgres], check=True)
    other = postgres.rpartition("/")[0] + "/restored"
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("create database restored template template0")
    subprocess.run([tool("pg_restore"), f"--dbname={other}", dump], check=True)
    with ms.open(f"{other}?schema=events") as log:
        assert [(e.position, e.stream, e.type, e.data, e.tags, e.time) for e in log.read()] == told
        assert (log.verify().hash, log.id) == (hash, id)
        assert log.append("a", [Added(n=1), Added(n=2)], tags=["t"], id="first").position == 2
        with pytest.raises(ms.StreamClosed):
            log.append("a", Added(n=3))
        log.append("clicks", pl.DataFrame({"user": ["eve"]}), type="Click")
        ms.run(log, ms.stream("clicks").select("user").to("users", type="User"), until="head")
        assert log.scan("users").collect()["user"].to_list() == ["ann", "bob", "eve"]
    with psycopg.connect(other, autocommit=True) as connection, pytest.raises(psycopg.Error, match="append-only"):
        connection.execute("delete from events.runs")


@pytest.fixture(scope="module")
def standby(postgres_server):
    server = PostgresServer(standby_of=postgres_server)
    yield server
    server.close()


def test_a_standby_is_read_followed_and_shown_by_read_models_in_files(postgres, standby, tmp_path):
    with ms.open(postgres) as log:
        fill(log)
        url = standby.url(postgres.rpartition("/")[2])
        await_replay(standby, log)
        with ms.open(url) as reader:
            with pytest.raises(ms.ReadOnlyLog, match=r"read-only.*standby"):
                reader.append("b", Added(n=3))
            following = reader.follow("b", timeout=30)
            app = ms.App(reader, projections=[Numbers.into(tmp_path / "read.db")])

            @app.query
            def number(query: Count, db: ms.Database) -> int:
                return db.one("select count(*) as n from numbers")["n"]

            with app:
                assert app.query(Count(), after=reader.head) == 2
                receipt = log.append("b", Added(n=3))
                assert next(following).position == receipt.position
                assert app.query(Count(), after=receipt) == 3
            following.close()
            assert reader.scan("users").collect()["user"].to_list() == ["ann", "bob"]
            assert reader.verify().position == receipt.position


def await_replay(standby: PostgresServer, log: ms.Log) -> None:
    """Wait until the standby has the log as it is."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            with ms.open(standby.url(log.location.rpartition("/")[2]), readonly=True) as reader:
                if reader.head == log.head:
                    return
        except ms.MillstreamError:
            pass
        time.sleep(0.02)
    raise AssertionError("the standby does not come level")


def test_without_the_driver_the_extra_is_named_and_a_file_needs_none(tmp_path):
    code = (
        "import sys\n"
        "sys.modules['psycopg'] = None\n"  # an import of it raises ImportError
        "import millstream as ms\n"
        f"with ms.open({str(tmp_path / 'log.db')!r}) as log: log.append('a', ms.Plain('Opened', {{}}))\n"
        "try: ms.open('postgresql://localhost/shop')\n"
        "except ms.MissingExtra as error: print(error, error.exit_code)\n"
        "from millstream.cli import main\n"
        "main(['postgres', 'grants', 'postgresql://localhost/shop', '--role', 'web', '--read'])\n"
    )
    env = {**os.environ, "PYTHONPATH": ms.__file__.rpartition("/millstream/")[0]}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert "pip install 'millstream[postgres]' 1" in done.stdout.replace(".", "")
    assert done.returncode == 1
    assert "pip install 'millstream[postgres]'" in done.stderr
