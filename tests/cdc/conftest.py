from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

import millstream as ms
from millstream.cdc import Capture, capture


class Shop:
    """A source database with a connection of its own to write with, and a log beside it."""

    def __init__(self, folder: Path, journal: str = "wal", log: str = "") -> None:
        self.path = folder / "shop.sqlite"
        self.url = f"sqlite:///{self.path}"
        self.db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        self.db.execute(f"PRAGMA journal_mode = {journal}")
        self.db.execute("PRAGMA synchronous = OFF")
        self.log_path = log or str(folder / "log.db")
        self.log = ms.open(self.log_path)

    def sql(self, *statements: str) -> None:
        for statement in statements:
            self.db.execute(statement)

    def capture(self, *tables: str, name: str | None = None, prefix: str = "") -> Capture:
        return capture(self.url, tables=list(tables) or None, name=name, prefix=prefix)

    def changes(self, table: str = "users") -> list[tuple[object, ...]]:
        return [
            (e.data["operation"], *(d and tuple(d.values()) for d in (e.data["before"], e.data["after"])))
            for e in self.log.read(table, types=["Change"])
        ]

    def pending(self) -> int:
        return int(self.db.execute("SELECT count(*) FROM _millstream_changes").fetchone()[0])


@pytest.fixture(params=["wal", "delete", "log in postgres"])
def shop(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Shop]:
    """A source in each of its journal modes, and the log in each of its places."""
    in_postgres = request.param == "log in postgres"
    journal = "wal" if in_postgres else request.param
    shop = Shop(tmp_path, journal, request.getfixturevalue("postgres") if in_postgres else "")
    shop.sql("CREATE TABLE users (id INTEGER PRIMARY KEY, email TEXT)")
    yield shop
    shop.log.close()
    shop.db.close()
