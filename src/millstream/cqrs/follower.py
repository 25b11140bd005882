"""Asynchronous projections: a worker that follows the log and commits rows and checkpoint together."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from ..errors import ConsumerFenced, DatabaseError, MillstreamError, NotALog, ReadOnlyLog, StorageError, UsageError
from ..log import Log
from ..log.checkpoints import Checkpoint, advance, peek, take
from ..log.reading import scope_of
from ..storage.database import Database
from ..storage.sqlite.database import open_database
from .errors import ForeignReadModel, ProjectionFailed, ReadModelChanged
from .inline import BATCH, HOLD
from .projection import ROWS, Batch, Piece, Placement

_QUIET = 1.0
"""How long, in seconds, a checkpoint may lag behind the log when nothing of the projection's came by."""

_POLL = 0.01
"""How often, in seconds, to look at the checkpoint of a projection that another process keeps."""

_LOOK = 0.25
"""How soon, in seconds, a worker that waits for events notices that it is to stop."""


class Target(Protocol):
    """A database that a read model is kept in, and how a worker writes to it."""

    pieces: int
    """How many events to decode ahead."""
    rows: int
    """The most events for one batch."""
    hold: float
    """The longest time, in seconds, for one transaction."""

    def transact(self, work: Callable[[Database], None]) -> None:
        """Run work in a write transaction; it may run more than once."""

    def reading(self) -> AbstractContextManager[Database]:
        """A connection to read with."""


class OwnFile:
    """A read model's own file. A power cut may undo its last moments, of rows and checkpoint alike."""

    pieces = 5_000
    rows = ROWS
    hold = 0.25

    def __init__(self, path: str) -> None:
        self.path = path

    def transact(self, work: Callable[[Database], None]) -> None:
        """Run work in a write transaction on a connection of its own."""
        db = self._open()
        try:
            with db.transaction():
                work(db)
        finally:
            db.close()

    @contextmanager
    def reading(self) -> Iterator[Database]:
        """A read-only connection of its own."""
        db = open_database(self.path, readonly=True)
        try:
            yield db
        finally:
            db.close()

    @contextmanager
    def kept_open(self) -> Iterator[Target]:
        """The same with one connection for all that follows, on one thread."""
        db = self._open()
        try:
            yield _OpenFile(db)
        finally:
            db.close()

    def _open(self) -> Database:
        try:
            return open_database(self.path, synchronous="NORMAL")
        except NotALog as error:
            raise UsageError(
                f"{self.path} is no SQLite database, so no read model can be kept in it",
                hint="Give the path of a read model, or of a new file",
            ) from error


class _OpenFile:
    pieces = OwnFile.pieces
    rows = OwnFile.rows
    hold = OwnFile.hold

    def __init__(self, db: Database) -> None:
        self._db = db

    def transact(self, work: Callable[[Database], None]) -> None:
        with self._db.transaction():
            work(self._db)

    @contextmanager
    def reading(self) -> Iterator[Database]:
        yield self._db


class InLog:
    """A read model in the log's own database, written through the log's committer, a little at a time."""

    pieces = 500
    rows = BATCH
    hold = HOLD

    def __init__(self, log: Log) -> None:
        self._log = log

    def transact(self, work: Callable[[Database], None]) -> None:
        """Run work in a commit of the log."""
        self._log.commit(work=lambda db, receipt: work(db))

    def reading(self) -> AbstractContextManager[Database]:
        """One of the log's read connections."""
        return self._log.connect()

    @contextmanager
    def kept_open(self) -> Iterator[Target]:
        """The same: the log keeps its connection open."""
        yield self


class Follower:
    """Keeps an asynchronous projection, in the thread that calls `run`.

    One holder at a time: taking over raises the checkpoint's epoch, and the holder before finds at its next
    commit that it is fenced. Steps are large while it catches up; one that waits is woken by an append.

    Attributes:
        failure: Why the projection has stopped, if a handler raised or its tables are of another schema.
    """

    def __init__(self, log: Log, placement: Placement) -> None:
        self.placement = placement
        self.failure: MillstreamError | None = None
        if placement.path is not None and log.path and os.path.realpath(placement.path) == os.path.realpath(log.path):
            raise UsageError(
                f"{placement.path} is the log's own file",
                hint=f"Write {placement.name}.into() to keep a read model in the log's database, or give another file",
            )
        self.target: OwnFile | InLog = OwnFile(placement.path) if placement.path is not None else InLog(log)
        self._log = log
        self._moved = threading.Condition()
        self._seen = 0
        self._running = False

    def position(self) -> int:
        """The position up to which the read model shows the log; of other workers' too."""
        return self._seen if self._running else max(self._seen, self._stored())

    def prepare(self) -> None:
        """Create the read model's file and tables, so that queries find them; note it when they do not fit."""
        try:
            self.target.transact(lambda db: self.placement.prepare(db, self._log))
        except (ReadModelChanged, ForeignReadModel) as error:
            self.failure = error
        except ReadOnlyLog:
            pass  # its tables are in a log that is only read here: those who write it keep them

    def run(self, stop: threading.Event) -> None:
        """Follow the log until ``stop`` is set.

        Raises:
            ConsumerFenced: Another worker has taken the projection over.
            ProjectionFailed: A handler raised. All before that event is kept.
            ReadModelChanged, ForeignReadModel: The tables do not fit the projection, or the log.
        """
        try:
            with self.target.kept_open() as target:
                _Run(self, self._log, target).follow(stop)
        except (ProjectionFailed, ReadModelChanged, ForeignReadModel) as error:
            self.failure = error
            raise
        finally:
            self._running = False
            self._announce(self._seen)

    def wait(self, position: int, timeout: float) -> bool:
        """Wait until the read model shows the log up to a position. False when the time is up.

        Raises:
            ProjectionFailed, ReadModelChanged, ForeignReadModel: The projection has stopped.
        """
        deadline = time.monotonic() + timeout
        while self._seen < position:
            if self.failure is not None:
                raise self.failure
            left = deadline - time.monotonic()
            if self._running:
                with self._moved:
                    self._moved.wait_for(lambda: self._seen >= position or not self._running, max(left, 0))
            elif self._level(position):
                return True
            elif left > 0:
                # Whoever else keeps it cannot wake this process: look at its checkpoint now and then.
                time.sleep(min(_POLL, left))
            if left <= 0:
                return self._seen >= position
        return True

    def _level(self, position: int) -> bool:
        """Whether the stored checkpoint is there, or nothing of the projection's lies between."""
        stored = max(self._seen, self._stored())
        if stored >= position or position > self._log.head:
            return stored >= position
        missing = self._log.runs(types=self.placement.types, after=stored, until_position=position + 1)
        return next(missing, None) is None

    def _stored(self) -> int:
        with self.target.reading() as db:
            checkpoint = peek(db, self.placement.consumer)
        return checkpoint.position if checkpoint is not None else 0

    def _begun(self, position: int) -> None:
        self.failure = None
        self._running = True
        self._announce(position)

    def _announce(self, position: int) -> None:
        with self._moved:
            self._seen = position
            self._moved.notify_all()


