"""Inline projections: kept in the commit that appends the events, and made level with the log first."""

from __future__ import annotations

import hashlib
import time
from contextlib import suppress

from ..errors import ConsumerFenced, DatabaseError, PermissionDenied, ReadOnlyLog, StorageError, UsageError
from ..log import Log
from ..log.checkpoints import TABLE, Checkpoint, advance, peek, take
from ..log.reading import scope_of
from ..log.records import Run
from ..storage.base import Receipt
from ..storage.database import Database
from ..storage.inline import TABLES as COMMITS
from .errors import ProjectionFailed, in_words
from .lockstep import watched
from .pieces import Batch, Piece
from .projection import Placement

HOLD = 0.003
"""The longest time, in seconds, that catching up holds the log's writer at a stretch."""

BATCH = 4_096
"""The most events that one batch in a commit of the log holds."""

_PAGE = 500


class InlineProjection:
    """Keeps an inline projection level with the log.

    Its checkpoint moves in the same commits. So it finds what was appended without it (before it was there,
    or by a process that does not know it), and applies that first: at the start in short steps, and inside a
    commit for what came in between.

    Attributes:
        failure: Why it is not level with the log, if a handler raised for what others had appended.
    """

    def __init__(self, log: Log, placement: Placement) -> None:
        if placement.performs:
            raise UsageError(
                f"projection {placement.name!r} has effects, and is kept inside the appending commits",
                hint="Post messages in an ms.Outbox; or keep it with .into()",
            )
        self.placement = placement
        self.failure: ProjectionFailed | None = None
        self._log = log
        self._known: Checkpoint | None = None
        """Where the last event that was handled here has left it."""

    def attach(self) -> None:
        """Create the tables, catch up with the log, and be part of its commits from here on.

        From then on, a process that lacks it is refused when it appends events of its types: `InlineMissing`.
        With a log that was opened to be read there is nothing to do: those who write it keep the tables.

        Raises:
            ReadModelChanged: The tables were made by another version of the schema.
            ProjectionFailed: A handler raised for an event that is in the log already. All before it is kept.
        """
        try:
            self._log.commit(work=self._prepare)
        except ReadOnlyLog:
            return
        while self._catch_up():
            pass
        fingerprint = hashlib.sha256(self.placement.schema.encode()).hexdigest()
        self._log.inline(
            self.placement.consumer, self.placement.types, self._handle, fingerprint=fingerprint, across=True
        )

    def _prepare(self, db: Database, receipt: Receipt) -> None:
        self.placement.prepare(db, self._log)
        for table, columns in COMMITS.items():
            # Without it the past of several is event by event: no reason to refuse a role that may not make it.
            with suppress(PermissionDenied), db.savepoint():
                db.ensure_table(table, columns)
        if peek(db, self.placement.consumer) is None:
            take(db, self.placement.consumer)

    def _catch_up(self) -> bool:
        """Apply a stretch of what the log has and the projection has not; False when there is no more."""
        with self._log.connect() as db:
            checkpoint = peek(db, self.placement.consumer)
        assert checkpoint is not None
        head = self._log.head
        pieces: list[Piece | Batch] = []
        count = 0
        for piece in self.placement.pieces(
            self._log.pages(scope_of(None, self.placement.types), checkpoint.position, head + 1, False, None),
            rows=BATCH,
        ):
            pieces.append(piece)
            count += piece.count
            if count >= _PAGE:
                break
        if not pieces:
            return False

        try:
            self._commit(pieces)
        except ProjectionFailed as error:
            at = next(index for index, piece in enumerate(pieces) if piece.position == error.position)
            if halves := pieces[at].halves():
                # Which of them fails will be seen when it comes alone.
                for part in (*pieces[:at], *halves):
                    self._commit_all([part])
                return True
            good = [piece for piece in pieces if piece.last < error.position]
            self._commit_all(good)
            raise
        return True

    def _commit_all(self, pieces: list[Piece | Batch]) -> None:
        while pieces:
            try:
                done = self._commit(pieces)
            except ProjectionFailed:
                if len(pieces) > 1 or not (halves := pieces[0].halves()):
                    raise
                for part in halves:
                    self._commit_all([part])
                return
            pieces = [piece for piece in pieces if piece.position > done]

    def _commit(self, pieces: list[Piece | Batch]) -> int:
        """Apply pieces for as long as the log's writer may be held, and say up to which position."""
        reached = 0

        def work(db: Database, receipt: Receipt) -> None:
            nonlocal reached
            now = self._checkpoint(db)
            deadline = time.monotonic() + HOLD
            for piece in pieces:
                if piece.position > now.position:
                    self._make_up(piece, db)
                    if time.monotonic() >= deadline:
                        break
            if piece.last > now.position:
                advance(db, now, piece.last)
            reached = piece.last

        self._log.commit(work=work)
        return reached

    def position(self) -> int:
        """The position up to which the tables show the log, whether or not this process knows of them."""
        head = self._log.head
        with self._log.connect() as db:
            checkpoint = peek(db, self.placement.consumer)
        at = checkpoint.position if checkpoint is not None else 0
        for run in self._log.runs(types=self.placement.types, after=at, until_position=head + 1):
            return max(at, run.position - 1)
        return max(at, head)

    def _handle(self, db: Database, runs: list[Run]) -> None:
        last = runs[-1].last
        seen = watched(db, self.placement)
        if self._moved(db, runs[0].position - 1, last):
            for piece in self.placement.pieces([runs]):
                piece.to(seen)
            return
        checkpoint = self._checkpoint(db)
        if checkpoint.position < runs[0].position - 1:
            # Most of the time this finds nothing: the events between are of types that are not ours.
            between = self._log.pages(
                scope_of(None, self.placement.types), checkpoint.position, runs[0].position, False, None
            )
            try:
                for piece in self.placement.pieces(between):
                    self._make_up(piece, db)
            except ProjectionFailed as error:
                self.failure = error
                raise
            self.failure = None
        if last > checkpoint.position:
            for piece in self.placement.pieces([runs]):
                piece.to(seen)
            self._known = advance(db, checkpoint, last)

    def _moved(self, db: Database, position: int, last: int) -> bool:
        """Whether the checkpoint stood where this process has left it, at a position, and is at another now."""
        if self._known is None or self._known.position != position:
            return False
        try:
            # What was rolled back since, or done by others, shows by the row: this moves it, or does nothing.
            self._known = advance(db, self._known, last)
        except ConsumerFenced:
            return False
        return True

    def _make_up(self, piece: Piece | Batch, db: Database) -> None:
        """Apply an event that is in the log already: whoever appends now has no part in a fault of its handler."""
        try:
            piece.to(watched(db, self.placement))
        except Exception as error:
            # A full disk or a lock is no fault of the handler's.
            if isinstance(error, StorageError) and not isinstance(error, DatabaseError):
                raise
            said = in_words(error)
            raise ProjectionFailed(self.placement.name, piece.position, piece.type, said) from error

    def _checkpoint(self, db: Database) -> Checkpoint:
        row = db.execute(
            f"select position, epoch from {db.own(TABLE)} where name = ?", (self.placement.consumer,)
        ).fetchone()
        if row is None:
            raise DatabaseError(
                f"the checkpoint of inline projection {self.placement.name!r} is gone from {TABLE}",
                hint="Somebody has deleted it: restore the log from a backup; or drop the projection's tables, and its"
                " row in millstream_projections, and the next start makes them anew",
            )
        return Checkpoint(self.placement.consumer, *row)
