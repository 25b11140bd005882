"""A pipeline that remembers what came into each operator and what came out, so that rows can be followed back."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence

import polars as pl

from .columns import AT, ENVELOPE, ID, IDLE, OTHER, SEQUENCE, ordered, visible
from .flow import Flow
from .merging import Merge
from .origins import MARK, MINE, Combining, parents_of
from .pipeline import Pipeline
from .revising import RevisingWindows
from .state import Batch, Operator, OperatorState, Step, widened
from .tree import Meeting, Source, order_of


class Tracer(Pipeline):
    """Every row has a number of its own. What lets rows through keeps it; what makes rows of others gives new ones.

    All rows are held in memory.
    """

    def __init__(self, flow: Flow) -> None:
        super().__init__(flow)
        self.envelope = ENVELOPE  # who is told of a row wants to know where it stands
        self._next = 0
        self._firsts: list[int] = []
        """The first number of each stretch of numbers, and who gave them: a source (less than zero) or an operator."""
        self._givers: list[int] = []
        self._came: dict[tuple[int, int], list[pl.DataFrame]] = defaultdict(list)
        """What came into each input of an operator."""
        self._left: dict[int, list[pl.DataFrame]] = defaultdict(list)
        """What each operator, or source, gave."""
        self.out: list[pl.DataFrame] = []
        """What came out at the end, in its order, with its numbers."""

    def origins(self, ids: Iterable[int]) -> dict[int, pl.DataFrame]:
        """The rows of each source that some rows were made of, in the order of the log."""
        found: dict[int, set[int]] = defaultdict(set)
        asked = set(ids)
        while asked:
            by_giver: dict[int, set[int]] = defaultdict(set)
            for each in asked:
                by_giver[self._givers[bisect_right(self._firsts, each) - 1]].add(each)
            asked = set()
            for giver, some in by_giver.items():
                if giver < 0:
                    found[~giver] |= some
                else:
                    asked |= self._parents(giver, some)
        rows = {}
        for number in sorted(found):
            given = _of(widened(self._left[~number]), found[number])
            rows[number] = given.select(name for name in given.columns if name in ENVELOPE or name in visible(given))
        return rows

    def _parents(self, number: int, ids: set[int]) -> set[int]:
        rows = _of(widened(self._left[number]), ids)
        operator = self.operators[number]
        count = len(operator.inputs) if hasattr(operator, "inputs") else 1
        came = [widened(self._came[number, each]) if self._came[number, each] else None for each in range(count)]
        return parents_of(operator, rows, came)

    def _numbered(self, giver: int, frame: pl.DataFrame) -> pl.DataFrame:
        """Rows with numbers that no others have."""
        numbered = frame.with_columns(pl.int_range(self._next, self._next + frame.height, dtype=pl.Int64).alias(ID))
        if frame.height:
            self._firsts.append(self._next)
            self._givers.append(giver)
            self._left[giver].append(numbered)
            self._next += frame.height
        return numbered

    # --- on the way -------------------------------------------------------------------------------------

    def _timed(self, source: Source, rows: pl.DataFrame, high: int) -> tuple[pl.DataFrame, int]:
        timed, after = super()._timed(source, rows, high)
        real = timed.filter(pl.col(IDLE).is_null()) if IDLE in timed.columns else timed
        about = rows.filter(pl.col(IDLE).is_null()) if IDLE in rows.columns else rows
        number = self.sources.index(source)
        kept = self._numbered(~number, about.with_columns(real[AT]))
        if real.height == timed.height:
            return timed.with_columns(kept[ID]), after
        marks = timed.filter(pl.col(IDLE).is_not_null()).with_columns(pl.lit(None, pl.Int64).alias(ID))
        both = pl.concat([real.with_columns(kept[ID]), marks]).sort("_position", maintain_order=True)
        return both, after

    def _take(self, number: int, stage: Operator, state: OperatorState, batch: Batch) -> Step:
        # What was held in a savepoint has no number.
        if batch.frame.height and ID in batch.frame.columns and isinstance(stage, Combining):
            came = batch.frame
            if isinstance(stage, RevisingWindows):
                assert batch.timeline is not None
                came = came.with_columns(pl.Series(MARK, batch.timeline.before_positions(came[SEQUENCE].to_numpy())))
            self._came[number, 0].append(came)
        step = super()._take(number, stage, state, batch)
        return self._made(number, step) if isinstance(stage, Combining) else step

    def _meet(self, number: int, meeting: Meeting, state: OperatorState, inputs: Sequence[Batch], joint: Batch) -> Step:
        step = super()._meet(number, meeting, state, inputs, joint)
        if isinstance(meeting, Merge):
            return step
        for each, batch in enumerate(inputs):
            if batch.frame.height and ID in batch.frame.columns:
                self._came[number, each].append(batch.frame)
        return self._made(number, step)

    def _made(self, number: int, step: Step) -> Step:
        frame = step.frame
        if not frame.width:
            return step
        if ID in frame.columns:
            frame = frame.rename({ID: MINE})
        frame = self._numbered(number, frame).drop(MINE, OTHER, strict=False)
        return Step(step.state, frame, step.late)

    def _published(self, frame: pl.DataFrame) -> pl.DataFrame:
        if frame.height:
            self.out.append(ordered(frame) if order_of(self.flow) == "settled" else frame)
        return super()._published(frame)


def _of(frame: pl.DataFrame, ids: set[int]) -> pl.DataFrame:
    return frame.filter(pl.col(ID).is_in(list(ids)))
