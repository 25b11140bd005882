"""The SQLite store: opening, committing, and staying whole across forks."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from ...errors import LogClosed, MillstreamError, NetworkFilesystem, NotALog, NotFound, ReadOnlyLog
from ...time import Clock
from ..base import Head, InlineHandler, Receipt, Request, StagedRun
from ..committer import Committer
from ..database import Database
from ..forked import renewing
from ..inline import KEY, Attached, Handlers, Register, Registered
from ..raw import RawPage, Role
from ..signal import Signal
from . import ahead, placing, raw
from .database import connect
from .faults import translated
from .forks import at_work, check
from .form import check_format, create, has_tables
from .lock import WriterLock, network_filesystem
from .names import Names
from .pool import ReaderPool, SharedReader
from .probe import DataVersion
from .reading import Reading
from .writer import Writer, read_head

_LAST_LOOK = 0.1
"""The longest wait, in seconds, for what looks at a file of a log that is closed."""


class SQLiteStore(Reading):
    """A log's store in a SQLite file (or, with the path ``:memory:``, in memory)."""

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
            with at_work:
                create(connection)
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
                self._made = has_tables(reading)
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
            with at_work, translated(self.path, lock_timeout=self._lock_timeout):
                if not has_tables(connection):
                    create(connection)
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
        from ...time import clock_micros, now_micros

        return now_micros() if self._clock is None else clock_micros(self._clock)

    # --- reading --------------------------------------------------------------------------------------

    def reader(self) -> AbstractContextManager[sqlite3.Connection]:
        """A connection to read with, for a moment."""
        self._renew()
        return self._readers.reader()

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

    # --- moving house -----------------------------------------------------------------------------------

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

    def _probe(self) -> DataVersion:
        return DataVersion(connect(self._file, readonly=True, name=self.path))

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
        """In a forked child, open everything anew: SQLite connections (see `forks`) and flocks must not be shared."""
        if self.closed:
            raise LogClosed(self.path)
        if self._pid == os.getpid():
            return
        with renewing():
            if self._pid == os.getpid():
                return
            if isinstance(self._readers, SharedReader):
                # The child has a copy of its own; only the locks may have been left in another thread's hands.
                check(self.path)
                self._readers.mutex = threading.RLock()
                self.signal = Signal(None)
                self.committer = Committer(self._write, self.path, self._lock_timeout)
                self._pid = os.getpid()
                return
            if self._writer is not None:
                self._writer.check_place()  # another log would be made where there is none any more
            if self._lock is not None:
                self._lock.close()
            self._begin()


def _absolute(path: str) -> str:
    try:
        return os.path.abspath(path)
    except FileNotFoundError as error:
        raise NotFound(
            "the folder that this process works in is gone", hint="Change to another one, or give the whole path"
        ) from error
