"""Reading the rows that are there: whole tables under one exported snapshot, and big ones in chunks.

*Whole*: one transaction exports its snapshot, and as many workers as there are connections read tables under it, all
as of one moment, while the stream waits. Of the changes that come later, those of transactions that the snapshot
saw are left out for these tables: they are in the rows already.

*Chunks*: a table is read in stretches of its key, each under a snapshot of its own, while the stream goes on. A
chunk goes into the log when the stream has passed the chunk's high watermark, a position after all that its
snapshot saw. Rows whose keys were changed by transactions that the snapshot did not see, and that have gone into the
log before the chunk, are left out of it: the log knows better. What the snapshot saw can do no harm, since the chunk
shows its outcome. After a crash the reading goes on after the last chunk that is in the log. (The scheme is that
of Netflix's DBLog, with PostgreSQL's own snapshots in place of its table of watermarks.)

The server makes JSON of the rows itself: that costs it less than sending them and taking them apart here.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from queue import Full, Queue
from typing import Any

import msgspec
import psycopg
from psycopg import sql

from ...storage.postgres.place import Place, quote_name
from ..source import MAX_EVENTS
from .assemble import time_text
from .catalog import Catalog, Connection, SourceTable, connect
from .relation import Relation
from .types import as_json
from .visibility import Visibility, parse_snapshot

PAGE_ROWS = 20_000
PAGE_BYTES = 8 << 20
"""What one piece of a whole table holds at most, about."""

WHOLE_BYTES = 64 << 20
"""Tables up to this size are read whole; bigger ones, if they have a key, in chunks."""

WORKERS = 2

STATE = """
select pg_current_snapshot()::text as snapshot, pg_current_wal_insert_lsn()::text as high,
       (extract(epoch from clock_timestamp()) * 1000000)::int8 as micros
"""
"""What the present transaction sees, where the server's log ends after that, and when it was."""


class Page(msgspec.Struct):
    """Rows that were read.

    Attributes:
        rows: Each as a JSON object in a line of its own, without a last newline.
        last: There are no more of this table.
    """

    table: str
    rows: bytes
    count: int
    last: bool
    micros: int
    visibility: Visibility
    relation: Relation | None = None
    error: Exception | None = None

    def runs(self) -> Iterator[tuple[bytes, int]]:
        """As READ changes, a line each, as many at once as a run may have."""
        before = b'{"operation":"READ","table":%b,"before":null,"after":' % msgspec.json.encode(self.table)
        after = b',"timestamp":"%b"}' % time_text(self.micros)
        parts = [self.rows] if self.count <= MAX_EVENTS else _cut(self.rows)
        for rows in parts if self.count else ():
            yield before + rows.replace(b"\n", after + b"\n" + before) + after, rows.count(b"\n") + 1


def _cut(rows: bytes) -> list[bytes]:
    lines = rows.split(b"\n")
    return [b"\n".join(lines[first : first + MAX_EVENTS]) for first in range(0, len(lines), MAX_EVENTS)]


def select_rows(table: SourceTable, relation: Relation, rest: str = "") -> str:
    """A query for rows of which the server's own JSON is what the stream's decoders write."""
    columns = ", ".join(
        f"{as_json('t.' + quote_name(c.name), c.type.kind, c.type.by_format)} as {quote_name(c.name)}"
        for c in relation.columns
    )
    source = f"(select * from {table.quoted} where {relation.condition})" if relation.condition else table.quoted
    return f"select {columns} from {source} t {rest}"


def row_query(table: SourceTable, relation: Relation, rest: str = "") -> str:
    """A COPY that gives each row as a JSON object."""
    return f"copy (select row_to_json(x) from ({select_rows(table, relation, rest)}) x) to stdout"


