"""Keeping a read model: events in, rows out, and the checkpoint in the same transaction."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ..errors import ConsumerFenced, DatabaseError, StorageError
from ..log import Log
from ..log.checkpoints import Checkpoint, advance, peek, take
from ..log.paging import IfTrimmed
from ..log.present import is_wanted
from ..log.reading import scope_of
from ..storage.database import Database
from . import effects, failures
from .errors import ProjectionFailed, in_words
from .failures import Failure, FailureState
from .lease import Stop
from .lockstep import watched
from .pieces import Batch, Piece
from .places import Target
from .projection import Placement
from .watch import Watch

_QUIET = 1.0
"""How long, in seconds, a checkpoint may lag behind the log when nothing of the projection's came by."""

_LOOK = 0.5
"""How soon, in seconds, a worker that waits for events notices that it is to stop."""


class Keeper:
    """Keeps one version of a read model, in one thread, from taking its checkpoint on.

    Args:
        moved: Called with each position that it has come to.
        trimmed: Pass over events that retention has trimmed, or raise `Trimmed`.
        held: The events that have no effects on the outside: another version has been through them.
        building: Whether another version answers.
        told: Called after each transaction: there may be effects to be performed.

    Attributes:
        seen: The position up to which the read model shows the log.
    """

    def __init__(
        self,
        log: Log,
        placement: Placement,
        target: Target,
        moved: Callable[[int], None],
        trimmed: IfTrimmed = "skip",
        held: effects.Passed = effects.Passed(),  # noqa: B008 - it never changes
        building: bool = False,
        told: Callable[[], None] | None = None,
    ) -> None:
        self._log = log
        self._placement = placement
        self._target = target
        self._trimmed: IfTrimmed = trimmed
        self._tell = moved
        self._held = held
        self._building = building
        self._told = told
        self._written = time.monotonic()
        self._blocked: set[str] = set()
        self._known: dict[str, int] = {}
        """Of streams whose events wait, the position of one that does: to look for that alone is quick."""
        self._types = frozenset(placement.types)
        self._is_new = False
        """Whether nothing was applied since it was taken."""
        self.seen = 0

    def take(self) -> int:
        """Become the holder of the checkpoint, and say where it is."""
        taken: list[Checkpoint] = []

        def work(db: Database) -> None:
            self._placement.prepare(db, self._log)
            taken.append(take(db, self._placement.consumer))
            if self._placement.notes:
                effects.prepare(db, self._placement, self._held, building=self._building)
            self._known = failures.blocked_streams(db, self._placement.kept_as)
            self._blocked = set(self._known)
            stopped = failures.stopped_at(db, self._placement.kept_as)
            if stopped is not None:
                failures.settle(db, self._placement.kept_as, stopped.position)  # it is tried again now

        self._target.transact(work)
        self._checkpoint = taken[-1]
        self.seen = self._checkpoint.position
        self._is_new = True
        return self.seen

    def follow(self, stop: Stop, watch: Watch) -> None:
        """Follow the log until it is time to stop."""
        while True:
            # The head first: what is appended after it is for the next round.
            head = self._log.head
            if head > self.seen and not self._from_tail(stop):
                self.catch_up(head, stop)
            if self.seen > self._checkpoint.position and time.monotonic() - self._written >= _QUIET:
                self.commit()
            if stop.is_set():
                break
            passed = watch.wait(self._placement.types, self.seen, _LOOK)
            if passed > self.seen:
                self._moved(passed)
        self.commit()

    def commit(self) -> None:
        """Write down how far it has come, if that was not done."""
        if self.seen > self._checkpoint.position:
            self._commit([], self.seen)

    def catch_up(self, head: int, stop: Stop) -> None:
        """Apply what the log has up to a position, as far as there is time; but never nothing of it.

        To take a read model over may last longer than some programs run: they would never get on.
        """
        while self.seen < head and (self._is_new or not stop.is_set()):
            self._stretch(head, stop)

    def _from_tail(self, stop: Stop) -> bool:
        """Apply what has just come, of which one read serves all workers; False when it is to be read by itself."""
        found = None if self._blocked else self._log.tail.after(self.seen)
        if found is None:
            return False
        seen, head = found
        runs = [each.run for each in seen if is_wanted(each.run, self._types)]
        pieces = list(self._placement.pieces([runs] if runs else [], rows=self._target.rows))
        if not pieces:
            self._moved(head)
            return True
        while pieces:
            blocked = self._blocked
            del pieces[: self._commit(pieces, head)]
            if self._blocked is not blocked or stop.is_set():
                break
        return True

    def _stretch(self, head: int, stop: Stop) -> None:
        """The same, up to the next event that is parked at most: from there on its stream is apart."""
        pages = self._log.spans(scope_of(None, self._placement.types), self.seen, head + 1, self._trimmed)
        blocked = self._blocked
        pieces = self._placement.pieces(pages, rows=self._target.rows, apart=blocked)
        ahead: list[Piece | Batch] = []
        while (self._is_new or not stop.is_set()) and self._blocked is blocked:
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
        step = _Step(self._placement, self._checkpoint, pieces, end, self._target.hold, self._blocked, self._known)
        try:
            self._target.transact(step.work)
        except Exception as error:
            if step.failed is not error:
                raise
            # Keep what went well before the event that failed. Once one is parked, all that comes after it is to be
            # looked at anew: some of it may be of its stream.
            blocked = self._blocked
            good, failed = pieces[: step.done], pieces[step.done]
            while good and self._blocked is blocked:
                del good[: self._commit(good, 0)]
            parts = failed.halves()
            while parts and self._blocked is blocked:
                self._commit([parts.pop(0)], 0)
            if failed.count == 1 and self._blocked is blocked:
                self._fail(failed, error)
            return step.done + 1
        self._checkpoint = step.checkpoint
        self._written = time.monotonic()
        if step.freed:
            self._blocked = self._blocked - step.freed
        self._moved(self._checkpoint.position)
        if self._told is not None:
            self._told()
        return step.done

    def _fail(self, piece: Piece | Batch, error: Exception) -> None:
        """Do what the projection's policy says about an event whose handler raised."""
        reason = in_words(error)
        policy = self._placement.projection.on_failure
        state = {"stop": FailureState.STOPPED, "skip": FailureState.SKIPPED, "park": FailureState.PARKED}[policy]
        failure = Failure(
            self._placement.kept_as, piece.position, piece.type, piece.stream, state, reason, self._log.store.now()
        )
        moved: list[Checkpoint] = []

        def work(db: Database) -> None:
            if peek(db, self._checkpoint.name) != self._checkpoint:
                raise ConsumerFenced(self._checkpoint.name)
            failures.note(db, failure)
            if policy != "stop":
                moved.append(advance(db, self._checkpoint, piece.last))

        self._target.transact(work)
        if policy == "stop":
            raise ProjectionFailed(self._placement.kept_as, piece.position, piece.type, reason) from error
        self._checkpoint = moved[-1]
        if policy == "park":
            self._known[piece.stream] = piece.position
            self._blocked = self._blocked | {piece.stream}
        self._moved(self._checkpoint.position)

    def _moved(self, position: int) -> None:
        self._is_new = False
        self.seen = position
        self._tell(position)


