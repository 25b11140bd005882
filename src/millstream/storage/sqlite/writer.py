"""The write side of the SQLite store: a batch of requests becomes rows of one transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from contextlib import suppress

import msgspec

from ...conversion import ready
from ...errors import (
    ClockJumped,
    ConditionFailed,
    IdReused,
    MillstreamError,
    StreamClosed,
    VersionConflict,
)
from ...frames import Columns, join_columns, schema_columns
from ...time import HOUR, Clock, clock_micros, iso, now_micros, steady_micros
from .. import inline
from ..base import Encoding, Head, Matching, Receipt, Request, Scope, StagedAppend
from ..chain import FRAME_FORMAT, GENESIS, JSON_FORMAT, header_hash
from ..committer import APART, Job, Undone, unsay
from ..raw import Role
from . import reader
from .database import control
from .faults import translate
from .forks import Thread, enter, leave
from .guard import GuardedDatabase
from .held import Rows, Streams
from .lock import WriterLock
from .names import Names
from .raw import read_inline, read_role
from .whereabouts import Whereabouts

INLINE_LIMIT = 8_192
"""Bodies of one event up to so many bytes stand in the header's row."""
_EVERYTHING = Scope()
_NEVER = 1 << 62


class Spoilt(Exception):
    """A request failed, and nothing of the transaction can be kept: some of it was placed, or SQLite gave it up."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Writer:
    """Writes batches through one connection. Used by one thread at a time (see `Committer`)."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        path: str,
        address: str | None,
        lock: WriterLock | None,
        names: Names,
        clock: Clock | None,
        lock_timeout: float,
        on_commit: Callable[[int], None],
        on_rollback: Callable[[], None],
    ) -> None:
        self.connection = connection
        self.database = GuardedDatabase(connection, path)
        self._path = path
        self._whereabouts = None if address is None else Whereabouts(path, address)
        self._lock = lock
        self._names = names
        self._clock = clock
        self._lock_timeout = lock_timeout
        self._on_commit = on_commit
        self._on_rollback = on_rollback
        self._head: Head | None = None
        self._data_version = -1
        self._streams = Streams(connection, names)
        self._clock_mark: tuple[int, int] | None = None
        self._clock_confirmed = False
        self._durable = False
        self.role: Role | None = None
        """What the log is, if it is not simply the home of its events: then it takes no appends."""
        self._absent: set[str] = set()
        """Streams that the request at hand was seen to begin."""
        self._unguarded = False
        """The request at hand has done something that only the end of the transaction undoes."""
        self._apart = 0
        """In so many commits to come, each request is undone by itself."""
        self._now: int | None = None
        """The clock as read for the present transaction: all of it is recorded at one time."""
        self.inline: inline.Handlers = {}
        self.register = inline.Register(self.inline)
        self._thread: Thread | None = None
        """The one that has begun the transaction: another one may end it."""

    # --- a batch, a transaction -----------------------------------------------------------------------

    def write(self, jobs: list[Job]) -> None:
        """Commit a batch; every job has its receipt or its error afterwards."""
        self._durable = False
        try:
            self._commit(jobs)
        except (sqlite3.Error, Spoilt) as error:
            if len(jobs) > 1:
                # What fails at COMMIT does not say whose fault it was: each request gets a commit of its own.
                unsay(jobs)
                for job in jobs:
                    self.write([job])
                return
            if isinstance(error, Spoilt):
                jobs[0].error = error.cause
            else:
                jobs[0].error = translate(error, self._path, lock_timeout=self._lock_timeout)
        except MillstreamError as error:
            for job in jobs:
                job.error = job.error or error
        except BaseException as error:
            # An interrupt of the thread that leads, whose own job is the first. The others know nothing of it.
            if not self._durable:
                unsay(jobs)
                if len(jobs) > 1:
                    self.write(jobs[1:])
            jobs[0].error = error

    def _commit(self, jobs: list[Job]) -> None:
        apart = len(jobs) > 1 and self._apart > 0
        self._apart = max(self._apart - 1, 0)
        with suppress(Undone):
            self._together(jobs, apart)
            return
        unsay(jobs)
        self._apart = APART
        self._together(jobs, True)

    def _together(self, jobs: list[Job], apart: bool) -> None:
        """Commit a batch.

        Args:
            apart: Each request is undone by itself where it fails, not all of them.

        Raises:
            Undone: One has failed, and all are undone.
        """
        self.begin()
        try:
            rows = Rows()
            waiting = self._waiting(rows)
            for job in jobs:
                assert job.request is not None
                self._unguarded = False
                try:
                    job.receipt = self._perform(job.request, rows, waiting, apart=apart)
                except (sqlite3.Error, Spoilt):
                    raise
                except Exception as error:
                    job.error = error
                    if not self.connection.in_transaction:
                        # SQLite gave up the whole transaction (a full disk): nothing may follow outside it.
                        raise Spoilt(error) from error
                    if self._unguarded and len(jobs) == 1:
                        raise  # what it did is undone with it
                    if self._unguarded:
                        raise Undone from error
            try:
                waiting.call()
            except (sqlite3.Error, Spoilt):
                raise
            except Exception as error:
                if len(jobs) == 1:
                    raise
                raise Undone from error
            rows.insert(self.connection)
        except BaseException:
            self.rollback()
            raise
        self.commit()

    def begin(self, *, moving: bool = False) -> None:
        """Take the writer lock, begin a transaction, and learn what other processes have written.

        Args:
            moving: On behalf of a copy, which may write where appends may not.

        Raises:
            ReplicaLog, LogMoved: The log takes no appends.
        """
        if self._lock is not None:
            self._lock.acquire(self._lock_timeout)
        try:
            self._thread = enter()
        except BaseException:
            if self._lock is not None:
                self._lock.release()
            raise
        self._now = None
        self.database.placed = ()
        self._streams.bound()
        try:
            if self._whereabouts is not None:
                self._whereabouts.check()
            control(self.connection, "begin immediate")
            if self._lock is not None:
                version = self.connection.execute("pragma data_version").fetchone()[0]
                if version != self._data_version:
                    self._forget()
                    self._data_version = version
            if self._head is None:
                self._head = read_head(self.connection)
                self.role = read_role(self.connection)
                self.register.load(read_inline(self.connection))
            if self.role is not None and not moving:
                raise self.role.refusal(self._path)
        except BaseException:
            self.rollback()
            raise

    def check_place(self) -> None:
        """See that the log's file is still where it was.

        Raises:
            StorageError: There is another one, or none.
        """
        if self._whereabouts is not None:
            self._whereabouts.check(lately=0.0)

    def commit(self) -> None:
        """Make the transaction durable, free the lock and wake those that follow."""
        try:
            control(self.connection, "commit")
            self._durable = True
        except BaseException:
            self.rollback()
            raise
        self._names.committed()
        self._leave()
        assert self._head is not None
        self._on_commit(self._head.position)

    def moved(self, head: Head, role: Role | None) -> None:
        """A copy has written beside the caches, in the present transaction."""
        self._streams.known.clear()
        self._head = head
        self.role = role

    def rollback(self) -> None:
        """Undo the transaction and free the lock."""
        try:
            if self.connection.in_transaction:
                self.connection.execute("rollback")
        finally:
            self._forget()
            self._leave()

    def _leave(self) -> None:
        leave(self._thread)
        if self._lock is not None:
            self._lock.release()

    def _forget(self) -> None:
        self._head = None
        self._streams.known.clear()
        self._names.forget_new()
        self._on_rollback()

    # --- one request ----------------------------------------------------------------------------------

    def _perform(self, request: Request, rows: Rows, waiting: inline.Waiting, *, apart: bool) -> Receipt:
        if request.id is not None:
            rows.insert(self.connection)
            done = self.done_before(request)
            if done is not None:
                return done
        names = inline.wanted(self.inline, request.appends) if self.inline else []
        if request.work is None and not names:
            return self.append(request, rows)
        if apart:
            rows.insert(self.connection)
            return self.isolated(request)
        receipt = self.append(request, rows)
        self._unguarded = True
        waiting.add(request.appends, receipt, names)
        if request.work is not None:
            waiting.call()
            rows.insert(self.connection)
            request.work(self.database, receipt)
        return receipt

    def _waiting(self, rows: Rows) -> inline.Waiting:
        def ready() -> None:
            self.database.placed = rows.runs
            rows.insert(self.connection)

        return inline.Waiting(self.inline, self.database, ready)

    def isolated(self, request: Request) -> Receipt:
        """A request under a savepoint of its own: its appends, inline handlers and work, or nothing of it."""
        head = self._head
        try:
            with self.database.savepoint():
                rows = Rows()
                receipt = self.append(request, rows)
                waiting = self._waiting(rows)
                waiting.add(request.appends, receipt)
                waiting.call()
                rows.insert(self.connection)
                if request.work is not None:
                    request.work(self.database, receipt)
            return receipt
        except BaseException:
            self._streams.known.clear()
            self._names.forget_new()
            self._on_rollback()
            self._head = head
            raise

    def finish(self, request: Request) -> Receipt:
        """The appends of a transaction whose SQL has run already: placed in it, inline handlers and all.

        When its id was used before for the same content, that SQL is undone, for it took effect the first time.
        """
        if request.id is not None:
            done = self.done_before(request)
            if done is not None:
                self.connection.execute("rollback")
                self.connection.execute("begin immediate")
                return done
        return self.isolated(request)

    def done_before(self, request: Request) -> Receipt | None:
        """The receipt of the first time, when the same append id was used for the same content.

        Raises:
            IdReused: It was used for other content.
        """
        found = self.connection.execute(
            "select digest, result, last from appends where id = ?", (request.id,)
        ).fetchone()
        if found is None:
            return None
        if found[0] != request.digest:
            raise IdReused(request.id or "", found[2])
        return msgspec.json.decode(found[1], type=ready(Receipt))

    def append(self, request: Request, rows: Rows) -> Receipt:
        """Check all conditions of a request, then place its runs. Nothing is placed when a check fails."""
        appends = request.appends
        if self._absent:
            self._absent.clear()
        if self.register.refused:
            for append in appends:
                self.register.check(append)
        if len(appends) == 1:
            self._check(appends[0], None, rows)
        else:
            seen: dict[str, tuple[int, list[Columns] | None]] = {}
            for append in appends:
                self._check(append, seen, rows)
        try:
            receipt = self._place(request.appends, rows)
        except sqlite3.Error:
            raise
        except Exception as error:
            raise Spoilt(error) from error
        if request.id is not None:
            result = msgspec.json.encode(receipt).decode()
            rows.add("appends", (request.id, request.digest, receipt.first, receipt.position, result))
        return receipt

    def _check(
        self, append: StagedAppend, seen: dict[str, tuple[int, list[Columns] | None]] | None, rows: Rows
    ) -> None:
        """Check the conditions of an append. ``seen``: what the request's appends before it do to its stream."""
        stream = self._streams.find(append.stream)
        if stream is None:
            self._absent.add(append.stream)
        actual, shapes = (seen.get(append.stream) if seen else None) or (stream.version if stream else 0, None)
        if stream is not None and stream.closed:
            raise StreamClosed(append.stream)
        if append.expect is not None and append.expect != actual:
            raise VersionConflict(append.stream, append.expect, actual)
        if append.unless is not None:
            rows.insert(self.connection)
            position = self._find(append.unless)
            if position is not None:
                raise ConditionFailed(position)
        for run in append.runs:
            if run.encoding is Encoding.ARROW and (stream is None or not self._streams.knows(stream, run)):
                if shapes is None:
                    shapes = list(self._streams.shapes(stream)) if stream is not None else []
                shapes.append(schema_columns(run.schema))
                join_columns(append.stream, shapes)
        if seen is not None:
            seen[append.stream] = (actual + append.count, shapes)

    def _place(self, appends: Iterable[StagedAppend], rows: Rows) -> Receipt:
        assert self._head is not None
        position, recorded, digest = self._head.position, self._head.recorded, self._head.hash
        first = position + 1
        name: str | None = None
        version = 0
        if appends:
            if self._now is None:
                self._now = self.now()
            recorded = max(recorded, self._now)
        json, arrow, add = Encoding.JSON, Encoding.ARROW, rows.runs.append
        for append in appends:
            name = append.stream
            stream = self._streams.known.get(name)
            if stream is None:
                stream = (None if name in self._absent else self._streams.find(name)) or self._streams.create(name)
            version = stream.version
            numbers, stream_id = stream.numbers, stream.id
            for run in append.runs:
                known = numbers.get(run.type)
                if known is not None and known[0] == run.schema:
                    kind = known[1]
                else:
                    kind = self._names.kind_id(self.connection, stream.category, run.type, run.schema)
                    numbers[run.type] = (run.schema, kind)
                at = position + 1
                frame = run.encoding is arrow
                format = FRAME_FORMAT if frame else JSON_FORMAT
                metadata = run.metadata.decode() if run.metadata is not None else None
                digest = header_hash(
                    digest, run.body_hash, at, run.count, name, version + 1, run.type, run.schema, recorded,
                    run.effective, run.tags, metadata, format,
                )  # fmt: skip
                ref: int | None
                if run.ref is not None:
                    ref, body = run.ref, None
                elif run.encoding is json and len(run.body) <= INLINE_LIMIT:
                    ref, body = None, run.body.decode()
                else:
                    ref, body = at, None
                    rows.add("bodies", (at, int(run.encoding), run.count, run.body))
                add(
                    (at, run.count, stream_id, version + 1, kind, recorded, run.effective, format, run.body_hash,
                     digest, metadata, ref, body)
                )  # fmt: skip
                for tag in run.tags:
                    rows.add("tags", (tag, at))
                for column, low, high in run.ranges:
                    rows.add("ranges", (at, column, low, high))
                if frame and (stream.kinds is None or kind not in stream.kinds):
                    rows.add("catalogue", (stream.id, kind))
                    self._streams.learn(stream, kind, run.schema)
                position += run.count
                version += run.count
            stream.version = version
            if append.close:
                stream.closed = True
                self.connection.execute("update streams set closed = 1 where id = ?", (stream.id,))
        count = position + 1 - first
        if count:
            self._head = Head(position, recorded, digest)
        return Receipt(first if count else position, position, count, name, version, recorded)

    def _find(self, matching: Matching) -> int | None:
        """The position of an event that the query matches, if there is one."""
        for query in matching.any_of:
            found = reader.matched(self.connection, _EVERYTHING, query, 0, _NEVER, 1)
            if found:
                row = self.connection.execute("select position + count - 1 from runs where position = ?", found)
                return int(row.fetchone()[0])
        return None

    # --- time -----------------------------------------------------------------------------------------

    def now(self) -> int:
        """The log's clock in microseconds since 1970.

        Raises:
            ClockJumped: The wall clock ran more than an hour ahead of the monotonic clock since the last append.
        """
        if self._clock is not None:
            return clock_micros(self._clock)
        wall, steady = now_micros(), steady_micros()
        mark = self._clock_mark
        if mark is not None:
            if (wall - mark[0]) - (steady - mark[1]) > HOUR:
                raise ClockJumped(iso(wall), iso(mark[0] + steady - mark[1]))
        elif not self._clock_confirmed and self._head is not None and self._head.recorded - wall > HOUR:
            raise ClockJumped(iso(wall), f"a time after the last event's, {iso(self._head.recorded)},")
        self._clock_mark = (wall, steady)
        return wall

    def confirm_clock(self) -> None:
        """Accept what the wall clock says now."""
        self._clock_mark = None
        self._clock_confirmed = True


def read_head(connection: sqlite3.Connection) -> Head:
    """The last header's position, time and hash."""
    row = connection.execute(
        "select position + count - 1, recorded, hash from runs order by position desc limit 1"
    ).fetchone()
    return Head(row[0], row[1], row[2]) if row else Head(0, 0, GENESIS)
