"""Headers pointed at other bodies, a few at a time, beside writers: what archiving, trimming and restoring share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, TypeVar

from ...errors import StorageError
from ...storage.base import Encoding, Request, Scope
from ..records import Run

if TYPE_CHECKING:
    from ..log import Log
    from ..reading import Reader

T = TypeVar("T")

LINKS = 64
"""The most headers changed in one step: it holds the writer lock for a few milliseconds."""
STEP_BYTES = 500_000
"""How many bytes of bodies are dropped or put in one step; a single body may have more."""
_PAGE = 1_000
_TRIES = 20


def headers(log: Reader, stream: str, after: int, until: int, *, backwards: bool = False) -> Iterator[list[Run]]:
    """Pages of a stream's runs that lie strictly between two positions, none of them cut; trimmed ones, too."""
    while rows := log.store.page(Scope(stream), after, until, _PAGE, backwards):
        runs = [Run(log, *row) for row in rows]
        low, high = after, until
        if backwards:
            until = runs[-1].position
        else:
            after = runs[-1].last
        found = [run for run in runs if run.position > low and run.last < high]
        if found:
            yield found
        if len(rows) < _PAGE:
            return


def sizes(log: Reader, runs: Sequence[Run]) -> dict[int, tuple[int, int]]:
    """How the bodies of runs are written and how many bytes they have in the log, by position."""
    infos = log.store.body_infos([run.body_ref for run in runs if run.body_ref is not None])
    found = {}
    for run in runs:
        info = infos.get(run.body_ref) if run.body_ref is not None else None
        if info is None:
            found[run.position] = (int(Encoding.JSON), len(run.body or ""))
        elif info.encoding in (Encoding.ARCHIVED, Encoding.TRIMMED):
            found[run.position] = (info.encoding, 0)
        else:
            # A merged body belongs to several runs: each has its share.
            found[run.position] = (info.encoding, info.size * run.count // max(info.rows, run.count))
    return found


def steps(found: Iterable[T], weigh: Callable[[T], int]) -> Iterator[list[T]]:
    """Things in groups that are small enough for one step each.

    Args:
        weigh: How many bytes of bodies one of them is about.
    """
    step: list[T] = []
    size = 0
    for each in found:
        weight = weigh(each)
        if step and (len(step) == LINKS or size + weight > STEP_BYTES):
            yield step
            step, size = [], 0
        step.append(each)
        size += weight
    if step:
        yield step


def offsets_of(runs: Sequence[Run]) -> list[int]:
    """Where each of some runs begins in a body that holds all of them."""
    return [0, *accumulate(run.count for run in runs)][:-1]


def relink(
    log: Log,
    encoding: Encoding,
    body: bytes,
    runs: Sequence[Run],
    offsets: Sequence[int],
    request: Callable[[list[Run]], Request | None],
    *,
    gone: Collection[int],
) -> list[Run]:
    """Point runs of a stream at a new body, in one transaction with the appends that tell of it.

    Args:
        body: The new body.
        offsets: For each run, the row of the new body that its first event is.
        request: The appends, given the runs that are moved.
        gone: Runs whose bodies have one of these encodings are left as they are.

    Returns:
        The runs that were moved; others did the same to the rest in the meantime.
    """
    left = list(zip(runs, offsets, strict=True))
    rows = sum(run.count for run in runs)
    for _ in range(_TRIES):
        if not left:
            return []
        links = [(run.position, run.body_ref, offset) for run, offset in left]
        if log.store.move_bodies(encoding, rows, body, links, request([run for run, _ in left])):
            return [run for run, _ in left]
        # Compaction, or another process that does the same, came first: look where the bodies are now.
        for run, _ in left:
            moved = log.store.find_body(run.position)
            if moved is not None:
                run.body, (run.body_ref, run.body_offset) = None, moved
        now = sizes(log, [run for run, _ in left])
        left = [(run, offset) for run, offset in left if now[run.position][0] not in gone]
    raise StorageError("bodies are being moved by another process again and again", hint="Try again later")
