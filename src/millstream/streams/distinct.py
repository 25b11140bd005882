"""Rows that are told once: the first of a key for a while, and the best of each window."""

from __future__ import annotations

from typing import ClassVar

import msgspec
import polars as pl

from .alerts import Alert
from .columns import AT, SEQUENCE, need
from .expressions import apply
from .history import Pending
from .keyed import marked
from .state import Batch, Kept, OperatorState, Order, Parts, Step, concat
from .windows import split_late


class DistinctState(msgspec.Struct, frozen=True, eq=False):
    """Rows that wait for the watermark, and when each key was seen last."""

    parts: Parts = Parts()
    waiting: Parts = Parts()
    seen: Kept = Kept()


class Distinct(msgspec.Struct, frozen=True, eq=False):
    """The operator of ``distinct``."""

    keys: tuple[str, ...]
    within: int

    order: ClassVar[Order] = "time"
    keeps: ClassVar[bool] = True

    @property
    def reads(self) -> set[str]:
        """The columns that it reads."""
        return set(self.keys)

    @property
    def shape(self) -> str:
        return f"distinct {self.keys} within {self.within}"

    @property
    def _bursts(self) -> Alert:
        # The first row of a burst of any rows is what is distinct.
        return Alert(pl.lit(True), self.within, len(self.keys))

    def start(self) -> DistinctState:
        return DistinctState()

    def restore(self, parts: Parts, watermark: int) -> DistinctState:
        waiting, seen = parts.apart(2)
        return self._state(waiting.expire(watermark, AT), self._bursts.restore(seen, watermark))

    def _state(self, waiting: Parts, seen: Kept) -> DistinctState:
        return DistinctState(Parts.side_by_side(waiting, seen.parts), waiting, seen)

    def step(self, state: OperatorState, batch: Batch) -> Step:
        assert isinstance(state, DistinctState)
        rows, late = split_late(batch.frame)
        if rows.height or batch.reshaped:
            rows = marked(rows, self.keys, "distinct")
        waiting, settled = settle(state.waiting, rows, batch)
        frame = rows if batch.reshaped else pl.DataFrame() if settled is None else settled
        inner = msgspec.structs.replace(batch, frame=frame)
        step = self._bursts.step(state.seen, inner)
        assert isinstance(step.state, Kept)
        return Step(self._state(waiting, step.state), step.frame, late)


def settle(waiting: Parts, rows: pl.DataFrame, batch: Batch) -> tuple[Parts, pl.DataFrame | None]:
    """What waits for the watermark, with more rows; and what the batch has settled (None when there is nothing)."""
    if batch.reshaped:
        return (waiting.reshaped(rows, lambda held: held) if waiting.items else waiting), None
    if rows.height:
        waiting = waiting.add_by(rows, AT).gather()
    pending = Pending()
    for part in waiting.items:
        # A part that has settled in part stays as it is in the store; its settled rows are cut here.
        if part.high >= batch.before:
            pending = pending.add(part.frame.filter(pl.col(AT) >= batch.before))
    settled, _ = pending.settle(batch.after)
    return waiting.expire(batch.after), settled


BEST = "__best"
"""What ``top`` has put rows of one time in order by, for those who put them together again."""


class TopState(msgspec.Struct, frozen=True, eq=False):
    """Nothing, but between pieces of one closing the best of those that came, and those that came since."""

    kept: pl.DataFrame | None = None
    since: tuple[pl.DataFrame, ...] = ()

    @property
    def parts(self) -> Parts:
        return Parts()

    @property
    def frames(self) -> list[pl.DataFrame]:
        """All that is held."""
        return [*([] if self.kept is None else [self.kept]), *self.since]


class Top(msgspec.Struct, frozen=True, eq=False):
    """The operator of ``top``. The results of a window come in one batch, or in pieces before time passes, so there is
    nothing to remember."""

    rows: int
    by: str
    descending: bool
    per: tuple[str, ...]

    order: ClassVar[Order] = "time"
    keeps: ClassVar[bool] = True
    gathers: ClassVar[bool] = True
    """Of rows that come in pieces it gives the best, once all are there."""

    @property
    def reads(self) -> set[str]:
        """The columns that it reads."""
        return {self.by, *self.per}

    @property
    def shape(self) -> str:
        return f"top {self.rows} by {self.by} per {self.per}"

    def start(self) -> TopState:
        return TopState()

    def restore(self, parts: Parts, watermark: int) -> TopState:
        return TopState()

    def step(self, state: OperatorState, batch: Batch) -> Step:
        assert isinstance(state, TopState)
        frame = batch.frame
        if frame.width:
            need((self.by, *self.per), frame.columns, "top")
        if batch.more:
            return Step(self._with(state, frame) if frame.height else state, pl.DataFrame())
        held = [*state.frames, *([frame] if frame.width else [])]
        if not held:
            return Step(state, frame)
        best = self._best(concat(held))
        place = pl.int_range(pl.len(), dtype=pl.Int64).alias(SEQUENCE)
        return Step(TopState(), best.with_columns(place, pl.col(self.by).alias(BEST)))

    def _with(self, state: TopState, frame: pl.DataFrame) -> TopState:
        """The state with more rows; now and then only the best of them."""
        state = TopState(state.kept, (*state.since, frame))
        known = 0 if state.kept is None else state.kept.height
        if sum(each.height for each in state.since) < known:
            return state
        return TopState(self._best(concat(state.frames)))

    def _best(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The best rows of each window, in their order."""

        def best() -> pl.DataFrame:
            placed = frame.sort(
                AT, self.by, SEQUENCE, descending=[False, self.descending, False], nulls_last=True, maintain_order=True
            )
            return placed.filter(pl.int_range(pl.len()).over(AT, *self.per) < self.rows)

        return apply("top", frame.columns, best)
