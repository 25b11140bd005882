"""A database of a real PostgreSQL, captured into a log, and a referee for what comes out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest

import millstream as ms
from millstream.cdc import Capture, Change, capture, decoded
from servers import PostgresServer

Row = dict[str, Any]


class Database:
    """A database to capture, and a log to capture it into."""

    def __init__(self, url: str, log_path: str) -> None:
        self.url = url
        self.db = psycopg.connect(url, autocommit=True)
        self.log_path = log_path
        self.log = ms.open(log_path)
        self.captures: list[Capture] = []

    def sql(self, *statements: str) -> None:
        for statement in statements:
            self.db.execute(statement)  # type: ignore[call-overload]

    def together(self, *statements: str) -> None:
        """In one transaction."""
        with self.db.transaction():
            self.sql(*statements)

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        return self.db.execute(statement).fetchall()  # type: ignore[call-overload]

    def capture(self, *tables: str, **options: Any) -> Capture:
        made = capture(self.url, tables=list(tables) or None, **options)
        self.captures.append(made)
        return made

    def reopen(self) -> None:
        self.log.close()
        self.log = ms.open(self.log_path)

    def changes(self, table: str = "users") -> list[tuple[str, Row | None, Row | None]]:
        """Operation, before and after of every change but READs, with the values that the source had."""
        found = [decoded(e) for e in self.log.read(table, types=[Change])]
        return [(c.operation, c.before, c.after) for c in found if c.operation != "READ"]

    def events(self, table: str = "users") -> list[ms.Event]:
        return [e.event for e in self.log.read(table)]  # type: ignore[misc]

    def pending(self) -> int:
        """How many bytes of its log the server holds back for the slot beyond what was captured."""
        [(bytes,)] = self.rows("select pg_current_wal_lsn() - confirmed_flush_lsn from pg_replication_slots")
        return int(bytes)

    def close(self) -> None:
        self.log.close()
        for made in self.captures:
            made.uninstall()
        for (slot,) in self.rows("select slot_name from pg_replication_slots where database = current_database()"):
            self.db.execute("select pg_drop_replication_slot(%s)", (slot,))
        self.db.close()


@pytest.fixture
def shop(postgres: str, tmp_path: Path) -> Iterator[Database]:
    made = Database(postgres, str(tmp_path / "log.db"))
    yield made
    made.close()


@pytest.fixture
def users(shop: Database) -> Database:
    """With a table that tells whole rows."""
    shop.sql(
        "create table users (id bigint primary key, email text, name text)", "alter table users replica identity full"
    )
    return shop


def replay(log: ms.Log, table: str, key: tuple[str, ...]) -> list[Row]:
    """The rows that the changes of a table give; with a key, by it, else as they are."""
    rows: dict[Any, Row] = {}
    bag: Counter[bytes] = Counter()
    kept: dict[bytes, Row] = {}
    for recorded in log.read(table, types=[Change, ms.SchemaChanged]):
        if isinstance(recorded.event, ms.SchemaChanged):
            continue
        change = decoded(recorded)
        if change.operation == "TRUNCATE":
            rows.clear()
            bag.clear()
            continue
        if key:
            if change.before is not None:
                rows.pop(_address(change.before, key), None)
            if change.after is not None:
                rows[_address(change.after, key)] = change.after
        else:
            if change.before is not None:
                gone = _text(change.before)
                assert bag[gone] > 0, f"{change} names a row that is not there"
                bag[gone] -= 1
            if change.after is not None:
                bag[_text(change.after)] += 1
                kept[_text(change.after)] = change.after
    return list(rows.values()) if key else [kept[text] for text in bag.elements()]


def _address(row: Row, key: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(row[name] for name in key)


def _text(row: Row) -> bytes:
    return msgspec.json.encode({name: str(value) for name, value in row.items()})


def moments(log: ms.Log, table: str) -> list[datetime]:
    """When each change of a table happened."""
    return [e.event.timestamp for e in log.read(table, types=[Change])]  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def own_server() -> Iterator[Callable[..., PostgresServer]]:
    """Makes a server of a test's own, to be stopped and set up otherwise."""
    made: list[PostgresServer] = []

    def make(*options: str, **rest: Any) -> PostgresServer:
        made.append(PostgresServer(*options, **rest))
        return made[-1]

    yield make
    for server in made:
        server.close()
