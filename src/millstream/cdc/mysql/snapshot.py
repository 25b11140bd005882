"""Reading the rows that are there, each stretch of them as of one exactly known position of the server's log.

MariaDB says at which position of its log a transaction's view of the database is (``START TRANSACTION WITH CONSISTENT
SNAPSHOT`` sets the status variables ``binlog_snapshot_file`` and ``binlog_snapshot_position``, under the lock that
commits are ordered by), so that nothing has to be locked. MySQL does not: there the one table is locked for reading
for as long as it takes to ask for the position and to begin the transaction on another connection, some
milliseconds; for this one table the view is then exactly that of the position.

*Chunks*: a table with a key is read in stretches of it, each under a view of its own, at a position X, while the
stream goes on. A chunk goes into the log when the stream has passed X. Changes up to X are in the chunk, and were in
the log before it; rows whose keys were changed by transactions after X that have gone into the log already are left
out of it, since the log knows better. So at every moment the log says of each row that it has told of what the source
said at the stream's position. After a crash the reading goes on after the last chunk that is in the log. (The scheme
is that of Netflix's DBLog, with exact positions in the place of its table of watermarks.)

*Whole*: tables without a key, or with one whose order cannot be relied on, are read under one view at X while the
stream waits. Changes to them up to X are then left out: they are in the rows.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from queue import Empty, Full, Queue
from typing import Any

import msgspec
import pymysql

from .catalog import Catalog, Server, end_of
from .layout import Layout, LayoutColumn
from .place import Connection, Place, connect, query, quote_name, quote_text
from .textrows import make_reader, select_list
from .transaction import position_of, time_text
from .values import quoted
from .wire import text_rows

PAGE_ROWS = 10_000
PAGE_BYTES = 4 << 20
"""What one page holds at most, about."""

CHUNK_BYTES = 32 << 20
"""How large a chunk may be, about."""

SCHEMA_ERRORS = {1054, 1146, 1412}
"""What a query says whose table is not what it was when the query was written."""


class Job(msgspec.Struct):
    """A table to read.

    Attributes:
        cursor: The key of the last row that is in the log, as JSON has its values; None to begin.
        keyed: In stretches of the key.
        least: The position that a view of it must not be before.
        position: That of the first view.
        cancelled: Nobody wants it any more.
        failed: It could not be read.
    """

    table: str
    layout: Layout
    cursor: list[Any] | None
    keyed: bool
    least: int = 0
    position: int | None = None
    cancelled: bool = False
    failed: bool = False


class Page(msgspec.Struct):
    """Rows that were read.

    Attributes:
        rows: Each as a JSON object.
        position: They are as of this place in the log.
        last: There are no more of this table.
        cursor: The key of the last one.
    """

    job: Job
    rows: list[bytes]
    position: int
    micros: int
    last: bool
    cursor: list[Any] | None = None
    error: Exception | None = None

    def lines(self, rows: list[bytes]) -> bytes:
        """Some of them as READ changes."""
        before = b'{"operation":"READ","table":%b,"before":null,"after":' % quoted(self.job.table)
        after = b',"timestamp":"%b"}' % time_text(self.micros)
        return before + (after + b"\n" + before).join(rows) + after


class Reader:
    """Reads tables one after the other, on a thread of its own; pages come out of `look`."""

    def __init__(self, place: Place, server: Server, chunk_rows: int) -> None:
        self.place = place
        self.server = server
        self.chunk_rows = chunk_rows
        self._jobs: deque[Job] = deque()
        self._pages: Queue[Page] = Queue(maxsize=2)
        self._waiting: Page | None = None
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, job: Job) -> None:
        """Read a table."""
        self._jobs.append(job)
        self._wake.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="millstream-snapshot", daemon=True)
            self._thread.start()

    def look(self, seconds: float = 0.0) -> Page | None:
        """The page that is next, within a time. It stays so until `take`."""
        while self._waiting is None or self._waiting.job.cancelled:
            self._waiting = None
            try:
                self._waiting = self._pages.get(timeout=seconds) if seconds else self._pages.get_nowait()
            except Empty:
                return None
        return self._waiting

    def take(self) -> None:
        """The page was used."""
        self._waiting = None

    def close(self) -> None:
        """End it, wherever it is."""
        self._stopping.set()
        self._wake.set()
        while self._thread is not None and self._thread.is_alive():
            with suppress(Empty):
                self._pages.get_nowait()
            self._thread.join(0.02)

    # --- the thread ---------------------------------------------------------------------------------------

    def _work(self) -> None:
        while not self._stopping.is_set():
            if not self._jobs:
                self._wake.wait(0.2)
                self._wake.clear()
                continue
            job = self._jobs.popleft()
            if job.cancelled:
                continue
            try:
                self._read(job)
            except Exception as error:  # whoever takes the pages says what it means
                job.failed = True
                self._put(Page(job, [], 0, 0, True, error=error))

    def _read(self, job: Job) -> None:
        connection = connect(self.place, patience=3600)
        try:
            if not job.keyed:
                self._stretch(connection, job, "", 0)
                return
            limit = self._limit(job.table)
            while not job.cancelled and not self._stopping.is_set():
                if self._stretch(connection, job, self._rest(job, limit), limit):
                    return
        finally:
            connection._force_close()

    def _limit(self, table: str) -> int:
        catalog = Catalog(self.place)
        try:
            size = catalog.average_row(table)
        finally:
            catalog.close()
        return max(100, min(self.chunk_rows, CHUNK_BYTES // max(size, 1)))

    def _stretch(self, connection: Connection, job: Job, rest: str, limit: int) -> bool:
        """Read a stretch under one view; whether it was the last one."""
        while (position := view(connection, self.place, self.server, job.table)) < job.least:
            # A transaction is told by the stream a moment before others can see what it did.
            query(connection, "ROLLBACK")
            if job.cancelled or self._stopping.wait(0.01):
                return True
        job.position = position if job.position is None else job.position
        micros = time.time_ns() // 1000
        statement = (
            f"SELECT {select_list(job.layout)} FROM {quote_name(self.place.database)}.{quote_name(job.table)} {rest}"
        )
        count = 0
        for rows in _pages(text_rows(connection, statement), job.layout):
            count += len(rows)
            if job.keyed and rows:
                job.cursor = _key_of(rows[-1], job.layout.key)
            self._put(Page(job, rows, position, micros, False, job.cursor))
            if job.cancelled or self._stopping.is_set():
                return True
        query(connection, "ROLLBACK")
        if not job.keyed or count < limit:
            self._put(Page(job, [], position, micros, True, job.cursor))
            return True
        return False

    def _rest(self, job: Job, limit: int) -> str:
        columns = {column.name: column for column in job.layout.columns}
        key = job.layout.key
        names = [quote_name(name) for name in key]
        where = ""
        if job.cursor is not None:
            literals = [_literal(columns[name], value) for name, value in zip(key, job.cursor, strict=True)]
            # Written out, since the server finds no way into an index by a comparison of rows.
            where = ""
            for name, literal in reversed(list(zip(names, literals, strict=True))):
                where = (
                    f"{name} > {literal}" if not where else f"{name} >= {literal} AND ({name} > {literal} OR {where})"
                )
            where = f"WHERE {where} "
        return f"{where}ORDER BY {', '.join(names)} LIMIT {limit}"

    def _put(self, page: Page) -> None:
        while not self._stopping.is_set() and not page.job.cancelled:
            try:
                self._pages.put(page, timeout=0.1)
                return
            except Full:
                continue


def view(connection: Connection, place: Place, server: Server, table: str | None) -> int:
    """Begin a transaction on a connection, and say at which position of the log its view of a table is; of all
    tables, if none is named."""
    query(connection, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    if server.mariadb:
        query(connection, "START TRANSACTION WITH CONSISTENT SNAPSHOT")
        rows = query(connection, "SHOW STATUS LIKE 'binlog_snapshot_%'")
        found = {row["variable_name"].lower(): row["value"] for row in rows}
        return position_of(found["binlog_snapshot_file"], int(found["binlog_snapshot_position"]))
    lock = "FLUSH TABLES WITH READ LOCK"
    if table is not None:
        lock = f"LOCK TABLES {quote_name(place.database)}.{quote_name(table)} READ"
    locking = connect(place)
    try:
        deadline = time.monotonic() + 60
        query(locking, "SET SESSION lock_wait_timeout = 2")
        while True:
            try:
                query(locking, lock)
                break
            except pymysql.err.OperationalError as error:
                # A long transaction holds the table: let the others by, and try again.
                if error.args[0] != 1205 or time.monotonic() > deadline:
                    raise
                time.sleep(0.5)
        end = end_of(locking, server, place.location)
        query(connection, "START TRANSACTION WITH CONSISTENT SNAPSHOT")
        return end.position
    finally:
        locking._force_close()


def _pages(rows: Iterator[bytes], layout: Layout) -> Iterator[list[bytes]]:
    read = make_reader(layout)
    found: list[bytes] = []
    size = 0
    for row in rows:
        found.append(read(row, 0))
        size += len(row)
        if len(found) >= PAGE_ROWS or size >= PAGE_BYTES:
            yield found
            found, size = [], 0
    if found:
        yield found


def _key_of(row: bytes, key: tuple[str, ...]) -> list[Any]:
    found = msgspec.json.decode(row)
    return [found[name] for name in key]


def _literal(column: LayoutColumn, value: Any) -> str:
    """A key's value, as JSON has it, in a statement."""
    if isinstance(value, int):
        return str(value)
    if column.kind == "bytes":
        from base64 import b64decode

        return f"x'{b64decode(value).hex()}'" if value else "''"
    if column.kind == "decimal":
        return str(value)
    if column.kind in ("timestamp", "timestamptz"):
        return quote_text(value.replace("T", " ").removesuffix("Z"))
    return f"_utf8mb4{quote_text(value)}" if column.kind == "text" else quote_text(value)
