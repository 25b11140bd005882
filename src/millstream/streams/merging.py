"""Rows of several flows as one: in the order of the log where they still stand in it, else in order of time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
import polars as pl

from ..frames import Columns
from ..log.objects import fitted
from .columns import AT, LATE, SEQUENCE
from .history import Pending
from .state import Batch, OperatorState, Order, Parts, Step, Timeline, concat, widened

if TYPE_CHECKING:
    from .flow import Flow

_INPUT = "__input"


class MergeState(msgspec.Struct, frozen=True, eq=False):
    """Rows that wait for the watermark (none where rows stay in the order of the log), and all columns."""

    parts: Parts = Parts()
    pending: Pending = Pending()
    columns: Columns = {}


class Merge(msgspec.Struct, frozen=True, eq=False):
    """The operator of ``merge``."""

    inputs: tuple[Flow, ...]
    keys: int
    """How many hidden key columns the rows of all inputs carry alike."""
    timed: bool
    """Whether the rows of an input have left the order of the log."""

    @property
    def order(self) -> Order:
        return "time" if self.timed else "log"

    @property
    def shape(self) -> str:
        return "merge by time" if self.timed else "merge"

    @property
    def gives(self) -> tuple[str, ...]:
        return ()

    def heeds(self, number: int) -> bool:
        return True

    def reads(self, number: int) -> set[str]:
        return set()

    def whole(self, number: int) -> bool:
        return True

    def origin(self, name: str, number: int) -> str | None:
        return name

    def start(self) -> MergeState:
        return MergeState()

    def restore(self, parts: Parts, watermark: int) -> MergeState:
        parts = parts.expire(watermark, AT)
        pending = Pending()
        for part in parts.items:
            pending = pending.add(part.frame)
        return MergeState(parts, pending)

    def meet(self, state: OperatorState, batches: Sequence[Batch], joint: Batch) -> Step:
        assert isinstance(state, MergeState)
        frames = [self._numbered(number, batch.frame) for number, batch in enumerate(batches) if batch.frame.width]
        if joint.reshaped:
            return self._reshaped(state, widened(frames), joint)
        frames = [fitted(frame, state.columns) for frame in frames if frame.height]
        if not self.timed:
            if not frames:
                return Step(state, pl.DataFrame())
            rows = relate(concat(frames), joint.timeline)
            return Step(state, rows.sort(SEQUENCE, maintain_order=True).drop(_INPUT))
        parts, pending = state.parts, state.pending
        late = None
        if frames:
            # What the watermark of all has passed came in time only where an input had put it into order itself.
            rows = relate(concat(frames), joint.timeline, [n for n, b in enumerate(self.inputs) if b._ordered])
            if rows[LATE].any():
                late = rows.filter(LATE).drop(_INPUT)
                rows = rows.filter(~pl.col(LATE))
            pending = pending.add(rows)
            if rows.height:
                parts = parts.add(rows, pending.lows[-1], pending.highs[-1]).gather()
        settled, pending = pending.settle(joint.after)
        parts = parts.expire(joint.after)
        state = MergeState(parts, pending, state.columns)
        return Step(state, pl.DataFrame() if settled is None else self._put(settled), late)

    def _put(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Settled rows in order: by time, then input, then as they stood there."""
        rows = rows.sort(AT, _INPUT, SEQUENCE, maintain_order=True).drop(_INPUT)
        return rows.with_columns(pl.int_range(pl.len(), dtype=pl.Int64).alias(SEQUENCE))

    def _numbered(self, number: int, frame: pl.DataFrame) -> pl.DataFrame:
        keys = [name for name in frame.columns if name.startswith("__key") and int(name[5:]) >= self.keys]
        return frame.drop(keys).with_columns(pl.lit(number, pl.Int32).alias(_INPUT))

    def _reshaped(self, state: MergeState, like: pl.DataFrame, joint: Batch) -> Step:
        columns = dict(like.schema)
        parts = state.parts.reshaped(like, lambda held: held) if state.parts.items else state.parts
        if parts is not state.parts:
            state = self.restore(parts, joint.before)
        state = msgspec.structs.replace(state, columns=columns)
        return Step(state, like.drop(_INPUT))


def relate(rows: pl.DataFrame, timeline: Timeline | None, ordered: Sequence[int] = ()) -> pl.DataFrame:
    """The rows with whether they are late by a watermark of several sources; never those of ``ordered`` inputs."""
    assert timeline is not None
    reached = pl.Series("__reached", timeline.before_positions(rows[SEQUENCE].to_numpy()))
    late = pl.col(AT).is_null() | (pl.col(AT) < pl.col("__reached"))
    if ordered:
        late = late & ~pl.col(_INPUT).is_in(list(ordered))
    return rows.with_columns(reached).with_columns(late.alias(LATE)).drop("__reached")
