"""The write side of the PostgreSQL store: a batch of requests is one call of the database's `append` function."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Sequence

import psycopg
from psycopg.generators import execute
from psycopg.pq import TransactionStatus

from ...errors import ClockJumped, ConnectionFailed, MillstreamError, StreamClosed, VersionConflict
from ...time import HOUR, Clock, clock_micros, iso, steady_micros
from .. import inline
from ..base import Receipt, Request, StagedRun
from ..committer import APART, Job, Undone, unsay
from .connections import LONGEST_PAUSE, PAUSE
from .database import Connection
from .faults import is_lost, translate
from .place import Place
from .session import Session
from .shapes import Shapes
from .wire import Answer, Batch, decode_answers, is_plain, many, one, travels

_FORMATS = [0] * 7 + [1] + [0] * 7
"""How the parameters of `append_one` are written: the hash as bytes, all else as text."""


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
        handlers: inline.Handlers,
        register: inline.Register,
        on_commit: Callable[[int], None],
    ) -> None:
        self._place = place
        self._clock = clock
        self._patience = patience
        self._inline = handlers
        self._register = register
        self._on_commit = on_commit
        self._shapes = Shapes(place)
        self.session = Session(place, patience, self._shapes.forget, register)
        self._mark: tuple[int, int] | None = None
        """The server's clock and this machine's steady one at the last append (microseconds)."""
        self._looked = self._confirmed = False
        self._apart = 0
        """In so many transactions to come, each request is undone by itself."""
        self._head = 0
        """The head after the last commit that this process knows of: a lost one can only lie beyond it."""
        self._append = f"select {place.quoted}.append($1::json, $2, $3::bigint, $4::bigint, $5)::text"
        marks = ", ".join(f"${n}" for n in range(1, 16))
        self._append_one = f"select * from {place.quoted}.append_one({marks})".encode()
        self._append_many = f"select * from {place.quoted}.append_many($1::json, $2::bigint, $3::bigint, $4)"

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
            self.session.drop()
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
        pause = PAUSE
        while True:
            left = [job for job in jobs if job.receipt is None and job.error is None]
            if not left:
                return
            try:
                if not self._looked:
                    self._look()
                if lost:
                    self.session.end_former()
                    self._find_lost(left, origins)
                    left = [job for job in left if job.receipt is None]
                    lost = False
                if self._register.refused:
                    left = self._permitted(left)
                if any(self._takes_turns(job.request) for job in left):
                    self._by_turns(left, origins)
                elif left:
                    self._at_once(left, origins)
            except (psycopg.Error, ConnectionFailed) as error:
                if getattr(error, "sqlstate", None) == _UNSEEN:
                    self.session.look_at_register()
                    continue
                self.session.drop()
                if not is_lost(error) or time.monotonic() + pause > deadline:
                    raise
                lost = True
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    def _permitted(self, jobs: list[Job]) -> list[Job]:
        """The jobs whose events this process may append; the others have their answer."""
        for job in jobs:
            assert job.request is not None
            job.error = self._register.refusal(job.request)
        return [job for job in jobs if job.error is None]

    def _takes_turns(self, request: Request | None) -> bool:
        assert request is not None
        if request.work is not None:
            return True
        return bool(self._inline and inline.wanted(self._inline, request.appends))

    def _at_once(self, jobs: list[Job], origins: dict[int, int]) -> None:
        """Requests without code of their own: one call, one round trip, one commit."""
        connection = self.session.connection
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
                self.session.begin()
                answers = self._call(connection, sent, origins, Batch(self.put))
                self.session.end()
            self._give(sent, answers)

    def _one(self, connection: Connection, job: Job, origins: dict[int, int]) -> None:
        """The commonest request: one event, alone. The shortest way there is."""
        clock, latest = self._times()
        numbers = (origins[id(job)], clock, latest)
        # Below the driver's cursors, which would cost a tenth of the whole.
        assert job.request is not None
        append = job.request.appends[0]
        rest = [None if value is None else b"%d" % value for value in numbers]
        params = [*one(job.request), *rest, self.session.wait.encode()]
        pgconn = connection.pgconn
        if threading.current_thread() is threading.main_thread():
            # As the driver waits, which takes a Ctrl-C at once; C waits on, for as long as the lock is held elsewhere.
            pgconn.send_query_params(self._append_one, params, None, _FORMATS)
            [found] = connection.wait(execute(pgconn))
        else:
            found = pgconn.exec_params(self._append_one, params, None, _FORMATS)
        if found.status != psycopg.pq.ExecStatus.TUPLES_OK:
            if pgconn.status != psycopg.pq.ConnStatus.OK:
                raise psycopg.OperationalError("the connection is lost")
            raise psycopg.errors.error_from_result(found)
        now, position, version, recorded, actual = (
            None if (value := found.get_value(0, column)) is None else int(value) for column in range(5)
        )
        assert now is not None
        self._mark = (now, steady_micros())
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
        params = (batch, clock, latest, self.session.wait)
        found = connection.execute(self._append_many, params, binary=True).fetchone()
        assert found is not None
        now, position, recorded, answers = found
        self._mark = (now, steady_micros())
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
        """Requests with inline handlers or work: one transaction."""
        self._apart = max(self._apart - 1, 0)
        self.session.begin()
        self.session.check_role()
        apart = (
            self._apart > 0
            or len(jobs) == 1
            or self.session.defers
            or any(job.request and job.request.work for job in jobs)
            or not inline.takes_many(self._inline, list(self._inline))
        )
        permitted = self._permitted(jobs) if self._register.refused else jobs
        try:
            checked = self._checked(permitted)
            done = self._one_by_one(checked, origins) if apart else self._together(checked, origins)
            self.session.commit()
        except BaseException as error:
            self.session.undo()
            unsay(jobs)
            if not isinstance(error, Undone):
                raise
            self._apart = APART
            self._by_turns(jobs, origins)
            return
        for job, receipt in done:
            job.receipt = receipt
            assert job.request is not None
            self._learn(job.request, receipt)

    def _one_by_one(
        self, checked: list[tuple[Job, dict[str, int]]], origins: dict[int, int]
    ) -> list[tuple[Job, Receipt]]:
        """Requests under a savepoint each, and their receipts; one that fails is undone by itself."""
        done: list[tuple[Job, Receipt]] = []
        for job, shapes in checked:
            try:
                done.append((job, self._isolated(job, shapes, origins)))
            except psycopg.Error:
                raise
            except _NotOurs as error:
                job.error = error.error
            except Exception as error:
                if self._status() is not TransactionStatus.INTRANS:
                    raise
                job.error = error
        return done

    def _together(
        self, checked: list[tuple[Job, dict[str, int]]], origins: dict[int, int]
    ) -> list[tuple[Job, Receipt]]:
        """Requests that are placed by one call, and then their inline handlers.

        Raises:
            Undone: A handler has failed, or the columns of a stream have changed: whose fault it is shows one by one.
        """
        if not checked:
            return []
        requests = [job.request for job, _ in checked if job.request is not None]
        answers = self._call(self.session.connection, checked, origins, self._batch(requests))
        done: list[tuple[Job, Receipt]] = []
        waiting = inline.Waiting(self._inline, self.session.database)
        try:
            for (job, _), request, answer in zip(checked, requests, answers, strict=True):
                if answer.shapes is not None:
                    self._shapes.forget(answer.shapes)
                    raise Undone
                job.error = answer.error(request)
                if job.error is not None:
                    continue
                done.append((job, answer.receipt()))
                if answer.done is None:
                    waiting.add(request.appends, answer.receipt())
            waiting.call()
        except Exception as error:
            if self._status() in (TransactionStatus.INTRANS, TransactionStatus.INERROR):
                raise Undone from error
            raise
        if self._status() is not TransactionStatus.INTRANS:
            raise Undone  # a handler has passed over the error of a statement of its own
        return done

    def _status(self) -> TransactionStatus:
        return self.session.connection.info.transaction_status

    def _isolated(self, job: Job, shapes: dict[str, int], origins: dict[int, int]) -> Receipt:
        request = job.request
        assert request is not None
        with self.session.database.unit():
            while True:
                [answer] = self._call(self.session.connection, [(job, shapes)], origins, self._batch([request]))
                if answer.shapes is None:
                    break
                self._shapes.forget(answer.shapes)
                shapes = self._shapes.check(self.session.connection, request)
            error = answer.error(request)
            if error is not None:
                raise error
            receipt = answer.receipt()
            if answer.done is None:
                try:
                    waiting = inline.Waiting(self._inline, self.session.database)
                    waiting.add(request.appends, receipt)
                    waiting.call()
                    if request.work is not None:
                        request.work(self.session.database, receipt)
                except psycopg.Error as fault:
                    raise _NotOurs(fault) from fault
        return receipt

    def _checked(self, jobs: Sequence[Job]) -> list[tuple[Job, dict[str, int]]]:
        """The jobs whose frames agree with their streams, each with what that was checked against."""
        good = []
        for job in jobs:
            assert job.request is not None
            try:
                good.append((job, self._shapes.check(self.session.connection, job.request)))
            except MillstreamError as error:
                job.error = error
        return good

    def _batch(self, requests: Sequence[Request]) -> Batch:
        return Batch() if travels(requests) else Batch(self.put)

    def _call(
        self, connection: Connection, sent: list[tuple[Job, dict[str, int]]], origins: dict[int, int], batch: Batch
    ) -> list[Answer]:
        for job, shapes in sent:
            assert job.request is not None
            batch.add(job.request, origins.get(id(job), 0), shapes)
        clock, latest = self._times()
        row = connection.execute(
            self._append,
            (batch.encode(), batch.bodies, clock, latest, self.session.wait),
        ).fetchone()
        assert row is not None
        found = decode_answers(row[0])
        self._mark = (found.now, steady_micros())
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

    def put(self, run: StagedRun) -> int:
        """Put a run's body ahead of its header, inside the present transaction; its number."""
        row = self.session.connection.execute(
            f"select {self._place.quoted}.put_body($1::int, $2::bigint, $3)",
            (int(run.encoding), run.count, run.body),
        ).fetchone()
        assert row is not None
        return int(row[0])

    # --- when the connection is lost ------------------------------------------------------------------

    def _find_lost(self, jobs: list[Job], origins: dict[int, int]) -> None:
        """Give their receipts to those jobs whose runs are in the log: they carry the job's origin."""
        wanted = {origins[id(job)]: job for job in jobs}
        with self.session.connection.transaction():
            # Behind the lock, the transaction whose answer was lost has ended one way or the other.
            self.session.lock()
        # Nobody waits for the search: a process that wrote nothing for long looks at all that others wrote since.
        rows = self.session.connection.execute(
            f"select origin, first, last, stream, version, recorded from {self._place.quoted}.find_origins($1, $2)",
            (self._head, list(wanted)),
        ).fetchall()
        for origin, first, last, stream, version, recorded in rows:
            job = wanted[origin]
            job.receipt = Receipt(first, last, last + 1 - first, stream, version, recorded)
            assert job.request is not None
            self._learn(job.request, job.receipt)

    # --- a transaction of the caller's ----------------------------------------------------------------

    def finish(self, request: Request) -> Receipt:
        """The appends of a transaction whose SQL has run already: placed in it, inline handlers and all.

        When its id was used before for the same content, that SQL is undone, for it took effect the first time.
        """
        job = Job(request)
        refusal = self._register.refusal(request)
        if refusal is not None:
            raise refusal
        if request.id is not None:
            row = self.session.connection.execute(
                f"select 1 from {self._place.quoted}.find_append($1) a where a.digest = $2",
                (request.id, request.digest),
            ).fetchone()
            if row is not None:
                self.session.undo()
                self.session.begin_locked()
        return self._isolated(job, self._shapes.check(self.session.connection, request), {})

    def finished(self, request: Request, receipt: Receipt) -> None:
        """The transaction of a `finish` was committed."""
        self._learn(request, receipt)

    # --- time -----------------------------------------------------------------------------------------

    def _times(self) -> tuple[int | None, int | None]:
        """The log's own clock, if it has one; else the latest time that the server's clock may show."""
        if self._clock is not None:
            return clock_micros(self._clock), None
        if self._mark is None:
            return None, None
        return None, self._mark[0] + steady_micros() - self._mark[1] + HOUR

    def _look(self) -> None:
        """The first time: where the log ends; a clock more than an hour behind what it says is refused.

        Raises:
            ClockJumped: It is.
        """
        row = self.session.connection.execute(
            "select h.position, h.recorded, (extract(epoch from clock_timestamp()) * 1000000)::bigint"
            f" from {self._place.quoted}.head() h"
        ).fetchone()
        assert row is not None
        self.knows(row[0])
        if self._clock is None and not self._confirmed and row[1] - row[2] > HOUR:
            raise ClockJumped(iso(row[2]), f"a time after the last event's, {iso(row[1])},")
        self._looked = True

    def confirm_clock(self) -> None:
        """Accept what the server's clock says now."""
        self._mark = None
        self._confirmed = True


_UNSEEN = "MS005"
"""The register of inline handlers has changed since this session looked at it."""


class _NotOurs(Exception):
    """User code met a fault of a connection of its own: what the log's own meets it gets as the library's errors."""

    def __init__(self, error: psycopg.Error) -> None:
        super().__init__(str(error))
        self.error = error


def _origin() -> int:
    # From the system: processes that seed `random` alike must not take each other's commits for their own.
    return secrets.randbits(62) + 1
