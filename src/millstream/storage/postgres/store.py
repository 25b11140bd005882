"""The PostgreSQL store: opening, committing, reading, and staying whole across forks and restarts of the server."""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from ...errors import DamagedLog, LogClosed, MillstreamError, NotFound, ReadOnlyLog
from ...time import Clock, to_micros
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
    after_prefix,
    last_of,
)
from ..committer import Committer, Job
from ..database import Database
from ..forked import renewing
from ..inline import KEY, Attached, Handlers, Register, Registered
from ..raw import PAGE_BYTES, PAGE_RUNS, RawHead, RawPage, Role, State
from ..signal import Signal
from .connections import Readers, connect
from .database import Connection, PostgresDatabase, ReadingDatabase
from .faults import translated
from .kinds import Kinds
from .listener import Listener
from .migrate import check, may_append, migrate, version_of
from .place import parse_url
from .placing import Placer
from .raw import RawReader, snapshot
from .reader import Reader
from .writer import Writer

Result = TypeVar("Result")

_NAMES = 500_000


class PostgresStore:
    """A log's store in a schema of a PostgreSQL database.

    Args:
        url: ``postgresql://user@host/database``, with ``?schema=`` for a schema other than ``millstream``.
    """

    is_file = False
    page_runs = 2_000

    def __init__(
        self, url: str, *, clock: Clock | None = None, readonly: bool = False, lock_timeout: float = 30.0
    ) -> None:
        self.place = parse_url(url)
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
        self._reader = Reader(self.place)
        self._raw = RawReader(self.place)
        self._placer = Placer(self.place, self._raw)
        self._kinds = Kinds(self._reader)
        self._streams: dict[int, str] = {}
        self._log_id: str | None = None
        self._ends: set[int] = set()
        self._open()
        self._begin()

    @property
    def location(self) -> str:
        return self.place.location

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
            return to_micros(self._clock())
        return int(self._one("select (extract(epoch from clock_timestamp()) * 1000000)::bigint")[0])

    # --- reading --------------------------------------------------------------------------------------

    def _read(self, operation: Callable[[Connection], Result]) -> Result:
        self._renew()
        return self._readers.read(operation)

    def _one(self, sql: str, params: Sequence[Any] = ()) -> Any:
        return self._read(lambda connection: connection.execute(sql, params).fetchone())

    @contextmanager
    def connect(self) -> Iterator[PostgresDatabase]:
        self._renew()
        with self._readers.reader() as connection:
            yield ReadingDatabase(connection, self.place.schema, self.location)

    @property
    def log_id(self) -> str:
        if self._log_id is None:
            row = self._one(f"select value from {self.place.quoted}.meta where key = 'log_id'")
            self._log_id = str(row[0]) if row is not None else ""
        return self._log_id

    def append_row(self, id: str) -> AppendRow | None:
        row = self._one(f"select digest, result, last from {self.place.quoted}.find_append($1)", (id,))
        return AppendRow(*row) if row is not None else None

    def head(self) -> Head:
        head = self._read(self._reader.head)
        self._writer.knows(head.position)
        self._remember_end(head.position)
        return head

    def packed(self, scope: Scope, after: int, until: int, limit: int) -> PackedEvents | None:
        """See `Store.packed`. This store has pages only."""
        return None

    def page(self, scope: Scope, after: int, until: int, limit: int, backwards: bool = False) -> list[tuple[Any, ...]]:
        def pages(connection: Connection) -> list[tuple[Any, ...]]:
            if scope.matching is not None:
                queries = [
                    (query, self._kinds_of(connection, scope.within(query)))
                    for query in scope.matching.any_of
                    if query.after + 1 < until
                ]
                rows = self._reader.matching_page(connection, scope, queries, after, until, limit, backwards)
            else:
                kinds = self._kinds_of(connection, scope)
                rows = self._reader.page(connection, scope, kinds, after, until, limit, backwards, after in self._ends)
            if scope.stream is None:
                self._learn_streams(connection, {row[1] for row in rows})
            return rows

        rows = self._read(pages)
        if rows and not backwards:
            self._remember_end(last_of(rows[-1]))
        return rows

    def stream_rows(self, stream: str, version: int, limit: int) -> list[tuple[int, int, int, int, str | None]]:
        return self._read(lambda connection: self._reader.stream_rows(connection, stream, version, limit))

    def _kinds_of(self, connection: Connection, scope: Scope) -> list[int] | None:
        return self._kinds.of(connection, scope) if scope.by_kind else None

    def _remember_end(self, position: int) -> None:
        """A run ends here: who reads on from here needs no look at the run before."""
        if len(self._ends) > 10_000:
            self._ends.clear()
        self._ends.add(position)

    def headers(self, after: int, limit: int) -> tuple[list[tuple[Any, ...]], dict[int, list[str]]]:
        def found(connection: Connection) -> tuple[list[Any], dict[int, list[str]]]:
            rows, tags = self._reader.headers(connection, after, limit)
            self._learn_streams(connection, {row[1] for row in rows})
            return rows, tags

        return self._read(found)

    def placed(self, database: Database, first: int, until: int) -> list[tuple[Any, ...]]:
        return database.execute(
            f"select {COLUMNS} from {self.place.quoted}.runs where position >= ? and position < ? order by position",
            (first, until),
        ).fetchall()

    def body(self, ref: int) -> tuple[int, bytes]:
        found = self._read(lambda connection: self._reader.body(connection, ref))
        if found is None:
            raise NotFound(f"body {ref} has moved", hint="Read its header again")
        return found

    def find_body(self, position: int) -> tuple[int, int] | None:
        return self._read(lambda connection: self._reader.find_body(connection, position))

    def body_infos(self, refs: Sequence[int]) -> dict[int, BodyInfo]:
        return self._read(lambda connection: self._reader.body_infos(connection, refs))

    def placeholders(self, encoding: int) -> Iterator[tuple[int, int, bytes]]:
        before = 0
        while True:
            rows = self._read(partial(self._reader.placeholders, encoding=encoding, before=before, limit=1000))
            yield from rows
            if len(rows) < 1000:
                return
            before = rows[-1][0]

    def kind(self, id: int) -> Kind:
        found = self._kinds.get(id) or self._read(lambda connection: self._kinds.find(connection, id))
        if found is None:
            raise DamagedLog(0, f"kind {id} has no name")
        return found

    def stream_name(self, id: int) -> str:
        found = self._streams.get(id)
        if found is None:
            self._read(lambda connection: self._learn_streams(connection, {id}))
            found = self._streams.get(id)
            if found is None:
                raise DamagedLog(0, f"stream {id} has no name")
        return found

    def _learn_streams(self, connection: Connection, ids: set[int]) -> None:
        """Names are learnt a page at a time: one by one would be a round trip each."""
        unknown = [id for id in ids if id not in self._streams]
        if unknown:
            if len(self._streams) > _NAMES:
                self._streams.clear()
            self._streams.update(self._reader.stream_names(connection, unknown))

    def tags(self, position: int) -> tuple[str, ...]:
        return self._read(lambda connection: self._reader.tags(connection, position))

    def position_at(self, micros: int) -> int:
        return self._read(lambda connection: self._reader.position_at(connection, micros))

    def version_bounds(self, stream: str, first: int, last: int, low: int, high: int) -> tuple[int, int]:
        return self._read(lambda c: self._reader.version_bounds(c, stream, first, last, low, high))

    def kinds(self, scope: Scope) -> list[int]:
        return self._read(lambda connection: self._kinds.of(connection, scope))

    def stream_kinds(self, name: str, kinds: list[int]) -> tuple[list[int], bool]:
        return self._read(lambda connection: self._reader.stream_kinds(connection, name, kinds))

    def range_of(self, position: int, name: str) -> tuple[int, int] | None:
        return self._read(lambda connection: self._reader.range_of(connection, position, name))

    def stream(self, name: str) -> StreamInfo | None:
        found = self._read(lambda connection: self._reader.streams(connection, "s.name = $1", (name,), 1))
        return found[0] if found else None

    def streams(self, prefix: str = "", *, batch: int = 500) -> Iterator[StreamInfo]:
        after = ""
        where = "s.name > $1 and s.name >= $2" + (" and s.name < $3" if prefix else "")
        ends = (after_prefix(prefix),) if prefix else ()
        while True:
            infos = self._read(partial(self._reader.streams, where=where, params=(after, prefix, *ends), limit=batch))
            yield from (info for info in infos if info.version)
            if len(infos) < batch:
                return
            after = infos[-1].name

    def describe(self) -> dict[str, Any]:
        """What there is to know of the place where it is."""

        def look(connection: Connection) -> dict[str, Any]:
            row = connection.execute("select current_setting('server_version'), pg_is_in_recovery()").fetchone()
            assert row is not None
            return {
                "schema": self.place.schema,
                "version": version_of(connection, self.place),
                "server": row[0],
                "standby": row[1],
                "appends": not row[1] and may_append(connection, self.place),
            }

        return self._read(look)

    def size(self) -> int:
        found = self._one(
            "select coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint from pg_class c"
            " join pg_namespace n on n.oid = c.relnamespace where n.nspname = $1 and c.relkind in ('r', 'm', 'S')",
            (self.place.schema,),
        )
        return int(found[0])

    def copy_to(self, path: str) -> bool:
        return False

    def check(self) -> None:
        """Nothing: PostgreSQL checks its pages itself, where it was set up with checksums."""

    # --- moving house ---------------------------------------------------------------------------------

    def raw_head(self) -> RawHead:
        return self._read(partial(self._in_snapshot, self._raw.raw_head))

    def raw_header(self, position: int) -> tuple[int, Head] | None:
        return self._read(lambda connection: self._raw.header(connection, position))

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
        return self._read(
            partial(
                self._in_snapshot,
                lambda c: self._raw.page(c, after, until, known, state, limit_runs, limit_bytes),
            )
        )

    def raw_bodies(self) -> set[int]:
        return self._read(self._raw.bodies)

    def raw_state(self) -> State | None:
        return self._read(partial(self._in_snapshot, self._raw.state))

    def _in_snapshot(self, operation: Callable[[Connection], Result], connection: Connection) -> Result:
        with snapshot(connection):
            return operation(connection)

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