def copied(connection: Connection, query: str) -> Iterator[tuple[bytes, int]]:
    """The rows of such a COPY in pages: lines without a last newline, and how many."""
    rows: list[bytes] = []
    size = 0
    with connection.cursor().copy(query) as copy:
        for row in copy:
            rows.append(bytes(row))
            size += len(row)
            if len(rows) >= PAGE_ROWS or size >= PAGE_BYTES:
                yield _unescaped(rows), len(rows)
                rows, size = [], 0
    if rows:
        yield _unescaped(rows), len(rows)


def _unescaped(rows: list[bytes]) -> bytes:
    # COPY doubles each backslash; JSON has no other character that it would write in another way.
    return b"".join(rows)[:-1].replace(b"\\\\", b"\\")


class WholeTables:
    """Reads tables under one snapshot, on threads of its own; pages come out of `next`."""

    def __init__(self, place: Place, tables: list[SourceTable], publications: Sequence[str]) -> None:
        self.place = place
        self._left = list(tables)
        self._publications = publications
        self._mutex = threading.Lock()
        self._stopping = threading.Event()
        self._pages: Queue[Page] = Queue(maxsize=4)
        self.waiting_for = {table.name for table in tables}
        self._holder = connect(place)
        try:
            self._holder.execute("begin isolation level repeatable read read only")
            _hold(self._holder, tables)
            row = self._holder.execute(STATE).fetchone()
            exported = self._holder.execute("select pg_export_snapshot() as id").fetchone()
            assert row is not None
            assert exported is not None
            self.visibility = parse_snapshot(row)
            self.micros = row["micros"]
            self._id = exported["id"]
        except BaseException:
            self._holder.close()
            raise
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Begin to read."""
        self._threads = [
            threading.Thread(target=self._work, name="millstream-snapshot", daemon=True)
            for _ in range(min(WORKERS, len(self._left)))
        ]
        for thread in self._threads:
            thread.start()

    def next(self, seconds: float) -> Page | None:
        """The next page, if one comes within a time.

        Raises:
            psycopg.Error: A table could not be read.
        """
        try:
            page = self._pages.get(timeout=seconds)
        except Exception:  # the queue is empty
            return None
        if page.error is not None:
            raise page.error
        if page.last:
            self.waiting_for.discard(page.table)
        return page

    def close(self) -> None:
        """End it, wherever it is."""
        self._stopping.set()
        for thread in self._threads:
            while thread.is_alive():
                while not self._pages.empty():
                    self._pages.get_nowait()
                thread.join(0.05)
        self._holder.close()

    def _work(self) -> None:
        name = ""
        try:
            with connect(self.place) as connection:
                connection.execute("begin isolation level repeatable read read only")
                connection.execute(f"set transaction snapshot '{self._id}'")
                while not self._stopping.is_set():
                    with self._mutex:
                        if not self._left:
                            return
                        table = self._left.pop(0)
                    name = table.name
                    relation = Catalog(connection).relation_of(table, self._publications)
                    for rows, count in copied(connection, row_query(table, relation)):
                        self._put(Page(name, rows, count, False, self.micros, self.visibility, relation))
                        if self._stopping.is_set():
                            return
                    self._put(Page(name, b"", 0, True, self.micros, self.visibility, relation))
        except Exception as error:
            self._put(Page(name, b"", 0, True, 0, self.visibility, error=error))

    def _put(self, page: Page) -> None:
        while not self._stopping.is_set():
            try:
                self._pages.put(page, timeout=0.1)
                return
            except Full:
                continue


class Chunks:
    """Reads one table in stretches of its key, a few ahead, on a thread of its own.

    Args:
        cursor: The key of the last row that is in the log, as JSON has its values; None to begin.
    """

    def __init__(
        self, place: Place, table: SourceTable, publications: Sequence[str], cursor: list[Any] | None, rows: int
    ) -> None:
        self.place = place
        self.table = table
        self.rows = rows
        self._publications = publications
        self._cursor = cursor
        self._stopping = threading.Event()
        self._ready: Queue[tuple[Page, list[Any] | None]] = Queue(maxsize=2)
        self.page: Page | None = None
        """A chunk that waits for the stream to pass its high watermark."""
        self.cursor: list[Any] | None = cursor
        self._thread = threading.Thread(target=self._work, name="millstream-chunks", daemon=True)
        self._thread.start()

    def look(self) -> Page | None:
        """The chunk that is next, if it was read already.

        Raises:
            psycopg.Error: It could not be read.
        """
        if self.page is None and not self._ready.empty():
            self.page, self.cursor = self._ready.get_nowait()
            if self.page.error is not None:
                raise self.page.error
        return self.page

    def take(self) -> Page:
        """The chunk, to go into the log now."""
        page = self.page
        assert page is not None
        self.page = None
        return page

    def close(self) -> None:
        """End it, wherever it is."""
        self._stopping.set()
        while self._thread.is_alive():
            while not self._ready.empty():
                self._ready.get_nowait()
            self._thread.join(0.05)

    def _work(self) -> None:
        nothing = Visibility(0, 0, frozenset(), 0)
        try:
            with connect(self.place) as connection:
                cursor = self._cursor
                while not self._stopping.is_set():
                    page, cursor = self._read(connection, cursor)
                    self._put(page, cursor)
                    if page.last:
                        return
        except Exception as error:
            self._put(Page(self.table.name, b"", 0, True, 0, nothing, error=error), None)

    def _read(self, connection: Connection, cursor: list[Any] | None) -> tuple[Page, list[Any] | None]:
        with _snapshot(connection, self.table) as (visibility, micros):
            relation = Catalog(connection).relation_of(self.table, self._publications)
            query = row_query(self.table, relation, self._rest(connection, relation, cursor))
            pages = list(copied(connection, query))
        # What the snapshot saw is on the server's disk before its watermark is passed.
        connection.execute("select pg_logical_emit_message(true, 'millstream.watermark', '')")
        count = sum(count for _, count in pages)
        rows = b"\n".join(rows for rows, _ in pages)
        if count:
            last = msgspec.json.decode(rows[rows.rfind(b"\n") + 1 :])
            cursor = [last[name] for name in relation.shape.key]
        return Page(self.table.name, rows, count, count < self.rows, micros, visibility, relation), cursor

    def _rest(self, connection: Connection, relation: Relation, cursor: list[Any] | None) -> str:
        key = relation.shape.key
        names = ", ".join(f"t.{quote_name(name)}" for name in key)
        where = ""
        if cursor is not None:
            kinds = {column.name: column for column in relation.columns}
            values = ", ".join(
                _value(connection, kinds[name].type.kind, kinds[name].type_name, value)
                for name, value in zip(key, cursor, strict=True)
            )
            where = f"where ({names}) > ({values}) "
        return f"{where}order by {names} limit {self.rows}"

    def _put(self, page: Page, cursor: list[Any] | None) -> None:
        while not self._stopping.is_set():
            try:
                self._ready.put((page, cursor), timeout=0.1)
                return
            except Full:
                continue


def _hold(connection: Connection, tables: Sequence[SourceTable]) -> None:
    """Keep tables' columns as they are until the transaction ends, from before its snapshot is taken: a query's columns
    are looked up as of now, whatever the snapshot sees."""
    for table in tables:
        connection.execute(f"lock table only {table.quoted} in access share mode")


@contextmanager
def _snapshot(connection: Connection, table: SourceTable) -> Iterator[tuple[Visibility, int]]:
    """A transaction that sees one state of the database, what it sees, and when it was."""
    connection.execute("begin isolation level repeatable read read only")
    try:
        _hold(connection, [table])
        row = connection.execute(STATE).fetchone()
        assert row is not None
        yield parse_snapshot(row), row["micros"]
    finally:
        if connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
            connection.execute("rollback")


def _value(connection: Connection, kind: str, type_name: str, value: Any) -> str:
    """A key's value, as JSON has it, in a statement."""
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    literal = sql.Literal(text).as_string(connection)
    return f"decode({literal}, 'base64')" if kind == "bytes" else f"{literal}::{type_name}"
