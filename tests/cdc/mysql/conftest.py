"""A database of a real MariaDB, captured into a log, and a referee for what comes out.

With ``MILLSTREAM_MYSQLD=/path/to/mysqld`` in the environment it is a MySQL instead.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import pymysql
import pytest

import millstream as ms
from millstream.cdc import Capture, Change, capture, decoded
from servers import MariaDBServer

Row = dict[str, Any]
MYSQLD = os.environ.get("MILLSTREAM_MYSQLD")
_numbers = count(1)

only_mariadb = pytest.mark.skipif(MYSQLD is not None, reason="MILLSTREAM_MYSQLD names a MySQL, and this is of MariaDB")
only_mysql = pytest.mark.skipif(MYSQLD is None, reason="MILLSTREAM_MYSQLD names no MySQL")


def make_server(*options: str) -> MariaDBServer:
    if MYSQLD is None and MariaDBServer.program is None:
        pytest.skip("there is no mariadbd: install Debian's package mariadb-server")
    return MariaDBServer(*options, program=MYSQLD)


class Shop:
    """A database to capture, with a connection of its own to write with, and a log to capture it into."""

    def __init__(self, server: MariaDBServer, log_path: Path, database: str = "shop") -> None:
        self.server = server
        self.database = database
        self.url = server.url(database)
        self.db = self.connect("mysql")
        self.sql(f"create database {database}", f"use {database}")
        self.log_path = str(log_path)
        self.log = ms.open(self.log_path)

    def connect(self, database: str | None = None) -> Any:
        return pymysql.connect(
            host="127.0.0.1", port=self.server.port, user="root", database=database or self.database,
            charset="utf8mb4", autocommit=True,
        )  # fmt: skip

    def sql(self, *statements: str) -> None:
        with self.db.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)

    def together(self, *statements: str) -> None:
        """In one transaction."""
        self.sql("begin", *statements, "commit")

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        with self.db.cursor() as cursor:
            cursor.execute(statement)
            return list(cursor.fetchall())

    def capture(self, *tables: str, **options: Any) -> Capture:
        return capture(options.pop("url", self.url), tables=list(tables) or None, **options)

    def reopen(self) -> None:
        self.log.close()
        self.log = ms.open(self.log_path)

    def log_position(self) -> int:
        """How far the log has come in the source's."""
        with self.log.connect() as db:
            row = db.one(f"select state from {db.own('millstream_captures')}")
        assert row is not None
        source = msgspec.json.decode(row["state"])["source"]
        return int(source["file"].rpartition(".")[2]) << 32 | int(source["offset"])

    def changes(self, table: str = "users") -> list[tuple[str, Row | None, Row | None]]:
        """Operation, before and after of every change but READs, with the values that the source had."""
        found = [decoded(e) for e in self.log.read(table, types=[Change])] if self.log.version(table) else []
        return [(c.operation, c.before, c.after) for c in found if c.operation != "READ"]

    def events(self, table: str = "users") -> list[ms.Event]:
        return [e.event for e in self.log.read(table)]  # type: ignore[misc]

    def close(self) -> None:
        self.log.close()
        self.sql(f"drop database if exists {self.database}")
        self.db.close()


@pytest.fixture
def shop(mysql_server: MariaDBServer, tmp_path: Path) -> Iterator[Shop]:
    made = Shop(mysql_server, tmp_path / "log.db", f"shop_{next(_numbers)}")
    yield made
    made.close()


@pytest.fixture
def users(shop: Shop) -> Shop:
    shop.sql("create table users (id bigint primary key, email varchar(100), name text)")
    return shop


@pytest.fixture
def own_server() -> Iterator[Callable[..., MariaDBServer]]:
    """Makes a server of a test's own, to be stopped and set up otherwise."""
    made: list[MariaDBServer] = []

    def make(*options: str) -> MariaDBServer:
        made.append(make_server(*options))
        return made[-1]

    yield make
    for server in made:
        server.close()


def replay(log: ms.Log, table: str, key: tuple[str, ...]) -> list[Row]:
    """The rows that the changes of a table give: with a key, by it, else as they are.

    A change of a keyless table that names a row which is not there is refused.
    """
    rows: dict[Any, Row] = {}
    bag: Counter[bytes] = Counter()
    kept: dict[bytes, Row] = {}
    for recorded in log.read(table, types=[Change, ms.SchemaChanged]):
        event = recorded.event
        if isinstance(event, ms.SchemaChanged):
            rows = {at: _reshaped(row, event) for at, row in rows.items()}
            old, bag = bag, Counter()
            for text, number in old.items():
                row = _reshaped(kept[text], event)
                bag[_text(row)] += number
                kept[_text(row)] = row
            continue
        change = decoded(recorded)
        if change.operation == "TRUNCATE":
            rows.clear()
            bag.clear()
            continue
        if key:
            if change.before is not None:
                rows.pop(tuple(change.before[name] for name in key), None)
            if change.after is not None:
                rows[tuple(change.after[name] for name in key)] = change.after
        else:
            if change.before is not None:
                gone = _text(change.before)
                assert bag[gone] > 0, f"{change} names a row that is not there"
                bag[gone] -= 1
            if change.after is not None:
                bag[_text(change.after)] += 1
                kept[_text(change.after)] = change.after
    return list(rows.values()) if key else [kept[text] for text in bag.elements()]


def _reshaped(row: Row, event: ms.SchemaChanged) -> Row:
    row = {event.renamed.get(name, name): value for name, value in row.items() if name not in event.dropped}
    return {name: row.get(name, event.added.get(name)) for name in event.columns}


def _text(row: Row) -> bytes:
    return msgspec.json.encode({name: str(value) for name, value in row.items()})


def kept(shop: Shop, table: str = "users", key: tuple[str, ...] = ("id",)) -> None:
    """The log's changes give what the table holds."""
    found = sorted(_text(row) for row in replay(shop.log, table, key))
    with shop.db.cursor(pymysql.cursors.DictCursor) as cursor:
        cursor.execute(f"select * from {table}")
        rows = list(cursor.fetchall())
    assert found == sorted(_text(row) for row in rows)


def waiting(condition: Callable[[], Any], seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.02)
