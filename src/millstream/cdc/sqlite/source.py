"""A SQLite database as a source: one connection, short reads, and pruning in small steps."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote as url_quote

import msgspec

from ...errors import CaptureError, UsageError
from ...events import Event
from ...storage.sqlite.forks import opened
from ..change import SnapshotCompleted
from ..findings import Backlog, Finding
from ..source import Batch, Options, Piece, Progress, State, pieces_of
from ..values import encode_any
from . import install
from .decode import Decoder, copy_progress, moment, shape_of
from .encode import Line, encoder, row_class
from .errors import source_errors
from .install import Layout
from .pages import fetch_page, rows_after
from .reader import SQLiteReader
from .schema import Table, table_names
from .triggers import CHANGES, NOW, SLOTS

PAGE_ROWS = 10_000
"""The most changes, or rows of a snapshot, that one look takes."""

PRUNE_ROWS = 2_000
"""The most changes that one transaction prunes: a few milliseconds in which writers wait."""

PRUNE_EVERY = 1.0
"""Seconds between prunings, unless much is waiting."""


class SQLiteSource:
    """A SQLite file, captured by triggers.

    Nothing in this process opens the file but the one ``sqlite3`` module: closing any other descriptor of it
    would drop the locks of all connections.
    """

    def __init__(self, url: str, options: Options) -> None:
        path = url.removeprefix("sqlite:///")
        if not path or path.startswith(":memory:"):
            raise UsageError(f"{url!r} names no file", hint="Write sqlite:///shop.sqlite or sqlite:////abs/shop.sqlite")
        self.path = os.path.abspath(path)
        self.url = f"sqlite:///{self.path}"
        self.options = options

    def connect(self) -> sqlite3.Connection:
        """A connection to the file, which must be there."""
        uri = f"file:{url_quote(self.path)}?mode=rw"
        db = opened(self.path, uri, uri=True, isolation_level=None, timeout=self.options.lock_timeout)
        try:
            (mode,) = db.execute("PRAGMA journal_mode").fetchone()
            if mode == "wal":
                # Pruning needs no fsync of its own: what is undone by a power cut is pruned again.
                db.execute("PRAGMA synchronous = NORMAL")
        except BaseException:
            db.close()
            raise
        return db

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        with source_errors(self.path):
            db = self.connect()
            try:
                yield db
            finally:
                db.close()

    def identity(self) -> str:
        """The source's own id, which moves and is copied with the file."""
        with self._connected() as db:
            return install.identity(db)

    def uninstall(self) -> None:
        """Remove every trigger and table that captures made in the file."""
        with self._connected() as db:
            install.uninstall(db)

    def check(self) -> list[Finding]:
        """Whether the file can be captured."""
        found = []
        with self._connected() as db:
            known = table_names(db)
            (mode,) = db.execute("PRAGMA journal_mode").fetchone()
        found += [
            Finding("error", f"there is no table {name}", "Check its name")
            for name in self.options.tables or ()
            if name not in known
        ]
        if not os.access(self.path, os.W_OK):
            found.append(Finding("error", "the file is read-only", "Let this user write it: a capture adds triggers"))
        if mode != "wal":
            about = f"journal_mode is {mode}: who reads and who writes wait for each other"
            found.append(Finding("note", about, "PRAGMA journal_mode = WAL"))
        return found

    def backlog(self, state: State | None, position: int, seconds: float, room: int | None) -> Backlog | None:
        """The changes that wait in the file."""
        with self._connected() as db:
            if not install.installed(db):
                return None
            kept = int(db.execute(f"SELECT count(*) FROM {CHANGES}").fetchone()[0])
            before = install.newest(db)
            time.sleep(seconds)
            rate = (install.newest(db) - before) / seconds if seconds else 0.0
        holder = state.slot if state is not None else CHANGES
        return Backlog(holder, None, kept, max(before - position, 0), "changes", rate, None)

    @contextmanager
    def reader(self) -> Iterator[SQLiteReader]:
        """The rows as they are now; see `Source`."""
        with self._connected() as db:
            db.execute("BEGIN")
            try:
                yield SQLiteReader(db, self.path)
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")

    @contextmanager
    def session(self, position: int, state: State, *, resync: bool) -> Iterator[tuple[SQLiteSession, int, State]]:
        """Open the file; see `Source`."""
        with self._connected() as db:
            session = SQLiteSession(self, db, state.slot)
            try:
                position, state = session.open(position, state, resync=resync)
                yield session, position, state
            finally:
                session.close()