class _Run:
    """One run of a follower, from taking the checkpoint to the end."""

    def __init__(self, follower: Follower, log: Log, target: Target) -> None:
        self._follower = follower
        self._placement = follower.placement
        self._log = log
        self._target = target
        self._written = time.monotonic()

    def follow(self, stop: threading.Event) -> None:
        self._checkpoint = self._take()
        self._seen = self._checkpoint.position
        self._follower._begun(self._seen)
        while not stop.is_set():
            # The head first: what is appended after it is for the next round.
            head = self._log.head
            if head > self._seen:
                self._catch_up(head, stop)
            if self._seen > self._checkpoint.position and time.monotonic() - self._written >= _QUIET:
                self._commit([], self._seen)
            if not stop.is_set():
                self._log.wait(head, _LOOK)
        if self._seen > self._checkpoint.position:
            self._commit([], self._seen)

    def _take(self) -> Checkpoint:
        taken: list[Checkpoint] = []

        def work(db: Database) -> None:
            self._placement.prepare(db, self._log)
            taken.append(take(db, self._placement.consumer))

        self._target.transact(work)
        return taken[-1]

    def _catch_up(self, head: int, stop: threading.Event) -> None:
        pages = self._log.pages(scope_of(None, self._placement.types), self._seen, head + 1, False, None)
        pieces = self._placement.pieces(pages, rows=self._target.rows)
        ahead: list[Piece | Batch] = []
        while not stop.is_set():
            count = sum(piece.count for piece in ahead)
            last = False
            while count < self._target.pieces and not last:
                piece = next(pieces, None)
                if piece is None:
                    last = True
                else:
                    ahead.append(piece)
                    count += piece.count
            if not ahead:
                self._moved(head)
                return
            done = self._commit(ahead, head if last else 0)
            del ahead[:done]

    def _commit(self, pieces: list[Piece | Batch], end: int) -> int:
        """Apply as many pieces as the time for one transaction allows, and move the checkpoint with them.

        Args:
            pieces: What to apply.
            end: Where to move the checkpoint when all are applied; 0 for the position of the last one.

        Returns:
            How many were applied.
        """
        step = _Step(self._checkpoint, pieces, end, self._target.hold)
        try:
            self._target.transact(step.work)
        except Exception as error:
            if step.failed is not error:
                raise
            # Keep what went well before the event that failed, and stop right before that one.
            good, failed = pieces[: step.done], pieces[step.done]
            while good:
                del good[: self._commit(good, 0)]
            if parts := failed.halves():
                for part in parts:
                    self._commit([part], 0)
                return step.done + 1
            raise ProjectionFailed(
                self._placement.name, failed.position, failed.type, f"{type(error).__name__}: {error}"
            ) from error
        self._checkpoint = step.checkpoint
        self._written = time.monotonic()
        self._moved(self._checkpoint.position)
        return step.done

    def _moved(self, position: int) -> None:
        self._seen = position
        self._follower._announce(position)


class _Step:
    """The work of one transaction; it may be run again, and then starts afresh."""

    def __init__(self, checkpoint: Checkpoint, pieces: list[Piece | Batch], end: int, hold: float) -> None:
        self._before = checkpoint
        self._pieces = pieces
        self._end = end
        self._hold = hold
        self.checkpoint = checkpoint
        self.done = 0
        self.failed: BaseException | None = None

    def work(self, db: Database) -> None:
        self.done = 0
        self.failed = None
        # Before the first row: what another holder has applied since would look like a fault of the handler's.
        if peek(db, self._before.name) != self._before:
            raise ConsumerFenced(self._before.name)
        deadline = time.monotonic() + self._hold
        for piece in self._pieces:
            try:
                piece.to(db)
            except StorageError as error:
                # A full disk or a lock is no fault of the handler's: the supervisor tries again.
                if isinstance(error, DatabaseError):
                    self.failed = error
                raise
            except Exception as error:
                self.failed = error
                raise
            self.done += 1
            if time.monotonic() >= deadline:
                break
        if self.done == len(self._pieces):
            position = self._end or (self._pieces[-1].last if self._pieces else self._before.position)
        else:
            position = self._pieces[self.done - 1].last
        self.checkpoint = advance(db, self._before, position)
