"""What the writer of the SQLite store holds in memory: streams as it knows them, and rows that wait to be inserted."""

from __future__ import annotations

import sqlite3
from typing import Any

from ...frames import Columns, schema_columns
from ..base import StagedRun, category_of
from .names import Names

_CACHED = 200_000

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


class Streams:
    """The streams that the writer knows, read from the log as they are asked for.

    Attributes:
        known: By name; as of the transaction under way, whose rows need not be inserted yet.
    """

    def __init__(self, connection: sqlite3.Connection, names: Names) -> None:
        self.known: dict[str, Stream] = {}
        self._connection = connection
        self._names = names

    def bound(self) -> None:
        """Forget them when they are very many. Not inside a transaction: what is not inserted is known here alone."""
        if len(self.known) > _CACHED:
            self.known.clear()

    def find(self, name: str) -> Stream | None:
        """A stream; None when there is none of that name."""
        stream = self.known.get(name)
        if stream is None:
            row = self._connection.execute("select id, closed from streams where name = ?", (name,)).fetchone()
            if row is None:
                return None
            last = self._connection.execute(
                "select version + count - 1 from runs where stream = ? order by version desc limit 1", (row[0],)
            ).fetchone()
            stream = self.known[name] = Stream(row[0], name, last[0] if last else 0, bool(row[1]))
        return stream

    def create(self, name: str) -> Stream:
        """A new stream."""
        cursor = self._connection.execute("insert into streams (name) values (?)", (name,))
        assert cursor.lastrowid is not None
        stream = self.known[name] = Stream(cursor.lastrowid, name, 0, False)
        return stream

    def knows(self, stream: Stream, run: StagedRun) -> bool:
        """Whether a stream holds frames of these columns already."""
        if stream.kinds is None:
            self.shapes(stream)
        assert stream.kinds is not None
        return self._names.kind_id(self._connection, stream.category, run.type, run.schema) in stream.kinds

    def shapes(self, stream: Stream) -> list[Columns]:
        """The columns of each kind of frame that a stream holds."""
        if stream.shapes is None:
            rows = self._connection.execute(
                "select k.id, k.schema from catalogue c join kinds k on k.id = c.kind where c.stream = ? order by k.id",
                (stream.id,),
            ).fetchall()
            stream.kinds = {row[0] for row in rows}
            stream.shapes = [schema_columns(row[1]) for row in rows]
        return stream.shapes

    def learn(self, stream: Stream, kind: int, schema: str) -> None:
        """A stream holds frames of a kind from now on."""
        self.shapes(stream).append(schema_columns(schema))
        assert stream.kinds is not None
        stream.kinds.add(kind)


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