class SQLiteSession:
    """An open source, used by one thread."""

    def __init__(self, source: SQLiteSource, db: sqlite3.Connection, slot: str) -> None:
        self.source = source
        self.db = db
        self.slot = slot
        self.tables: list[str] = []
        self.layouts: dict[int, Layout] = {}
        self._schema = -1
        self._width = 0
        self._data_version = -1
        self._acknowledged = 0
        self._pruned_at = float("-inf")
        self._pruner = ThreadPoolExecutor(1, thread_name_prefix="millstream-prune")
        self._pruning: Future[int] | None = None
        self._file = _file_id(source.path)

    # --- opening --------------------------------------------------------------------------------------

    def open(self, position: int, state: State, *, resync: bool) -> tuple[int, State]:
        """Make the triggers, hold the slot, and say where to go on."""
        install.identity(self.db)
        state = msgspec.structs.replace(state, tables=copy_progress(state.tables))
        with install.writing(self.db):
            self._choose()
            acknowledged, new = install.open_slot(self.db, self.slot, self.tables)
            newest = install.newest(self.db)
            if not state.opened:
                position = acknowledged
            elif new or resync or newest < position:
                if not resync:
                    raise CaptureError(
                        f"{self.source.path} no longer has the changes after {position}: it was restored from a"
                        " copy, or its capture was uninstalled",
                        hint="Run the capture with resync=True, which reads the tables again",
                    )
                position = newest
                for progress in state.tables.values():
                    progress.restart()
            state.opened = True
            install.refresh(self.db, self.tables, position)
            self._look_at_schema()
        for name, progress in state.tables.items():
            if name not in self.tables:
                progress.restart()  # its changes are not followed now, so it must be read again if it comes back
        for name in self.tables:
            state.tables.setdefault(name, Progress())
        self._acknowledged = acknowledged
        return position, state

    def _choose(self) -> None:
        chosen = self.source.options.tables
        self.tables = list(chosen) if chosen is not None else table_names(self.db)

    def _look_at_schema(self) -> None:
        self._schema = self._schema_version()
        self.layouts = install.layouts(self.db)
        self._width = max((layout.table.width for layout in self.layouts.values()), default=0) * 2

    def _schema_version(self) -> int:
        return int(self.db.execute("PRAGMA schema_version").fetchone()[0])

    # --- reading --------------------------------------------------------------------------------------

    def changed(self) -> bool:
        """Whether another connection has committed since this was last asked.

        Raises:
            CaptureError: The file was removed or replaced.
        """
        with source_errors(self.source.path):
            if _file_id(self.source.path) != self._file:
                raise CaptureError(
                    f"{self.source.path} was removed or replaced while it was captured",
                    hint="Put it back and run the capture again; with resync=True if it is another database",
                )
            (version,) = self.db.execute("PRAGMA data_version").fetchone()
        changed = version != self._data_version
        self._data_version = version
        return bool(changed)

    def begun(self, state: State) -> bool:
        """Whether a page of every captured table was read."""
        return all(state.tables[name].begun for name in self.tables)

    def poll(self, position: int, state: State, *, whole: bool = False) -> Batch | None:
        """Changes after a position and, once there are none left, the next page of a snapshot.

        A page of a snapshot is read in the same read transaction that has just seen the last change: its rows
        are the table's as of that position, so no change is missed between the two, and none comes twice.
        """
        with source_errors(self.source.path):
            while True:
                self.db.execute("BEGIN")
                try:
                    if self._schema_version() == self._schema:
                        return self._poll(position, state)
                finally:
                    if self.db.in_transaction:
                        self.db.execute("ROLLBACK")
                state = self._schema_changed(position, state)

    def _schema_changed(self, position: int, state: State) -> State:
        state = msgspec.structs.replace(state, tables=copy_progress(state.tables))
        with install.writing(self.db):
            self._choose()
            install.open_slot(self.db, self.slot, self.tables)
            install.refresh(self.db, self.tables, position)
            self._look_at_schema()
        for name in self.tables:
            state.tables.setdefault(name, Progress())
        for name, progress in state.tables.items():
            # The change may have been a VACUUM, which gives other rowids to tables without a key of integers.
            if progress.cursor is not None and name in self.tables and not self._current(name).table.stable:
                progress.restart()
        return state

    def _current(self, name: str) -> Layout:
        return [layout for layout in self.layouts.values() if layout.name == name][-1]

    def _poll(self, position: int, state: State) -> Batch | None:
        newest = install.newest(self.db)
        state = msgspec.structs.replace(state, tables=copy_progress(state.tables))
        decoder = Decoder(self.layouts, self.tables, state.tables)
        last = self._read_changes(position, newest, decoder)
        partial = last < newest
        pieces = decoder.pieces({"slot": self.slot, "partial": True} if partial else {"slot": self.slot})
        if last == newest:
            waiting = [name for name in self.tables if not state.tables[name].done]
            if waiting:
                # All tables begin before any big one ends.
                name = min(waiting, key=lambda name: state.tables[name].rows)
                pieces += self._read_page(name, state.tables[name], last)
                return Batch(pieces, last, state)
        if last == position and not pieces:
            return None
        return Batch(pieces, last, state)

    def _read_changes(self, position: int, newest: int, decoder: Decoder) -> int:
        """Give a page of changes to the decoder; the id of its last one."""
        if newest == position:
            return position
        values = "".join(f", v{i}" for i in range(self._width))
        sql = f"SELECT id, layout, op, at{values} FROM {CHANGES} WHERE id > ? ORDER BY id LIMIT ?"
        rows = fetch_page(self.db, sql, (position, PAGE_ROWS))
        if newest < position or not rows or rows[0][0] != position + 1:
            found = rows[0][0] if rows else newest
            raise CaptureError(
                f"the changes of {self.source.path} after {position} are gone (the next one is {found})",
                hint="Run the capture with resync=True, which reads the tables again",
            )
        decoder.add(rows)
        return int(rows[-1][0])

    def _read_page(self, name: str, progress: Progress, position: int) -> list[Piece]:
        """The next page of a table's snapshot, as READ changes."""
        table = self._current(name).table
        (now,) = self.db.execute(f"SELECT {NOW}").fetchone()
        time = moment(now)
        events: list[Event | Line] = []
        if progress.again and progress.cursor is None:
            events.append(Line("TRUNCATE", name, None, None, time))
        sql, params, address = rows_after(table, progress.cursor)
        rows = fetch_page(self.db, sql, (*params, PAGE_ROWS))
        encode, make = encoder(rows), row_class(table.columns)
        events += [Line("READ", name, None, make(*encode(row[address:])), time) for row in rows]
        progress.rows += len(rows)
        if rows:
            progress.cursor = [encode_any(value) for value in rows[-1][:address]]
        # A page may also end early because it is large, so only an empty or a first short one is the last.
        if not rows or (len(rows) < PAGE_ROWS and not self._more(table, progress.cursor)):
            progress.done, progress.cursor, progress.again = True, None, False
            events.append(
                SnapshotCompleted(table=name, columns=list(table.columns), rows=progress.rows, timestamp=time)
            )
        return pieces_of(name, shape_of(table), events, {"slot": self.slot, "snapshot": True, "change": position})

    def _more(self, table: Table, cursor: list[Any] | None) -> bool:
        sql, params, _ = rows_after(table, cursor)
        return self.db.execute(sql, (*params, 1)).fetchone() is not None

    # --- forgetting -----------------------------------------------------------------------------------

    def acknowledge(self, position: int, *, now: bool = False) -> None:
        """Prune what the log holds, in steps that let writers in between, beside what else is done here.

        A busy source is not waited for: it is pruned at a later time.
        """
        self._settle(wait=now)
        due = now or time.monotonic() - self._pruned_at >= PRUNE_EVERY
        if position <= self._acknowledged or self._pruning is not None:
            return
        if due or position - self._acknowledged >= 10 * PRUNE_ROWS:
            self._pruned_at = time.monotonic()
            self._pruning = self._pruner.submit(self._prune_all, position)
            self._settle(wait=now)

    def _settle(self, *, wait: bool) -> None:
        """Take note of how far the pruning has come, if it has ended."""
        if self._pruning is not None and (wait or self._pruning.done()):
            pruning, self._pruning = self._pruning, None
            with source_errors(self.source.path):
                self._acknowledged = max(self._acknowledged, pruning.result())

    def close(self) -> None:
        """End what goes on beside."""
        self._pruner.shutdown()

    def _prune_all(self, position: int) -> int:
        """Prune up to a position; how far it came."""
        db = self.source.connect()
        try:
            db.execute("PRAGMA busy_timeout = 0")
            while self._prune(db, position):
                time.sleep(0.001)
            return position
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) and "busy" not in str(error):
                raise
            return 0
        finally:
            db.close()

    def _prune(self, db: sqlite3.Connection, position: int) -> bool:
        """One step; whether there is more to do."""
        with install.writing(db):
            db.execute(f"UPDATE {SLOTS} SET acknowledged = ? WHERE name = ?", (position, self.slot))
            (done,) = db.execute(f"SELECT min(acknowledged) FROM {SLOTS}").fetchone()
            # The newest change stays, so that ids never start again from 1.
            oldest, newest = db.execute(
                f"SELECT (SELECT min(id) FROM {CHANGES}), (SELECT max(id) FROM {CHANGES})"
            ).fetchone()
            upto = min(done, newest - 1, oldest + PRUNE_ROWS - 1)
            if upto >= oldest:
                db.execute(f"DELETE FROM {CHANGES} WHERE id <= ?", (upto,))
        return bool(upto < min(done, newest - 1))


def _file_id(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
