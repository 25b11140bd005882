"""Calendar windows: days, weeks, months as the clocks of a time zone show them, with 23 and 25 hours where they do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import msgspec
import polars as pl

from .aggregates import Aggregation, merge_partials, partials_of
from .clocks import bounds
from .closing import Closing, is_much
from .columns import AT, need
from .keys import unsigned
from .state import Batch, Kept, OperatorState, Order, Parts, Step, concat
from .windows import Calendar, results, split_late

_START, _END = "__start", "__end"


class CalendarWindows(msgspec.Struct, frozen=True, eq=False):
    """The operator of calendar windows. A window is known by its end; kept are partials per window and key."""

    window: Calendar
    keys: tuple[str, ...]
    aggregation: Aggregation

    order: ClassVar[Order] = "time"

    @property
    def reads(self) -> set[str]:
        """The columns that it reads."""
        return {*self.keys, *self.aggregation.reads}

    @property
    def shape(self) -> str:
        return f"calendar {self.window.every} {self.window.zone} by {self.keys} of {self.aggregation.shape}"

    def start(self) -> Kept:
        return Kept()

    def restore(self, parts: Parts, watermark: int) -> Kept:
        return Kept(parts.expire(watermark + 1, _END))

    def step(self, state: OperatorState, batch: Batch) -> Step:
        parts = state.parts
        if batch.reshaped:
            like = self._partials(batch.frame)
            return Step(Kept(parts.reshaped(like, self._merge)), self._result(like))
        parts, late = self._with(parts, batch)
        closed = list(self._closed(parts, batch.after))
        parts = parts.expire(batch.after + 1, _END)
        return Step(Kept(parts), self._result(concat(closed)) if closed else pl.DataFrame(), late)

    def closing(self, state: OperatorState, batch: Batch) -> Closing | None:
        """The same, when what closes is too much for one frame."""
        if batch.reshaped or not is_much(state.parts, batch.after + 1):
            return None
        parts, late = self._with(state.parts, batch)
        results = map(self._result, self._closed(parts, batch.after))
        return Closing(results, lambda: Kept(parts.expire(batch.after + 1, _END)), late)

    def _with(self, parts: Parts, batch: Batch) -> tuple[Parts, pl.DataFrame | None]:
        """The state with the rows of a batch, and those that came late."""
        rows, late = split_late(batch.frame)
        if rows.height:
            parts = parts.add_by(self._partials(rows), _END).compact(self._merge, by=self.keys)
        return parts, late

    def _closed(self, parts: Parts, after: int) -> Iterator[pl.DataFrame]:
        """The partials of the windows that have ended, in several frames, each with all of its keys."""
        ended = pl.col(_END) <= after
        done = (frame.filter(ended) for frame in parts.pieces(self.keys, after + 1))
        return (self._merge(frame) for frame in done if frame.height)

    def _partials(self, rows: pl.DataFrame) -> pl.DataFrame:
        need(self.keys, rows.columns, "group_by")
        rows = unsigned(rows, self.keys)
        _, ends = bounds(rows[AT], self.window.every, self.window.zone)
        rows = rows.with_columns(pl.Series(_END, ends, pl.Int64))
        return partials_of(self.aggregation, rows, [_END, *self.keys])

    def _merge(self, partials: pl.DataFrame) -> pl.DataFrame:
        return merge_partials(self.aggregation, partials, [_END, *self.keys])

    def _result(self, merged: pl.DataFrame) -> pl.DataFrame:
        end = pl.col(_END)
        starts, _ = bounds(merged[_END] - 1, self.window.every, self.window.zone)
        merged = merged.with_columns(pl.Series(_START, starts, pl.Int64))
        return results(merged, self.keys, self.aggregation, pl.col(_START), end, end - 1)
