"""The SQLite store: opening, committing, reading, and staying whole across forks."""

from __future__ import annotations

import os
import sqlite3
import sys
import threading
import uuid
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib import resources
from typing import Any

from ...errors import (
    DamagedLog,
    LogClosed,
    MillstreamError,
    NetworkFilesystem,
    NewerFormat,
    NotALog,
    NotFound,
    ReadOnlyLog,
)
from ...time import Clock
from ..base import (
    COLUMNS,
    AppendRow,
    BodyInfo,
    Head,
    InlineHandler,
    Kind,
    PackedEvents,
    Receipt,
    Request,
    Scope,
    StagedRun,
    StreamInfo,
)
from ..committer import Committer
from ..database import Database
from ..forked import renewing
from ..inline import KEY, Attached, Handlers, Register, Registered
from ..raw import PAGE_BYTES, PAGE_RUNS, RawHead, RawPage, Role, State
from ..signal import Signal
from . import ahead, packed, placing, raw, reader
from .database import SQLiteDatabase, close_cursors, connect, statements
from .faults import translated
from .guard import GuardedDatabase, MemoryReadingDatabase, ReadingDatabase
from .lock import WriterLock, network_filesystem
from .names import Names
from .pool import ReaderPool, SharedReader, abandon
from .raw import snapshot
from .writer import Writer, read_head

FORMAT = 1
APPLICATION_ID = 0x4D494C4C  # "MILL"
_LAST_LOOK = 0.1
"""The longest wait, in seconds, for what looks at a file of a log that is closed."""


