"""The write side of the PostgreSQL store: a batch of requests is one call of the database's `append` function."""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable, Sequence

import msgspec
import psycopg

from ...errors import ClockJumped, ConnectionFailed, InvalidTime, MillstreamError, StreamClosed, VersionConflict
from ...time import Clock, iso, to_micros
from ..base import InlineHandler, Receipt, Request, StagedAppend, StagedRun
from ..committer import Job
from ..raw import Role
from .connections import connect_raw
from .database import Connection, GuardedDatabase
from .faults import is_lost, translate
from .place import Place
from .shapes import Shapes
from .wire import Answer, Batch, decode_answers, is_plain, many, one, travels

_HOUR = 3_600_000_000
_STEADY = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_FORMATS = [0] * 7 + [1] + [0] * 7
"""How the parameters of `append_one` are written: the hash as bytes, all else as text."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 0.5


class Writer:
    """Writes batches through one connection. Used by one thread at a time (see `Committer`).

    Args:
        patience: The longest wait, in seconds, for the lock that appends are serialised by, and for a server that
            has gone away.
    """

    def __init__(
        self,
        place: Place,
        clock: Clock | None,
        patience: float,
        inline: dict[str, tuple[frozenset[str] | None, InlineHandler]],
        on_commit: Callable[[int], None],
        on_rollback: Callable[[], None],
    ) -> None:
        self._place = place
        self._clock = clock
        self._patience = patience
        self._inline = inline
        self._on_commit = on_commit
        self._on_rollback = on_rollback
        self._name = f"{place.conninfo['application_name'][:32]}-{secrets.token_hex(8)}"
        """Tells this writer's sessions from all others."""
        self._connection: Connection | None = None
        self._database: GuardedDatabase | None = None
        self._shapes = Shapes(place)
        self._mark: tuple[int, int] | None = None
        """The server's clock and this machine's steady one at the last append (microseconds)."""
        self._confirmed = False
        self._head = 0
        """The head after the last commit that this process knows of: a lost one can only lie beyond it."""
        self._append = f"select {place.quoted}.append($1::json, $2, $3::bigint, $4::bigint, $5)::text"
        marks = ", ".join(f"${n}" for n in range(1, 16))
        self._append_one = f"select * from {place.quoted}.append_one({marks})".encode()
        # A client that hangs in the middle must not keep the lock for ever.
        self._begin = (
            "begin isolation level read committed;"
            f" set local idle_in_transaction_session_timeout = {max(1_000, int(patience * 1000))}"
        )
        self._append_many = f"select * from {place.quoted}.append_many($1::json, $2::bigint, $3::bigint, $4)"
        self._wait = f"{max(1, int(patience * 1000))}ms".encode()

    # --- the connection -------------------------------------------------------------------------------

    @property
    def connection(self) -> Connection:
        """The connection, made anew when it was lost."""
        if self._connection is None or self._connection.closed:
            self._connection = connect_raw(self._place, self._name)
            self._database = GuardedDatabase(self._connection, self._place.schema, self._place.location)
        return self._connection

    @property
    def database(self) -> GuardedDatabase:
        """The connection as user code sees it inside a transaction."""
        self.connection  # noqa: B018 - makes both
        assert self._database is not None
        return self._database

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()

    def knows(self, head: int) -> None:
        """The log's head is here at least."""
        self._head = max(self._head, head)

    # --- a batch --------------------------------------------------------------------------------------

    def write(self, jobs: list[Job]) -> None:
        """Commit a batch; every job has its receipt or its error afterwards."""
        origins = {id(job): _origin() for job in jobs}
        try:
            self._settle(jobs, origins)
        except psycopg.Error as error:
            open_jobs = [job for job in jobs if job.error is None and job.receipt is None]
            if len(open_jobs) > 1 and not is_lost(error):
                # What fails at COMMIT does not say whose fault it was: each request gets a commit of its own.
                for job in open_jobs:
                    self.write([job])
                return
            told = translate(error, self._place.location, lock_timeout=self._patience)
            for job in open_jobs:
                job.error = told
        except MillstreamError as error:
            for job in jobs:
                if job.receipt is None:
                    job.error = job.error or error
        except BaseException as error:
            # An interrupt of the thread that leads, whose own job is the first. The others know nothing of it.
            self._drop()
            others = [job for job in jobs[1:] if job.receipt is None and job.error is None]
            if others:
                self._settle_others(others, origins)
            jobs[0].error = error

    def _settle_others(self, jobs: list[Job], origins: dict[int, int]) -> None:
        try:
            self._settle(jobs, origins, lost=True)
        except (psycopg.Error, MillstreamError) as error:
            told = translate(error, self._place.location) if isinstance(error, psycopg.Error) else error
            for job in jobs:
                if job.receipt is None:
                    job.error = job.error or told

    def _settle(self, jobs: list[Job], origins: dict[int, int], *, lost: bool = False) -> None:
        """Write, and when the connection is lost find out what became of it, until all have an answer."""
        deadline = time.monotonic() + self._patience
        pause = _FIRST_PAUSE
        while True:
            left = [job for job in jobs if job.receipt is None and job.error is None]
            if not left:
                return
            try:
                if lost:
                    self._end_lost()
                    self._find_lost(left, origins)
                    left = [job for job in left if job.receipt is None]
                    lost = False
                if any(self._takes_turns(job.request) for job in left):
                    self._by_turns(left, origins)
                elif left:
                    self._at_once(left, origins)
            except (psycopg.Error, ConnectionFailed) as error:
                self._drop()
                if not is_lost(error) or time.monotonic() + pause > deadline:
                    raise
                lost = True
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _takes_turns(self, request: Request | None) -> bool:
        assert request is not None
        if request.work is not None:
            return True
        return bool(self._inline) and any(
            types is None or any(run.type in types for append in request.appends for run in append.runs)
            for types, _ in self._inline.values()
        )

    def _at_once(self, jobs: list[Job], origins: dict[int, int]) -> None:
        """Requests without code of their own: one call, one round trip, one commit."""
        connection = self.connection
        batch = None
        if all(is_plain(job.request) for job in jobs):
            if len(jobs) == 1:
                self._one(connection, jobs[0], origins)
                return
            batch = many([job.request for job in jobs if job.request], [origins[id(job)] for job in jobs])
        if batch is not None:
            self._many(connection, jobs, batch)
        elif sent := self._checked(jobs):
            requests = [job.request for job, _ in sent if job.request is not None]
            if travels(requests):
                answers = self._call(connection, sent, origins, Batch())
            else:
                connection.execute(self._begin)
                answers = self._call(connection, sent, origins, Batch(self._put))
                connection.execute("commit")
            self._give(sent, answers)

    def _one(self, connection: Connection, job: Job, origins: dict[int, int]) -> None:
        """The commonest request: one event, alone. The shortest way there is."""
        clock, latest = self._times()
        rest = (origins[id(job)], clock, latest)
        # Below the driver's cursors, which would cost a tenth of the whole.
        assert job.request is not None
        append = job.request.appends[0]
        params = [*one(job.request), *(None if value is None else b"%d" % value for value in rest), self._wait]
        pgconn = connection.pgconn
        found = pgconn.exec_params(self._append_one, params, None, _FORMATS)
        if found.status != psycopg.pq.ExecStatus.TUPLES_OK:
            if pgconn.status != psycopg.pq.ConnStatus.OK:
                raise psycopg.OperationalError("the connection is lost")
            raise psycopg.errors.error_from_result(found)
        now, position, version, recorded, actual = (
            None if (value := found.get_value(0, column)) is None else int(value) for column in range(5)
        )
        assert now is not None
        self._mark = (now, time.clock_gettime_ns(_STEADY) // 1_000)
        if found.get_value(0, 5) == b"t":
            job.error = StreamClosed(append.stream)
        elif actual is not None:
            job.error = VersionConflict(append.stream, append.expect or 0, actual)
        else:
            assert position is not None
            job.receipt = Receipt(position, position, 1, append.stream, version or 0, recorded or 0)
            self._head = position
            self._on_commit(position)

    def _many(self, connection: Connection, jobs: list[Job], batch: str) -> None:
        """The same for a batch of such requests: all are placed by one statement."""
        clock, latest = self._times()
        params = (batch, clock, latest, self._wait.decode())
        found = connection.execute(self._append_many, params, binary=True).fetchone()
        assert found is not None
        now, position, recorded, answers = found
        self._mark = (now, time.clock_gettime_ns(_STEADY) // 1_000)
        for job, answer in zip(jobs, answers, strict=True):
            assert job.request is not None
            append = job.request.appends[0]
            if answer is None:
                job.error = StreamClosed(append.stream)
            elif answer < 0:
                job.error = VersionConflict(append.stream, append.expect or 0, -1 - answer)
            else:
                job.receipt = Receipt(position, position, 1, append.stream, answer, recorded)
                position += 1
        if position > found[1]:
            self._head = position - 1
            self._on_commit(position - 1)

    def _by_turns(self, jobs: list[Job], origins: dict[int, int]) -> None:
        """Requests with inline handlers or work: one transaction, a savepoint for each."""
        connection = self.connection
        connection.execute(self._begin)
        done: list[tuple[Job, Receipt]] = []
        self._check_role()
        try:
            for job, shapes in self._checked(jobs):
                assert job.request is not None
                try:
                    done.append((job, self._isolated(job, shapes, origins)))
                except psycopg.Error:
                    raise
                except Exception as error:
                    if connection.info.transaction_status is not psycopg.pq.TransactionStatus.INTRANS:
                        raise
                    job.error = error
            xid = connection.execute("select pg_current_xact_id_if_assigned()::text").fetchone()
        except BaseException:
            self._undo()
            raise
        self._commit(xid[0] if xid is not None else None)
        for job, receipt in done:
            job.receipt = receipt
            assert job.request is not None
            self._learn(job.request, receipt)

    def _isolated(self, job: Job, shapes: dict[str, int], origins: dict[int, int]) -> Receipt:
        request = job.request
        assert request is not None
        try:
            with self.database.savepoint():
                while True:
                    [answer] = self._call(self.connection, [(job, shapes)], origins, self._batch([request]))
                    if answer.shapes is None:
                        break
                    self._shapes.forget(answer.shapes)
                    shapes = self._shapes.check(self.connection, request)
                error = answer.error(request)
                if error is not None:
                    raise error
                receipt = answer.receipt()
                if answer.done is None:
                    self._run_inline(request.appends, receipt)
                    if request.work is not None:
                        request.work(self.database, receipt)
            return receipt
        except BaseException:
            self._on_rollback()
            raise

    def _checked(self, jobs: Sequence[Job]) -> list[tuple[Job, dict[str, int]]]:
        """The jobs whose frames agree with their streams, each with what that was checked against."""
        good = []
        for job in jobs:
            assert job.request is not None
            try:
                good.append((job, self._shapes.check(self.connection, job.request)))
            except MillstreamError as error:
                job.error = error
        return good

    def _batch(self, requests: Sequence[Request]) -> Batch:
        return Batch() if travels(requests) else Batch(self._put)

    def _call(
        self, connection: Connection, sent: list[tuple[Job, dict[str, int]]], origins: dict[int, int], batch: Batch
    ) -> list[Answer]:
        for job, shapes in sent:
            assert job.request is not None
            batch.add(job.request, origins.get(id(job), 0), shapes)
        clock, latest = self._times()
        row = connection.execute(
            self._append,
            (batch.encode(), batch.bodies, clock, latest, self._wait.decode()),
        ).fetchone()
        assert row is not None
        found = decode_answers(row[0])
        self._mark = (found.now, time.clock_gettime_ns(_STEADY) // 1_000)
        return found.answers

    def _give(self, sent: list[tuple[Job, dict[str, int]]], answers: list[Answer]) -> None:
        for (job, _), answer in zip(sent, answers, strict=True):
            request = job.request
            assert request is not None
            if answer.shapes is not None:
                self._shapes.forget(answer.shapes)  # and the job goes round once more
                continue
            job.error = answer.error(request)
            if job.error is None:
                job.receipt = answer.receipt()
                self._learn(request, job.receipt)

    def _learn(self, request: Request, receipt: Receipt) -> None:
        self._shapes.learn(request)
        if receipt.count and receipt.position > self._head:
            self._head = receipt.position
            self._on_commit(receipt.position)

    def _put(self, run: StagedRun) -> int:
        row = self.connection.execute(
            f"select {self._place.quoted}.put_body($1::int, $2::bigint, $3)",
            (int(run.encoding), run.count, run.body),
        ).fetchone()
        assert row is not None
        return int(row[0])

    def _run_inline(self, appends: Sequence[StagedAppend], receipt: Receipt) -> None:
        if not receipt.count:
            return
        for types, handler in list(self._inline.values()):
            position = receipt.first
            for append in appends:
                if types is None or any(run.type in types for run in append.runs):
                    handler(self.database, append, position)
                position += append.count

    # --- when the connection is lost ------------------------------------------------------------------

    def _commit(self, xid: str | None) -> None:
        """Commit; when the answer is lost, ask the server what became of the transaction."""
        try:
            self.connection.execute("commit")
        except psycopg.Error as error:
            self._drop()
            if xid is None or not is_lost(error) or not self._happened(xid):
                raise

    def _end_lost(self) -> None:
        """End this writer's former sessions: one that has not noticed its client's end would keep the lock."""
        self.connection.execute(
            "select pg_terminate_backend(a.pid) from pg_stat_activity a"
            " where a.application_name = $1 and a.usename = current_user and a.pid <> pg_backend_pid()",
            (self._name,),
        )

    def _happened(self, xid: str) -> bool:
        deadline = time.monotonic() + self._patience
        while True:
            try:
                self._end_lost()
                row = self.connection.execute("select pg_xact_status($1::xid8)", (xid,)).fetchone()
                if row is not None and row[0] != "in progress":
                    return bool(row[0] == "committed")
            except (psycopg.Error, MillstreamError):
                self._drop()
                if time.monotonic() > deadline:
                    raise
            time.sleep(_FIRST_PAUSE)

    def _find_lost(self, jobs: list[Job], origins: dict[int, int]) -> None:
        """Give their receipts to those jobs whose runs are in the log: they carry the job's origin."""
        quoted = self._place.quoted
        wanted = {origins[id(job)]: job for job in jobs}
        with self.connection.transaction():
            # Behind the lock, the transaction whose answer was lost has ended one way or the other.
            self.connection.execute(f"select {quoted}.lock($1)", (self._wait.decode(),))
            rows = self.connection.execute(
                f"select r.origin, min(r.position), max(r.position + r.count - 1), max(r.recorded)"
                f" from {quoted}.runs r where r.position > $1 and r.origin = any($2) group by r.origin",
                (self._head, list(wanted)),
            ).fetchall()
            for origin, first, last, recorded in rows:
                stream, version = self.connection.execute(
                    f"select s.name, r.version + r.count - 1 from {quoted}.runs r"
                    f" join {quoted}.streams s on s.id = r.stream where r.position + r.count - 1 = $1"
                    " and r.position > $1 - 65536",
                    (last,),
                ).fetchone()  # type: ignore[misc]
                job = wanted[origin]
                job.receipt = Receipt(first, last, last + 1 - first, stream, version, recorded)
                assert job.request is not None
                self._learn(job.request, job.receipt)

    def _drop(self) -> None:
        """Use the connection no more: what state it is in is not known."""
        self._shapes.forget()
        if self._connection is not None:
            self._connection.close()
        self._on_rollback()

    def _undo(self) -> None:
        self._shapes.forget()
        self._on_rollback()
        connection = self._connection
        if connection is None or connection.closed or connection.broken:
            return
        try:
            connection.execute("rollback")
        except psycopg.Error:
            connection.close()

    # --- a transaction of the caller's ----------------------------------------------------------------

    def begin(self, *, moving: bool = False) -> None:
        """Begin a transaction that holds the lock.

        Args:
            moving: It is a copy's: what role the log has does not matter.

        Raises:
            ReplicaLog, LogMoved: The log takes what its source has, and nothing else, or has moved.
        """
        deadline = time.monotonic() + self._patience
        while True:
            try:
                self.connection.execute(self._begin)
                self.connection.execute(
                    f"select {self._place.quoted}.lock($1)",
                    (self._wait.decode(),),
                )
                break
            except psycopg.Error as error:
                self._drop()
                if not is_lost(error) or time.monotonic() > deadline:
                    raise
                time.sleep(_FIRST_PAUSE)
        if not moving:
            self._check_role()

    def _check_role(self) -> None:
        """Refuse what appends nothing, too: an append itself is refused by a trigger."""
        row = self.connection.execute(f"select value from {self._place.quoted}.meta where key = 'role'").fetchone()
        if row is not None:
            self._undo()
            raise msgspec.json.decode(row[0], type=Role).refusal(self._place.location)

    def commit(self) -> None:
        """Commit what `begin` began."""
        row = self.connection.execute("select pg_current_xact_id_if_assigned()::text").fetchone()
        self._commit(row[0] if row is not None else None)

    def rollback(self) -> None:
        """Undo what `begin` began."""
        self._undo()

    def finish(self, request: Request) -> Receipt:
        """The appends of a transaction whose SQL has run already: placed in it, inline handlers and all.

        When its id was used before for the same content, that SQL is undone, for it took effect the first time.
        """
        job = Job(request)
        if request.id is not None:
            row = self.connection.execute(
                f"select 1 from {self._place.quoted}.appends a where a.id = $1 and a.digest = $2",
                (request.id, request.digest),
            ).fetchone()
            if row is not None:
                self.connection.execute("rollback")
                self.begin()
        return self._isolated(job, self._shapes.check(self.connection, request), {})

    def finished(self, request: Request, receipt: Receipt) -> None:
        """The transaction of a `finish` was committed."""
        self._learn(request, receipt)

    # --- time -----------------------------------------------------------------------------------------

    def _times(self) -> tuple[int | None, int | None]:
        """The log's own clock, if it has one; else the latest time that the server's clock may show."""
        if self._clock is not None:
            try:
                return to_micros(self._clock()), None
            except InvalidTime as error:
                raise InvalidTime(f"the log's clock: {error.message}", hint=error.hint) from error
        if self._mark is None:
            if not self._confirmed:
                self._check_clock()
            return None, None
        return None, self._mark[0] + time.clock_gettime_ns(_STEADY) // 1_000 - self._mark[1] + _HOUR

    def _check_clock(self) -> None:
        """The first time: a clock more than an hour behind what the log says is refused."""
        row = self.connection.execute(
            "select h.recorded, (extract(epoch from clock_timestamp()) * 1000000)::bigint"
            f" from {self._place.quoted}.head() h"
        ).fetchone()
        if row is not None and row[0] - row[1] > _HOUR:
            raise ClockJumped(iso(row[1]), f"a time after the last event's, {iso(row[0])},")
        self._confirmed = True

    def confirm_clock(self) -> None:
        """Accept what the server's clock says now."""
        self._mark = None
        self._confirmed = True


def _origin() -> int:
    return random.getrandbits(62) + 1
