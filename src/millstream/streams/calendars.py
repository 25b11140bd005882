"""Calendar windows: days, weeks, months as the clocks of a time zone show them, with 23 and 25 hours where they do."""

from __future__ import annotations

from typing import ClassVar

import msgspec
import polars as pl

from .aggregates import Aggregation, merge_partials, partials_of
from .columns import AT, need, utc
from .state import Batch, Kept, OperatorState, Order, Parts, Step, concat
from .windows import Calendar, results, split_late

_END = "__end"


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
        rows, late = split_late(batch.frame)
        if rows.height:
            added = self._partials(rows)
            parts = parts.add_by(added, _END).compact(self._merge, by=self.keys)
        ended = pl.col(_END) <= batch.after
        done = (frame.filter(ended) for frame in parts.pieces(self.keys, batch.after + 1))
        closed = [self._merge(frame) for frame in done if frame.height]
        parts = parts.expire(batch.after + 1, _END)
        return Step(Kept(parts), self._result(concat(closed)) if closed else pl.DataFrame(), late)

    def _partials(self, rows: pl.DataFrame) -> pl.DataFrame:
        need(self.keys, rows.columns, "group_by")
        local = utc(pl.col(AT)).dt.convert_time_zone(self.window.zone)
        end = local.dt.truncate(self.window.every).dt.offset_by(self.window.every)
        return partials_of(self.aggregation, rows.with_columns(end.dt.epoch("us").alias(_END)), [_END, *self.keys])

    def _merge(self, partials: pl.DataFrame) -> pl.DataFrame:
        return merge_partials(self.aggregation, partials, [_END, *self.keys])

    def _result(self, merged: pl.DataFrame) -> pl.DataFrame:
        end = pl.col(_END)
        local = utc(end - 1).dt.convert_time_zone(self.window.zone)
        start = local.dt.truncate(self.window.every).dt.epoch("us")
        return results(merged, self.keys, self.aggregation, start, end, end - 1)