class SQLiteStore:
    """A log's store in a SQLite file (or, with the path ``:memory:``, in memory)."""

    page_runs = 1_000

    def __init__(
        self, path: str, *, clock: Clock | None = None, readonly: bool = False, lock_timeout: float = 30.0
    ) -> None:
        self.path = path
        self.readonly = readonly
        self.memory = path == ":memory:"
        # Where the file is, wherever the process goes: readers, and the children of a fork, open it again.
        self._file = path if self.memory else _absolute(path)
        self.address: str | None = None if self.memory else self._file
        self.is_file = not self.memory
        self.names = Names()
        self._log_id: str | None = None
        self._clock = clock
        self._lock_timeout = lock_timeout
        self.on_stale: list[Callable[[], None]] = []
        """Called when a transaction of a log in memory was undone."""
        self._inline: Handlers = {}
        self._register = Register(self._inline)
        self.closed = False
        """Whether this process has closed it."""
        if not self.memory:
            self._check_place()
        try:
            self._begin()
        except BaseException:
            self._readers.close()
            raise

    def _is_sealed(self) -> bool:
        """Whether the file lies, at rest, where SQLite cannot put the files beside it that reading takes."""
        return not os.access(os.path.dirname(self._file), os.W_OK) and not os.path.exists(f"{self._file}-wal")

    def _check_place(self) -> None:
        folder = os.path.dirname(self._file)
        if not os.path.isdir(folder):
            raise NotFound(f"there is no folder {folder}", hint="Create it first")
        if os.path.isdir(self._file):
            raise NotALog(self.path)
        if self.readonly and not os.path.exists(self._file):
            raise NotFound(f"there is no log {self.path}", hint="Open it for writing to create it")
        kind = network_filesystem(folder)
        if kind is not None:
            raise NetworkFilesystem(self.path, kind)

    def _begin(self) -> None:
        """Open the connections and locks that belong to this process."""
        self._writer: Writer | None = None
        self._lock: WriterLock | None = None
        if self.memory:
            connection = connect(":memory:")
            shared = SharedReader(connection)
            self._readers: ReaderPool | SharedReader = shared
            _create(connection)
            self.signal = Signal(None)
        else:
            self._readers = ReaderPool(self.path, self._file, immutable=self.readonly and self._is_sealed())
            self.signal = Signal(self._probe)
            if self.readonly:
                self._check_format_readonly()
            else:
                self._open_writer()
        if self.memory:
            self._make_writer(connection)
        self.committer = Committer(self._write, self.path, self._lock_timeout)
        self._pid = os.getpid()  # last: other threads take it to be done then

    def _open_writer(self) -> None:
        existed = os.path.exists(self._file)
        if existed and not os.access(self._file, os.W_OK):
            raise ReadOnlyLog(self.path)
        self._made = False
        """Whether the log's tables were there already: then opening it needs no lock, and waits for no writer."""
        if existed:
            # Look before anything is touched: another program's file stays as it is. (SQLite takes one byte for none.)
            if os.path.getsize(self._file) == 1:
                raise NotALog(self.path)
            self._check_format_readonly(empty_will_do=True)
            with self._readers.reader() as reading:
                self._made = _has_tables(reading)
        self._lock = WriterLock(self.path, self._file)
        try:
            if self._made:
                connection = self._connected()
            else:
                self._lock.acquire(self._lock_timeout)
                try:
                    connection = self._connected()
                finally:
                    self._lock.release()
        except BaseException:
            self._lock.close()
            raise
        self._make_writer(connection)

    def _connected(self) -> sqlite3.Connection:
        """The writer's connection; the tables are made first where there are none (under the writer lock)."""
        with translated(self.path, lock_timeout=self._lock_timeout):
            connection = connect(self._file, timeout=self._lock_timeout, name=self.path)
        try:
            with translated(self.path, lock_timeout=self._lock_timeout):
                if not _has_tables(connection):
                    _create(connection)
                check_format(connection, self.path)
                connection.execute("pragma wal_autocheckpoint = 4000")
        except BaseException:
            connection.close()
            raise
        return connection

    def _make_writer(self, connection: sqlite3.Connection) -> None:
        self._writer = Writer(
            connection,
            self.path,
            self.address,
            self._lock,
            self.names,
            self._clock,
            self._lock_timeout,
            self._committed,
            self._rolled_back,
        )
        self._writer.inline, self._writer.register = self._inline, self._register

    def _check_format_readonly(self, *, empty_will_do: bool = False) -> None:
        with self._readers.reader() as connection:
            check_format(connection, self.path, empty_will_do=empty_will_do)

    # --- writing --------------------------------------------------------------------------------------

    @property
    def writer(self) -> Writer:
        """The writer, if the log is open for writing.

        Raises:
            ReadOnlyLog: It was opened read-only.
            LogClosed: It was closed.
        """
        if self.closed:
            raise LogClosed(self.path)
        if self._writer is None:
            raise ReadOnlyLog(self.path)
        return self._writer

    def commit(self, request: Request) -> Receipt:
        """Commit a request; on disk when this returns."""
        self._renew()
        self.writer  # noqa: B018 - raises when there is none
        return self.committer.submit(request)

    def commit_all(self, requests: Sequence[Request]) -> list[Receipt | MillstreamError]:
        """Commit several requests together; see `Store.commit_all`."""
        self._renew()
        self.writer  # noqa: B018
        return [job.outcome() for job in self.committer.submit_all(requests)] if requests else []

    def commit_soon(self, request: Request, loop: Any) -> Any:
        """Queue a request for a coroutine: an asyncio future of the receipt."""
        self._renew()
        self.writer  # noqa: B018
        return self.committer.submit_soon(request, loop)

    def _write(self, jobs: list[Any]) -> None:
        writer = self._writer
        if writer is None:
            for job in jobs:
                job.error = ReadOnlyLog(self.path)
        elif self.memory:
            with self._alone():
                writer.write(jobs)
        else:
            writer.write(jobs)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        # In memory, readers share the writer's connection: keep them out of the transaction.
        if isinstance(self._readers, SharedReader):
            with self._readers.mutex:
                yield
        else:
            yield

    @contextmanager
    def transaction(self, *, moving: bool = False) -> Iterator[Writer]:
        """The writer inside a transaction of the caller's own, on the caller's thread.

        Args:
            moving: See `Writer.begin`.
        """
        self._renew()
        writer = self.writer
        with self.committer.exclusive(), self._alone():
            with translated(self.path, lock_timeout=self._lock_timeout):
                writer.begin(moving=moving)
                try:
                    yield writer
                except BaseException:
                    writer.rollback()
                    raise
                writer.commit()

    def inline(
        self,
        name: str,
        types: frozenset[str] | None,
        handler: InlineHandler,
        fingerprint: str | None = None,
        across: bool = False,
    ) -> None:
        """Run a handler inside every commit that appends one of these types (None: any); see `Store.inline`."""
        self._inline[name] = Attached(types, handler, fingerprint, across)
        self._register.compare()

    def remove_inline(self, name: str) -> None:
        """Run it no longer."""
        self._inline.pop(name, None)
        self._register.compare()

    def register_inline(self, name: str, registered: Registered | None) -> None:
        """See `Store.register_inline`."""
        with self.transaction() as writer:
            self._register.load(raw.read_inline(writer.connection))
            text = self._register.changed(name, registered)
            writer.connection.execute("insert or replace into meta (key, value) values (?, ?)", (KEY, text))
            self._register.load(text)

    def registered_inline(self) -> dict[str, Registered]:
        """See `Store.registered_inline`."""
        found = Register({})
        with self.reader() as connection:
            found.load(raw.read_inline(connection))
        return found.handlers

    def _rolled_back(self) -> None:
        # In memory, a reader inside the transaction has seen names and bodies that never came to be.
        if self.memory:
            self.names.forget_all()
            for forget in tuple(self.on_stale):
                forget()

    def _committed(self, head: int) -> None:
        self.signal.announce(head)

    def confirm_clock(self) -> None:
        """Accept the wall clock as it is."""
        self.writer.confirm_clock()

    def now(self) -> int:
        """The log's clock, in microseconds since 1970."""
        from ...time import now_micros, to_micros

        return now_micros() if self._clock is None else to_micros(self._clock())

    # --- reading --------------------------------------------------------------------------------------

    def reader(self) -> AbstractContextManager[sqlite3.Connection]:
        """A connection to read with, for a moment."""
        self._renew()
        return self._readers.reader()

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

    def put_body(self, run: StagedRun, work: Callable[[Database, int], None]) -> int:
        """See `Store.put_body`."""
        with self.transaction() as writer:
            ref = ahead.put(writer.connection, run)
            work(writer.database, ref)
        return ref

    def drop_bodies(self, refs: Sequence[int], work: Callable[[Database], None]) -> None:
        """See `Store.drop_bodies`."""
        with self.transaction() as writer:
            ahead.drop(writer.connection, refs)
            work(writer.database)

    def move_bodies(
        self,
        encoding: int,
        rows: int,
        body: bytes,
        links: Sequence[tuple[int, int | None, int]],
        request: Request | None = None,
    ) -> bool:
        """Store a merged body, point headers into it and drop the bodies that they had, in one short transaction.

        Args:
            links: For each header: its position, its body's number until now, its offset in the new body.
            request: Appends that are committed with it: what is to be told about the move.

        Returns:
            False, with nothing changed, when a header's body has moved since it was read.
        """
        with self.transaction() as writer:
            connection = writer.connection
            new = ahead.next_number(connection)
            for position, old, offset in links:
                changed = connection.execute(
                    "update runs set body_ref = ?, body_offset = ?, body = null where position = ? and body_ref is ?",
                    (new, offset, position, old),
                ).rowcount
                if changed != 1:
                    connection.execute("rollback")
                    connection.execute("begin immediate")
                    return False
            connection.execute(
                "insert into bodies (id, encoding, rows, bytes) values (?, ?, ?, ?)", (new, encoding, rows, body)
            )
            olds = {old for _, old, _ in links if old is not None}
            for old in olds:
                connection.execute(
                    "delete from bodies where id = ?"
                    " and not exists (select 1 from runs where body_ref = ? and body_ref < 0)"
                    if old < 0
                    else "delete from bodies where id = ?",
                    (old, old) if old < 0 else (old,),
                )
            if request is not None:
                writer.finish(request)
        return True

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
            target = sqlite3.connect(path, isolation_level=None)
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

    def place_raw(self, page: RawPage, place: str = "") -> Head:
        """See `RawTarget.place_raw`."""
        with self.transaction(moving=True) as writer:
            head, role = placing.place(writer.connection, self.names, page, place, self.path)
            writer.moved(head, role)
        self._log_id = None
        return head

    def set_role(self, role: Role | None) -> Head:
        """Make the log a copy, a home that has moved, or (None) a home like any other; its head at that moment."""
        with self.transaction(moving=True) as writer:
            placing.write_role(writer.connection, role)
            head = read_head(writer.connection)
            writer.moved(head, role)
        return head

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

    def _probe(self) -> _DataVersion:
        return _DataVersion(connect(self._file, readonly=True, name=self.path))

    # --- the end, and forks ---------------------------------------------------------------------------

    def close(self) -> None:
        """Close all that is open. Idempotent."""
        if self.closed:
            return
        if self._pid != os.getpid():
            self.closed = True
            return
        # What is under way ends first.
        self.committer.close()
        self.closed = True
        # The writer last: the last connection to be closed puts the -wal into the file, which a reader may not do.
        self.signal.close(patience=_LAST_LOOK)
        self._readers.close()
        if self._writer is not None and not self.memory:
            self._writer.connection.close()
            if self._lock is not None:
                self._lock.close()

    def _renew(self) -> None:
        """In a forked child, open everything anew: SQLite connections and flocks must not be shared."""
        if self.closed:
            raise LogClosed(self.path)
        if self._pid == os.getpid():
            return
        with renewing():
            if self._pid == os.getpid():
                return
            if isinstance(self._readers, SharedReader):
                # The child has a copy of its own; only the locks may have been left in another thread's hands.
                self._readers.mutex = threading.RLock()
                self.signal = Signal(None)
                self.committer = Committer(self._write, self.path, self._lock_timeout)
                self._pid = os.getpid()
                return
            self._readers.abandon()
            if self._writer is not None:
                abandon(self._writer.connection)
            if self._lock is not None:
                self._lock.close()
            self._begin()


