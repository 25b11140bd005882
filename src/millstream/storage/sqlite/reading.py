"""What a log's SQLite file is asked: headers and bodies, names, streams, pages on their way to another place."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Container, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from ...errors import DamagedLog, NotFound
from ..base import COLUMNS, AppendRow, BodyInfo, Head, Kind, PackedEvents, Scope, StreamInfo
from ..database import Database
from ..raw import PAGE_BYTES, PAGE_RUNS, RawHead, RawPage, State
from . import packed, raw, reader
from .database import SQLiteDatabase, close_cursors
from .faults import translated
from .forks import opened
from .guard import GuardedDatabase, MemoryReadingDatabase, ReadingDatabase
from .names import Names
from .raw import snapshot
from .writer import read_head


class Reading:
    """The reads of a `SQLiteStore`, each on a connection that it borrows for a moment."""

    page_runs = 1_000
    path: str
    memory: bool
    readonly: bool
    names: Names
    _log_id: str | None

    def reader(self) -> AbstractContextManager[sqlite3.Connection]:
        """A connection to read with, for a moment."""
        raise NotImplementedError

    @contextmanager
    def connect(self) -> Iterator[SQLiteDatabase]:
        """The same as a `Database`; cursors of it that are kept beyond the block are closed at its end."""
        with self.reader() as connection:
            kind = SQLiteDatabase if self.readonly else MemoryReadingDatabase if self.memory else ReadingDatabase
            db = kind(connection, self.path)
            usual = sys.getrefcount(connection)
            try:
                yield db
            finally:
                # A cursor is one more that refers to it. In memory there is one connection, which shows all there is.
                if not self.memory and sys.getrefcount(connection) > usual:
                    close_cursors(connection)

    @property
    def log_id(self) -> str:
        """What tells this log from any other."""
        if self._log_id is None:
            with self.reader() as connection:
                row = connection.execute("select value from meta where key = 'log_id'").fetchone()
            self._log_id = str(row[0]) if row is not None else ""
        return self._log_id

    def append_row(self, id: str) -> AppendRow | None:
        """What is kept of the append with an id, if there was one."""
        with self.reader() as connection:
            row = connection.execute("select digest, result, last from appends where id = ?", (id,)).fetchone()
        return AppendRow(*row) if row is not None else None

    @property
    def location(self) -> str:
        """Where the log is, as `millstream.open` takes it; empty in memory."""
        return "" if self.memory else self.path

    def head(self) -> Head:
        """The end of the log as it is now, whoever wrote it."""
        with self.reader() as connection:
            return read_head(connection)

    def page(self, scope: Scope, after: int, until: int, limit: int, backwards: bool = False) -> list[tuple[Any, ...]]:
        """A page of headers; see `reader.page`."""
        with self.reader() as connection:
            return reader.page(connection, scope, self.names, after, until, limit, backwards)

    def packed(self, scope: Scope, after: int, until: int, limit: int) -> PackedEvents | None:
        """See `Store.packed`."""
        with self.reader() as connection:
            return packed.page(connection, scope, after, until, limit)

    def stream_rows(self, stream: str, version: int, limit: int) -> list[tuple[int, int, int, int, str | None]]:
        """See `Store.stream_rows`."""
        with self.reader() as connection:
            return reader.stream_rows(connection, stream, version, limit)

    def body(self, ref: int) -> tuple[int, bytes]:
        """The encoding and the bytes of a body.

        Raises:
            NotFound: It is gone: compacted into another since its header was read. Read the header again.
        """
        with self.reader() as connection:
            row = connection.execute("select encoding, bytes from bodies where id = ?", (ref,)).fetchone()
        if row is None:
            raise NotFound(f"body {ref} has moved", hint="Read its header again")
        data = row[1]
        return row[0], data if isinstance(data, bytes) else str(data).encode()  # by hand, text may have been put there

    def find_body(self, position: int) -> tuple[int, int] | None:
        """Where the body of the run that begins at a position is now: its number and the offset inside."""
        with self.reader() as connection:
            row = connection.execute(
                "select body_ref, body_offset from runs where position = ?", (position,)
            ).fetchone()
        return (row[0], row[1]) if row is not None and row[0] is not None else None

    def kind(self, id: int) -> Kind:
        """The category, type and schema that a number stands for."""
        found = self.names.known_kind(id)
        if found is None:
            with self.reader() as connection:
                found = self.names.kind(connection, id)
        return found

    def stream_name(self, id: int) -> str:
        """The name that a stream's number stands for."""
        found = self.names.known_stream(id)
        if found is None:
            with self.reader() as connection:
                found = self.names.stream(connection, id)
        return found

    def tags(self, position: int) -> tuple[str, ...]:
        """The tags of the run that begins at a position."""
        with self.reader() as connection:
            return reader.tags_of(connection, position)

    def position_at(self, micros: int) -> int:
        """The last position recorded strictly before a time."""
        with self.reader() as connection:
            return reader.position_at(connection, micros)

    def kinds(self, scope: Scope) -> list[int]:
        """The kinds of the categories and types that a scope takes in."""
        with self.reader() as connection:
            return reader.kind_ids(connection, scope)

    def stream_kinds(self, name: str, kinds: list[int]) -> tuple[list[int], bool]:
        """The kinds of frames that a stream holds, out of these, and whether it holds JSON too."""
        with self.reader() as connection:
            return reader.stream_kinds(connection, name, kinds)

    def range_of(self, position: int, name: str) -> tuple[int, int] | None:
        """Minimum and maximum of a datetime column of the run at a position (microseconds), if known."""
        with self.reader() as connection:
            row = connection.execute(
                "select low, high from ranges where position = ? and name = ?", (position, name)
            ).fetchone()
        return (row[0], row[1]) if row else None

    def headers(self, after: int, limit: int) -> tuple[list[tuple[Any, ...]], dict[int, list[str]]]:
        """The next headers after a position, body hash and hash the last two values; and the tags by position."""
        with self.reader() as connection:
            rows = connection.execute(
                f"select {COLUMNS}, body_hash, hash from runs where position > ? order by position limit ?",
                (after, limit),
            ).fetchall()
            tags: dict[int, list[str]] = {}
            for position, tag in connection.execute(
                "select position, tag from tags where position > ? and position <= ? order by position, tag",
                (after, rows[-1][0] if rows else after),
            ):
                tags.setdefault(position, []).append(tag)
        return rows, tags

    def placed(self, database: Database, first: int, until: int) -> list[tuple[Any, ...]]:
        """Headers from a position up to before another, as a transaction under way sees them."""
        known = database.placed if isinstance(database, GuardedDatabase) else ()
        if known and known[0][0] <= first and known[-1][0] + known[-1][1] >= until:
            return [
                (at, stream, version, kind, recorded, body, metadata, count, effective, format, ref, 0)
                for at, count, stream, version, kind, recorded, effective, format, _, _, metadata, ref, body in known
                if first <= at < until
            ]
        return database.execute(
            f"select {COLUMNS} from runs where position >= ? and position < ? order by position", (first, until)
        ).fetchall()

    def body_infos(self, refs: Sequence[int]) -> dict[int, BodyInfo]:
        """Bodies at a glance, by number, without their bytes; those that are gone are left out."""
        found: dict[int, BodyInfo] = {}
        with self.reader() as connection:
            for start in range(0, len(refs), 500):
                some = ",".join(str(int(ref)) for ref in refs[start : start + 500])
                rows = connection.execute(f"select id, encoding, rows, length(bytes) from bodies where id in ({some})")
                found.update({row[0]: BodyInfo(*row[1:]) for row in rows})
        return found

    def placeholders(self, encoding: int) -> Iterator[tuple[int, int, bytes]]:
        """All bodies of `ARCHIVED` or `TRIMMED`: number, how many events, bytes. In no particular order."""
        before = 0
        while True:
            with self.reader() as connection:
                # Only merged bodies, which these are, have numbers below 0.
                rows = connection.execute(
                    "select id, rows, bytes from bodies where id < ? and encoding = ? order by id desc limit 1000",
                    (before, encoding),
                ).fetchall()
            yield from rows
            if len(rows) < 1000:
                return
            before = rows[-1][0]

    def version_bounds(self, stream: str, first: int, last: int, low: int, high: int) -> tuple[int, int]:
        """Bounds (after, until) by position, narrowed to versions from ``first`` to before ``last``."""
        with self.reader() as connection:
            return reader.version_bounds(connection, stream, first, last, low, high)

    def stream(self, name: str) -> StreamInfo | None:
        """A stream at a glance, or None."""
        with self.reader() as connection:
            row = connection.execute("select id, closed from streams where name = ?", (name,)).fetchone()
            return reader.stream_info(connection, row[0], name, row[1]) if row else None

    def streams(self, prefix: str = "", *, batch: int = 500) -> Iterator[StreamInfo]:
        """All streams whose names begin with a prefix, by name."""
        after = ""
        while True:
            with self.reader() as connection:
                rows = reader.streams(connection, prefix, after, batch)
                infos = [reader.stream_info(connection, *row) for row in rows]
            yield from (info for info in infos if info.version)
            if len(rows) < batch:
                return
            after = rows[-1][1]

    def size(self) -> int:
        with self.reader() as connection, translated(self.path):
            row = connection.execute(
                "select page_count * page_size from pragma_page_count, pragma_page_size"
            ).fetchone()
        return int(row[0])

    def check(self) -> None:
        """Look at every page of the file, those of indexes too, which no walk of the log reads.

        Raises:
            DamagedLog: SQLite finds one that is not as it should be.
        """
        with self.reader() as connection:
            found = connection.execute("pragma quick_check(1)").fetchone()[0]
        if found != "ok":
            raise DamagedLog(0, found)

    def copy_to(self, path: str) -> bool:
        """Copy the database as it is at one moment to a new file, durably."""
        with self.reader() as source, translated(path):
            target = opened(path, isolation_level=None)
            try:
                target.execute("pragma synchronous = full")
                # In memory, the one connection is held meanwhile anyway; a file is copied in one go, too: pages
                # that are copied in steps would start over at each commit beside them.
                source.backup(target, pages=-1)
                target.execute("pragma journal_mode = delete")
            finally:
                target.close()
        return True

    # --- moving house -----------------------------------------------------------------------------------

    def raw_head(self) -> RawHead:
        """Where the log ends, whose it is, and what role it has."""
        with self.reader() as connection, snapshot(connection):
            return raw.read_raw_head(connection)

    def raw_header(self, position: int) -> tuple[int, Head] | None:
        """See `RawSource.raw_header`."""
        with self.reader() as connection:
            return raw.header(connection, position)

    def raw_page(
        self,
        after: int,
        *,
        until: int | None = None,
        known: Container[int] = (),
        state: bool = False,
        limit_runs: int = PAGE_RUNS,
        limit_bytes: int = PAGE_BYTES,
    ) -> RawPage:
        """See `RawSource.raw_page`."""
        with self.reader() as connection, snapshot(connection):
            return raw.page(connection, after, until, known, state, limit_runs, limit_bytes)

    def raw_bodies(self) -> set[int]:
        """The numbers of the shared bodies."""
        with self.reader() as connection:
            return {row[0] for row in connection.execute("select id from bodies where id < 0")}

    def raw_state(self) -> State | None:
        """See `RawTarget.raw_state`."""
        with self.reader() as connection, snapshot(connection):
            return raw.read_state(connection)
