"""What is done by command about events whose handlers raised: try them again, or leave them out."""

from __future__ import annotations

from ..errors import DatabaseError, NotFound, StorageError
from ..log import Log
from ..log.checkpoints import advance, peek, take
from ..log.reading import scope_of
from ..storage.database import Database
from . import failures
from .errors import ProjectionFailed, in_words
from .failures import WAITING, Failure, FailureState
from .lockstep import watched
from .pieces import Batch, Piece
from .places import Target
from .projection import Placement


def retry(log: Log, placement: Placement, target: Target, position: int | None) -> int:
    """Try events again: the one that a projection stands before, and what is parked, in the order of each stream.

    Args:
        position: Only what stands at this position, with what waits behind it; None for all.

    Returns:
        How many there were. The one that the projection stands before is tried by whoever keeps it.

    Raises:
        NotFound: Nothing failed at the position.
        ProjectionFailed: One raised again; its stream stays as it was, and so do the streams after it.
    """
    found = _chosen(placement, target, position)
    done = 0
    for failure in found:
        if failure.state is FailureState.STOPPED:
            target.transact(lambda db, at=failure.position: failures.settle(db, placement.kept_as, at))  # type: ignore[misc]
            done += 1
    for stream in dict.fromkeys(failure.stream for failure in found if failure.state in WAITING):
        done += _retry_stream(log, placement, target, stream)
    return done


def skip(log: Log, placement: Placement, target: Target, position: int | None) -> Failure:
    """Leave out an event: the one that a projection stands before, or one that is parked. What waits behind it follows.

    Raises:
        NotFound: Nothing failed at the position, or the projection does not stand before any.
        ProjectionFailed: What waited behind it raised.
    """
    found = [each for each in _chosen(placement, target, position) if each.state is not FailureState.BEHIND]
    stopped = [each for each in found if each.state is FailureState.STOPPED]
    if position is None and not stopped:
        raise NotFound(
            f"projection {placement.kept_as!r} does not stand before an event", hint="Name the position of a parked one"
        )
    failure = stopped[0] if stopped else found[0]

    def work(db: Database) -> None:
        if failure.state is FailureState.STOPPED:
            now = peek(db, placement.consumer)
            if now is not None and now.position < failure.position:
                advance(db, take(db, placement.consumer), failure.position)
        failures.note(
            db,
            Failure(
                placement.kept_as, failure.position, failure.type, failure.stream, FailureState.SKIPPED, failure.error,
                failure.failed,
            ),
        )  # fmt: skip

    target.transact(work)
    if failure.state is FailureState.PARKED:
        _retry_stream(log, placement, target, failure.stream)
    return failure


def _chosen(placement: Placement, target: Target, position: int | None) -> list[Failure]:
    with target.reading() as db:
        known = [each for each in failures.all_of(db, placement.kept_as) if each.state is not FailureState.SKIPPED]
    if position is None:
        return known
    found = [each for each in known if each.position == position]
    if not found:
        raise NotFound(
            f"no event of projection {placement.kept_as!r} failed at position {position}",
            hint="millstream projection show lists those that did",
        )
    return found


def _retry_stream(log: Log, placement: Placement, target: Target, stream: str) -> int:
    """Apply what is parked of a stream, in one transaction: all of it, or nothing."""
    while True:
        with target.reading() as db:
            waiting = _waiting(db, placement.kept_as, stream)
        pieces = [piece for failure in waiting for piece in _pieces(log, placement, failure)]
        at: list[Piece | Batch] = []
        same: list[bool] = []

        def work(
            db: Database,
            waiting: list[Failure] = waiting,
            pieces: list[Piece | Batch] = pieces,
            at: list[Piece | Batch] = at,
            same: list[bool] = same,
        ) -> None:
            at.clear()
            # More may have come to wait meanwhile, or another command was quicker.
            same[:] = [_waiting(db, placement.kept_as, stream) == waiting]
            if not same[0]:
                return
            for piece in pieces:
                at[:] = [piece]
                piece.to(watched(db, placement))
                db.check_whole()
            at.clear()
            for failure in waiting:
                failures.settle(db, placement.kept_as, failure.position)

        try:
            target.transact(work)
        except Exception as error:
            if not at or (isinstance(error, StorageError) and not isinstance(error, DatabaseError)):
                raise
            reason = in_words(error)
            raise ProjectionFailed(placement.kept_as, at[0].position, at[0].type, reason) from error
        if same[0]:
            return len(waiting)


def _waiting(db: Database, name: str, stream: str) -> list[Failure]:
    return [each for each in failures.all_of(db, name, stream=stream) if each.state in WAITING]


def _pieces(log: Log, placement: Placement, failure: Failure) -> list[Piece | Batch]:
    scope = scope_of(None, placement.types)
    pages = log.pages(scope, failure.position - 1, failure.position + 1, False, None)
    return list(placement.pieces(pages, apart=[failure.stream]))