class _Step:
    """The work of one transaction; it may be run again, and then starts afresh."""

    def __init__(
        self,
        placement: Placement,
        checkpoint: Checkpoint,
        pieces: list[Piece | Batch],
        end: int,
        hold: float,
        blocked: set[str],
        known: dict[str, int],
    ) -> None:
        self._placement = placement
        self._before = checkpoint
        self._pieces = pieces
        self._end = end
        self._hold = hold
        self._blocked = blocked
        self._known = known
        self.checkpoint = checkpoint
        self.done = 0
        self.failed: BaseException | None = None
        self.freed: set[str] = set()

    def work(self, db: Database) -> None:
        self.done = 0
        self.failed = None
        self.freed = set()
        # Before the first row: what another holder has applied since would look like a fault of the handler's.
        if peek(db, self._before.name) != self._before:
            raise ConsumerFenced(self._before.name)
        deadline = time.monotonic() + self._hold
        seen = watched(db, self._placement)
        for piece in self._pieces:
            try:
                self._apply(piece, db, seen)
                seen.check_whole()
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

    def _apply(self, piece: Piece | Batch, db: Database, seen: Database) -> None:
        if self._blocked and piece.count == 1 and piece.stream in self._blocked and piece.stream not in self.freed:
            name = self._placement.kept_as
            if self._waits(db, name, piece.stream):
                reason = "an earlier event of its stream is parked"
                now: Any = piece.recorded_at
                failures.note(
                    db, Failure(name, piece.position, piece.type, piece.stream, FailureState.BEHIND, reason, now)
                )
                self._known[piece.stream] = piece.position
                return
            self.freed.add(piece.stream)  # somebody has settled it meanwhile
        piece.to(seen)

    def _waits(self, db: Database, name: str, stream: str) -> bool:
        """Whether events of a stream wait. What is known of it may have been rolled back, or settled by others."""
        known = self._known.get(stream)
        if known is not None and failures.waits_at(db, name, known):
            return True
        last = failures.last_waiting(db, name, stream)
        if last is None:
            self._known.pop(stream, None)
            return False
        self._known[stream] = last
        return True
