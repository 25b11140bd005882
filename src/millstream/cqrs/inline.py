"""Inline projections: kept in the commit that appends the events, and made level with the log first."""

from __future__ import annotations

import time
from collections.abc import Iterable

from ..errors import ReadOnlyLog
from ..log import Log
from ..log.checkpoints import Checkpoint, advance, peek, take
from ..log.records import Run
from ..storage.base import Receipt
from ..storage.sqlite.database import Database
from .projection import Placement

HOLD = 0.003
"""The longest time, in seconds, that catching up holds the log's writer at a stretch."""

_PAGE = 500


class InlineProjection:
    """Keeps an inline projection level with the log.

    Its checkpoint moves in the same commits. So it finds what was appended without it (before it was there,
    or by a process that does not know it), and applies that first: at the start in short steps, and inside a
    commit for what came in between.
    """

    def __init__(self, log: Log, placement: Placement) -> None:
        self._log = log
        self._placement = placement

    def attach(self) -> None:
        """Create the tables, catch up with the log, and be part of its commits from here on.

        With a log that was opened to be read there is nothing to do: those who write it keep the tables.

        Raises:
            ReadModelChanged: The tables were made by another version of the schema.
        """
        try:
            self._log.commit(work=self._prepare)
        except ReadOnlyLog:
            return
        while self._catch_up():
            pass
        self._log.inline(self._placement.consumer, self._placement.types, self._handle)

    def _prepare(self, db: Database, receipt: Receipt) -> None:
        self._placement.prepare(db, self._log)
        if peek(db, self._placement.consumer) is None:
            take(db, self._placement.consumer)

    def _catch_up(self) -> bool:
        """Apply a stretch of what the log has and the projection has not; False when there is no more."""
        with self._log.connect() as db:
            checkpoint = peek(db, self._placement.consumer)
        assert checkpoint is not None
        head = self._log.head
        pieces = []
        for piece in self._placement.pieces(
            self._log.runs(types=self._placement.types, after=checkpoint.position, until_position=head + 1)
        ):
            pieces.append(piece)
            if len(pieces) == _PAGE:
                break
        if not pieces:
            return False

        def work(db: Database, receipt: Receipt) -> None:
            now = self._checkpoint(db)
            deadline = time.monotonic() + HOLD
            for piece in pieces:
                if piece.position > now.position:
                    piece.to(db)
                    if time.monotonic() >= deadline:
                        break
            if piece.position > now.position:
                advance(db, now, piece.position)

        self._log.commit(work=work)
        return True

    def _handle(self, db: Database, runs: list[Run]) -> None:
        checkpoint = self._checkpoint(db)
        if checkpoint.position < runs[0].position - 1:
            # Most of the time this finds nothing: the events between are of types that are not ours.
            between = self._log.runs(
                types=self._placement.types, after=checkpoint.position, until_position=runs[0].position
            )
            self._apply(db, between)
        if runs[-1].last > checkpoint.position:
            self._apply(db, runs)
            advance(db, checkpoint, runs[-1].last)

    def _apply(self, db: Database, runs: Iterable[Run]) -> None:
        for piece in self._placement.pieces(runs):
            piece.to(db)

    def _checkpoint(self, db: Database) -> Checkpoint:
        row = db.execute(
            "select position, epoch from millstream_checkpoints where name = ?", (self._placement.consumer,)
        ).fetchone()
        return Checkpoint(self._placement.consumer, *row)
