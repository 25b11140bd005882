"""What windows give when very many keys close at once: in pieces, in the order that is promised.

State in lanes is ranges of hashes, and results go out in order of time and key. So each lane's results are sorted and
put aside, and what was put aside is merged: a few rows of each lane at a time, as in any external sort.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, runtime_checkable

import msgspec
import polars as pl

from .alerts import Alert
from .aside import Aside
from .columns import SEQUENCE, by_time_and_key
from .entering import Entering
from .shaping import Rowwise
from .state import Batch, OperatorState, Parts, concat

PIECE = 262_144
"""About so many rows are in a piece."""

BLOCK = 8_192
"""So many rows of each frame are read at a time: of all lanes together about a piece."""

_RUN, _BOUND = "__run", "__bound"


class Closing(msgspec.Struct, frozen=True, eq=False):
    """A step whose rows are too many for one frame."""

    results: Iterable[pl.DataFrame]
    """The rows in several frames, each in the order of all. They are computed when asked for."""
    state: Callable[[], OperatorState]
    """Gives the state afterwards, once all of the rows were asked for."""
    late: pl.DataFrame | None = None


@runtime_checkable
class Closes(Protocol):
    """An operator whose rows may be too many for one frame."""

    def closing(self, state: OperatorState, batch: Batch) -> Closing | None:
        """A step in pieces, where its rows are too many for one; else None."""
        ...


def take_pieces(stages: Iterable[object]) -> bool:
    """Whether stages may be given rows of one time in several batches; what gathers them gives few, and in one."""
    for stage in stages:
        if getattr(stage, "gathers", False):
            return True
        if not isinstance(stage, Rowwise | Alert | Entering | Closes):
            return False
    return True


def is_much(parts: Parts, end: int, column: str | None = None) -> bool:
    """Whether so much of a state runs out below an end that its rows should not be in memory together.

    Args:
        parts: The state.
        end: The end.
        column: By which its rows run out, where most of a part may run out long after the first of them.
    """
    asked = [part for part in parts.items if part.lane is not None and part.low < end]
    if sum(part.height for part in asked) < PIECE:
        return False
    return column is None or sum(part.below(column, end) for part in asked) >= PIECE


def in_order(results: Iterable[pl.DataFrame], put: Callable[[pl.DataFrame], Aside]) -> Iterator[pl.DataFrame]:
    """The rows of several frames, each in order of time and key, as pieces of one order, numbered through.

    Args:
        results: The frames. All are put aside before the first piece is given.
        put: Puts rows aside.
    """
    runs = [_cut(frame, put) for frame in results if frame.height]
    held = [pl.DataFrame() for _ in runs]
    number = 0
    while True:
        for run, rest in enumerate(runs):
            if rest and held[run].height < BLOCK:
                # With a block to spare, so that a piece ends far from where it began.
                more = rest.pop().frame
                held[run] = concat([held[run], more]) if held[run].height else more
        some = [_marked(rows, run, bool(rest)) for run, (rows, rest) in enumerate(zip(held, runs, strict=True))]
        some = [rows for rows in some if rows.height]
        if not some:
            return
        rows = by_time_and_key(concat(some))
        bounds = rows[_BOUND].arg_true()
        end = int(bounds[0]) + 1 if len(bounds) else rows.height
        held = [pl.DataFrame() for _ in runs]
        for (run,), later in rows[end:].partition_by(_RUN, as_dict=True, maintain_order=True).items():
            held[run] = later.drop(_RUN, _BOUND)
        place = pl.int_range(number, number + end, dtype=pl.Int64).alias(SEQUENCE)
        yield rows[:end].drop(_RUN, _BOUND).with_columns(place)
        number += end


def _marked(rows: pl.DataFrame, run: int, more: bool) -> pl.DataFrame:
    """What was read of a frame, with its number; beyond its last row, others may come of it if there are more."""
    last = pl.int_range(pl.len()) == pl.len() - 1
    return rows.with_columns(pl.lit(run).alias(_RUN), (last & pl.lit(more)).alias(_BOUND)) if rows.height else rows


def _cut(frame: pl.DataFrame, put: Callable[[pl.DataFrame], Aside]) -> list[Aside]:
    """A frame put aside in small pieces, the first of them last."""
    return [put(piece) for piece in frame.iter_slices(BLOCK)][::-1]
