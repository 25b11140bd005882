"""Whether two tables say the same, whatever they are in."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import polars as pl
import psycopg
import pytest

import millstream as ms
from millstream.testing import assert_converged


def test_values_are_compared_for_what_they_say() -> None:
    moment = datetime(2024, 1, 15, 10, 30, tzinfo=UTC)
    here = [{"id": 1, "amount": Decimal("1.50"), "paid": True, "at": moment, "raw": b"\xff", "none": None}]
    there = [
        {"id": "1", "amount": "1.5", "paid": 1, "at": "2024-01-15T10:30:00Z", "raw": memoryview(b"\xff"), "none": None}
    ]
    assert_converged(here, there, "t")
    assert_converged(pl.DataFrame({"a": [2, 1]}), [{"a": 1}, {"a": 2}], "t")


@pytest.mark.parametrize(
    ("there", "told"),
    [
        ([{"id": 1}], "only the source has {'id': '2'}"),
        ([{"id": 1}, {"id": 2}, {"id": 2}], "only the sink has {'id': '2'}"),
        ([{"id": 1}, {"id": None}], "only the sink has {'id': None}"),
    ],
)
def test_rows_that_only_one_has_are_named(there: list[dict[str, int]], told: str) -> None:
    with pytest.raises(AssertionError) as caught:
        assert_converged([{"id": 1}, {"id": 2}], there, "t")
    assert told in str(caught.value)


def test_a_sink_is_waited_for(postgres: str, tmp_path: Path) -> None:
    copy = f"sqlite:///{tmp_path}/copy.sqlite"
    with psycopg.connect(postgres, autocommit=True) as db, closing(sqlite3.connect(tmp_path / "copy.sqlite")) as other:
        db.execute("create table users (id int primary key, email text)")
        db.execute("insert into users values (1, 'a'), (2, 'b')")
        other.execute("create table users (id integer primary key, email text)")
        late = threading.Timer(0.2, lambda: fill(tmp_path))
        late.start()
        assert_converged(postgres, copy, "users")
        late.join()
        db.execute("delete from users where id = 1")
        with pytest.raises(AssertionError, match="only the sink has"):
            assert_converged(postgres, copy, "users", timeout=0.1)


def fill(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "copy.sqlite")) as db:
        db.executemany("insert into users values (?, ?)", [(1, "a"), (2, "b")])
        db.commit()


def test_a_log_says_what_was_captured_into_it(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/shop.sqlite"
    with closing(sqlite3.connect(tmp_path / "shop.sqlite")) as db, ms.open() as log:
        db.execute("create table users (id integer primary key, email text)")
        db.execute("insert into users values (1, 'a')")
        db.commit()
        ms.capture(url, tables=["users"]).catch_up(log)
        assert_converged(url, log, "users")
    with pytest.raises(ms.UsageError, match="cannot be read here"):
        assert_converged("redis://localhost", [], "users")


def test_a_table_that_is_not_there_yet_is_waited_for_and_named_in_the_end(tmp_path):
    copy = f"sqlite:///{tmp_path}/copy.sqlite"
    with pytest.raises(AssertionError, match="the sink has no table 'users'"):
        assert_converged([{"id": 1}], copy, "users", timeout=0.1)
    with pytest.raises(AssertionError, match="the source has no table 'users'"):
        assert_converged(ms.open(), [], "users", timeout=0.1)
