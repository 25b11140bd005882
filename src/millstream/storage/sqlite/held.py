"""What the writer of the SQLite store holds in memory: streams as it knows them, and rows that wait to be inserted."""

from __future__ import annotations

import sqlite3
from typing import Any

from ...frames import Columns
from ..base import category_of

_INSERT_RUN = (
    "insert into runs (position, count, stream, version, kind, recorded, effective, format, body_hash, hash,"
    " metadata, body_ref, body_offset, body) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, ?)"
)


_INSERTS = {
    "bodies": "insert into bodies (id, encoding, rows, bytes) values (?, ?, ?, ?)",
    "tags": "insert into tags (tag, position) values (?, ?)",
    "ranges": "insert into ranges (position, name, low, high) values (?, ?, ?, ?)",
    "catalogue": "insert or ignore into catalogue (stream, kind) values (?, ?)",
    "appends": "insert into appends (id, digest, first, last, result) values (?, ?, ?, ?, ?)",
}


class Stream:
    """What the writer knows of a stream, as of the last commit."""

    __slots__ = ("category", "closed", "id", "kinds", "numbers", "shapes", "version")

    def __init__(self, id: int, name: str, version: int, closed: bool) -> None:
        self.id = id
        self.category = category_of(name)
        self.numbers: dict[str, tuple[str, int]] = {}
        """The schema and the kind's number that each type was last appended with."""
        self.version = version
        self.closed = closed
        self.shapes: list[Columns] | None = None
        self.kinds: set[int] | None = None


class Rows:
    """Rows that wait to be inserted: headers, and what few headers have."""

    __slots__ = ("others", "runs")

    def __init__(self) -> None:
        self.runs: list[tuple[Any, ...]] = []
        self.others: dict[str, list[tuple[Any, ...]]] | None = None

    def add(self, table: str, row: tuple[Any, ...]) -> None:
        if self.others is None:
            self.others = {}
        self.others.setdefault(table, []).append(row)

    def insert(self, connection: sqlite3.Connection) -> None:
        if self.runs:
            if len(self.runs) == 1:
                connection.execute(_INSERT_RUN, self.runs[0])
            else:
                connection.executemany(_INSERT_RUN, self.runs)
            self.runs = []
        if self.others:
            for table, rows in self.others.items():
                connection.executemany(_INSERTS[table], rows)
            self.others = None