class _DataVersion:
    """Sees by one pragma whether another connection has committed: the `Probe` of a file."""

    waits = False

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def look(self) -> tuple[object, Callable[[], int]]:
        mark = self._connection.execute("pragma data_version").fetchone()[0]
        return mark, lambda: read_head(self._connection).position

    def close(self) -> None:
        self._connection.close()


def _absolute(path: str) -> str:
    try:
        return os.path.abspath(path)
    except FileNotFoundError as error:
        raise NotFound(
            "the folder that this process works in is gone", hint="Change to another one, or give the whole path"
        ) from error


def _is_ours(connection: sqlite3.Connection) -> bool:
    return bool(connection.execute("pragma application_id").fetchone()[0] == APPLICATION_ID)


def _has_tables(connection: sqlite3.Connection) -> bool:
    return connection.execute("select 1 from sqlite_master limit 1").fetchone() is not None


def _create(connection: sqlite3.Connection) -> None:
    script = resources.files(__package__).joinpath("schema.sql").read_text(encoding="utf-8")
    connection.execute("begin immediate")
    try:
        for statement in statements(script):
            connection.execute(statement)
        connection.execute(f"pragma application_id = {APPLICATION_ID}")
        connection.execute(f"pragma user_version = {FORMAT}")
        connection.execute("insert into meta values ('log_id', ?)", (uuid.uuid4().hex,))
        connection.execute("commit")
    except BaseException:
        if connection.in_transaction:
            connection.execute("rollback")
        raise


def check_format(connection: sqlite3.Connection, path: str, *, empty_will_do: bool = False) -> None:
    """Refuse what is not a log, or is one of a later version.

    Args:
        empty_will_do: A database without any table is no fault: it is to become a log.

    Raises:
        NotALog: Another application's database, or no database.
        NewerFormat: Written by a newer version of the library.
    """
    if not _is_ours(connection):
        if empty_will_do and not _has_tables(connection):
            return
        # Another process may have made the log between the two looks: once its tables are seen, so is its mark.
        if not _is_ours(connection):
            raise NotALog(path, empty=not _has_tables(connection))
    found = connection.execute("pragma user_version").fetchone()[0]
    if found > FORMAT:
        raise NewerFormat(path, found, FORMAT)
