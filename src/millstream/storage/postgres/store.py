"""The PostgreSQL store: opening, committing, and staying whole across forks and restarts of the server."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ...errors import LogClosed, MillstreamError, ReadOnlyLog
from ...time import Clock, clock_micros
from ..base import Head, InlineHandler, Receipt, Request, StagedRun
from ..committer import Committer, Job
from ..database import Database
from ..forked import renewing
from ..inline import KEY, Attached, Handlers, Register, Registered
from ..raw import RawPage, Role
from ..signal import Signal
from .connections import Readers, connect
from .database import Connection
from .faults import translated
from .listener import Listener
from .migrate import check, may_append, migrate
from .place import parse_url
from .placing import Placer
from .reading import Reading
from .writer import Writer


class PostgresStore(Reading):
    """A log's store in a schema of a PostgreSQL database.

    Args:
        url: ``postgresql://user@host/database``, with ``?schema=`` for a schema other than ``millstream``.
    """

    is_file = False

    def __init__(
        self, url: str, *, clock: Clock | None = None, readonly: bool = False, lock_timeout: float = 30.0
    ) -> None:
        super().__init__(parse_url(url))
        self.address: str | None = url
        self.readonly = readonly
        self._why_readonly = ""
        self.closed = False
        # Never called: readers see committed rows alone, and numbers are not given twice.
        self.on_stale: list[Callable[[], None]] = []
        self._clock = clock
        self._patience = lock_timeout
        self._inline: Handlers = {}
        self._register = Register(self._inline)
        self._placer = Placer(self.place, self._raw)
        self._open()
        self._begin()

    def _open(self) -> None:
        """Look at what is there, and make it what it should be."""
        connection = connect(self.place)
        try:
            with translated(self.location):
                row = connection.execute("select pg_is_in_recovery()").fetchone()
                assert row is not None
                if row[0]:
                    # A standby can be read, whatever it was opened for.
                    self._read_only("The server is a standby; append at the primary")
                if self.readonly:
                    check(connection, self.place)
                else:
                    migrate(connection, self.place)
                    if not may_append(connection, self.place):
                        self._read_only("The role may only read; `millstream postgres grants` prints what it needs")
        finally:
            connection.close()

    def _read_only(self, why: str) -> None:
        self.readonly, self._why_readonly = True, why

    def _begin(self) -> None:
        """Make what belongs to this process."""
        self._readers = Readers(self.place, self._patience)
        self.signal = Signal(lambda: Listener(self.place, self._reader))
        self._writer = Writer(
            self.place, self._clock, self._patience, self._inline, self._register, self.signal.announce
        )
        self.committer = Committer(self._write, self.location, self._patience)
        self._pid = os.getpid()  # last: other threads take it to be done then

    # --- writing --------------------------------------------------------------------------------------

    def _writable(self) -> Writer:
        self._renew()
        if self.readonly:
            raise ReadOnlyLog(self.location, hint=self._why_readonly or "Open it without readonly=True")
        return self._writer

    def commit(self, request: Request) -> Receipt:
        self._writable()
        return self.committer.submit(request)

    def commit_all(self, requests: Sequence[Request]) -> list[Receipt | MillstreamError]:
        """Commit several requests together; see `Store.commit_all`."""
        self._writable()
        return [job.outcome() for job in self.committer.submit_all(requests)] if requests else []

    def commit_soon(self, request: Request, loop: Any) -> Any:
        self._writable()
        return self.committer.submit_soon(request, loop)

    def _write(self, jobs: list[Job]) -> None:
        self._writer.write(jobs)

    @contextmanager
    def transaction(self, *, moving: bool = False) -> Iterator[_Open]:
        """See `Store.transaction`.

        Args:
            moving: It is a copy's: what role the log has does not matter.
        """
        writer = self._writable()
        with self.committer.exclusive(), translated(self.location, lock_timeout=self._patience):
            writer.session.begin_locked(moving=moving)
            opened = _Open(writer)
            try:
                yield opened
            except BaseException:
                writer.session.undo()
                raise
            writer.session.commit()
            if opened.finished is not None:
                writer.finished(*opened.finished)

    def inline(
        self,
        name: str,
        types: frozenset[str] | None,
        handler: InlineHandler,
        fingerprint: str | None = None,
        across: bool = False,
    ) -> None:
        self._inline[name] = Attached(types, handler, fingerprint, across)
        self._register.compare()

    def remove_inline(self, name: str) -> None:
        self._inline.pop(name, None)
        self._register.compare()

    def register_inline(self, name: str, registered: Registered | None) -> None:
        self._writable()
        while True:
            found = self._read_register()
            text = found.changed(name, registered)
            with self._beside() as writer:
                done = writer.session.connection.execute(
                    f"select {self.place.quoted}.register_inline($1, $2::bigint, $3)",
                    (text, found.counter, writer.session.wait),
                ).fetchone()
            if done is not None and done[0]:
                return

    def registered_inline(self) -> dict[str, Registered]:
        return self._read_register().handlers

    def _read_register(self) -> Register:
        found = Register({})
        row = self._one(f"select value from {self.place.quoted}.meta where key = $1", (KEY,))
        found.load(row[0] if row is not None else None)
        return found

    def put_body(self, run: StagedRun, work: Callable[[Database, int], None]) -> int:
        with self._beside() as writer:
            ref = writer.put(run)
            work(writer.session.database, ref)
        return ref

    def drop_bodies(self, refs: Sequence[int], work: Callable[[Database], None]) -> None:
        s = self.place.quoted
        with self._beside() as writer:
            writer.session.connection.execute(
                f"delete from {s}.bodies b where b.id = any($1::bigint[])"
                f" and not exists (select 1 from {s}.runs r where r.body_ref = b.id and r.body_ref < 0)",
                (list(refs),),
            )
            work(writer.session.database)

    @contextmanager
    def _beside(self) -> Iterator[Writer]:
        """The writer in a transaction that does not wait for the lock of the appends: it places nothing."""
        writer = self._writable()
        with self.committer.exclusive(), translated(self.location, lock_timeout=self._patience):
            writer.session.begin_unlocked()
            try:
                yield writer
            except BaseException:
                writer.session.undo()
                raise
            writer.session.commit()

    def move_bodies(
        self,
        encoding: int,
        rows: int,
        body: bytes,
        links: Sequence[tuple[int, int | None, int]],
        request: Request | None = None,
    ) -> bool:
        try:
            if request is not None:
                writer = self._writable()
                with self.transaction() as opened:
                    self._move(writer.session.connection, encoding, rows, body, links)
                    opened.finish(request)
            else:
                # Headers are changed by compare-and-set.
                with self._beside() as writer:
                    self._move(writer.session.connection, encoding, rows, body, links)
        except _Moved:
            return False
        return True

    def _move(
        self, connection: Connection, encoding: int, rows: int, body: bytes,
        links: Sequence[tuple[int, int | None, int]],
    ) -> None:  # fmt: skip
        s = self.place.quoted
        new = connection.execute(
            f"insert into {s}.bodies (id, encoding, rows, bytes)"
            f" values (-nextval('{s}.body_numbers'), $1, $2, $3) returning id",
            (encoding, rows, body),
        ).fetchone()
        assert new is not None
        positions, olds, offsets = ([link[i] for link in links] for i in range(3))
        changed = connection.execute(
            f"update {s}.runs r set body_ref = $1, body_offset = l.place, body = null"
            " from unnest($2::bigint[], $3::bigint[], $4::bigint[]) l (position, old, place)"
            " where r.position = l.position and r.body_ref is not distinct from l.old",
            (new[0], positions, olds, offsets),
        ).rowcount
        if changed != len(links):
            raise _Moved
        connection.execute(
            f"delete from {s}.bodies b where b.id = any($1::bigint[]) and (b.id >= 0 or not exists"
            f" (select 1 from {s}.runs r where r.body_ref = b.id and r.body_ref < 0))",
            (sorted({old for old in olds if old is not None}),),
        )

    # --- the clock ------------------------------------------------------------------------------------

    def confirm_clock(self) -> None:
        self._writer.confirm_clock()

    def now(self) -> int:
        if self._clock is not None:
            return clock_micros(self._clock)
        return int(self._one("select (extract(epoch from clock_timestamp()) * 1000000)::bigint")[0])

    # --- moving house ---------------------------------------------------------------------------------

    def place_raw(self, page: RawPage, place: str = "") -> Head:
        with self.transaction(moving=True):
            head = self._placer.place(self._writer.session.connection, page, place)
        self._log_id = None
        self._writer.knows(head.position)
        self.signal.announce(head.position)
        return head

    def set_role(self, role: Role | None) -> Head:
        with self.transaction(moving=True):
            connection = self._writer.session.connection
            self._placer.write_role(connection, role)
            return self._reader.head(connection)

    # --- the end, and forks ---------------------------------------------------------------------------

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        if self._pid != os.getpid():
            return
        self.committer.close()
        self.signal.close()
        self._writer.session.close()
        self._readers.close()

    def _renew(self) -> None:
        """In a forked child, connect anew: sockets must not be shared."""
        if self.closed:
            raise LogClosed(self.location)
        if self._pid != os.getpid():
            with renewing():
                if self._pid != os.getpid():
                    self._readers.abandon()
                    self._begin()


class _Moved(Exception):
    """A header's body has moved since it was read."""


class _Open:
    """A transaction of the writer's that its caller works in; see `OpenTransaction`."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self.finished: tuple[Request, Receipt] | None = None

    @property
    def database(self) -> Database:
        return self._writer.session.database

    def finish(self, request: Request) -> Receipt:
        receipt = self._writer.finish(request)
        self.finished = (request, receipt)
        return receipt
