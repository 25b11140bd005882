"""Count windows: so many rows of a key, in order of time, side by side."""

from __future__ import annotations

from typing import ClassVar

import msgspec
import polars as pl

from .aggregates import Aggregation, merge_partials, partials_of
from .columns import AT, SEQUENCE, need
from .history import Pending
from .keyed import beside, held_of, newest, put
from .keys import unsigned
from .state import Batch, OperatorState, Order, Parts, Step, concat
from .windows import Count, results, split_late

_NUMBER, _HELD, _START, _LAST = "__number", "__held", "__start", "__last"


class CountState(msgspec.Struct, frozen=True, eq=False):
    """Rows that wait for the watermark, and the open window of each key."""

    parts: Parts
    waiting: Parts = Parts()
    pending: Pending = Pending()
    open: Parts = Parts()


class CountWindows(msgspec.Struct, frozen=True, eq=False):
    """The operator of count windows."""

    window: Count
    keys: tuple[str, ...]
    aggregation: Aggregation

    order: ClassVar[Order] = "time"

    @property
    def reads(self) -> set[str]:
        """The columns that it reads."""
        return {*self.keys, *self.aggregation.reads}

    @property
    def shape(self) -> str:
        return f"count {self.window.rows} by {self.keys} of {self.aggregation.shape}"

    def start(self) -> CountState:
        return CountState(Parts())

    def restore(self, parts: Parts, watermark: int) -> CountState:
        waiting, windows = parts.apart(2)
        waiting = waiting.expire(watermark, AT)
        pending = Pending()
        for part in waiting.items:
            pending = pending.add(part.frame)
        return self._state(waiting, pending, windows)

    def _state(self, waiting: Parts, pending: Pending, windows: Parts) -> CountState:
        return CountState(Parts.side_by_side(waiting, windows), waiting, pending, windows)

    def step(self, state: OperatorState, batch: Batch) -> Step:
        assert isinstance(state, CountState)
        if batch.reshaped:
            return self._reshaped(state, batch)
        waiting, pending, windows = state.waiting, state.pending, state.open
        rows, late = split_late(batch.frame)
        if rows.height:
            self._check(rows)
            pending = pending.add(rows)
            waiting = waiting.add(rows, pending.lows[-1], pending.highs[-1]).gather()
        settled, pending = pending.settle(batch.after)
        waiting = waiting.expire(batch.after)
        frame = pl.DataFrame()
        if settled is not None:
            pieces = self._pieces(settled, held_of(windows, settled, self.keys))
            full = pieces.filter(pl.col(_HELD) == self.window.rows)
            if full.height:
                frame = self._result(full.sort(_NUMBER))
            # The last window of each key, also where it is full: the next one begins with nothing.
            last = newest(pieces.sort(_NUMBER), self.keys).with_columns(pl.lit(0, pl.Int64).alias(_NUMBER))
            windows = put(windows, last, self.keys, _LAST)
        return Step(self._state(waiting, pending, windows), frame, late)

    def _reshaped(self, state: CountState, batch: Batch) -> Step:
        self._check(batch.frame)
        like = self._pieces(batch.frame, None)
        waiting = state.waiting.reshaped(batch.frame, lambda held: held)
        pending = state.pending
        if waiting is not state.waiting:
            pending = Pending()
            for part in waiting.items:
                pending = pending.add(part.frame)
            pending = pending.settle(batch.before)[1]
        windows = state.open.reshaped(like, lambda frame: newest(frame, self.keys))
        return Step(self._state(waiting, pending, windows), self._result(like))

    def _check(self, rows: pl.DataFrame) -> None:
        need(self.keys, rows.columns, "group_by")

    def _pieces(self, rows: pl.DataFrame, held: pl.DataFrame | None) -> pl.DataFrame:
        """The windows that settled rows are in, with what their keys' open ones held."""
        rows, keys = unsigned(rows, self.keys), list(self.keys)
        rows = rows.sort(AT, SEQUENCE, maintain_order=True)
        rank = pl.int_range(pl.len(), dtype=pl.Int64)
        rows = rows.with_columns((rank.over(keys) if keys else rank).alias(_NUMBER))
        before: pl.Expr = pl.lit(0, pl.Int64)
        if held is not None and held.height:
            held = held.filter(pl.col(_HELD) < self.window.rows)
            counts = held.select(*keys, pl.col(_HELD))
            rows = (
                beside(rows, counts, keys)
                if keys
                else rows.join(counts, how="cross")
                if counts.height
                else rows.with_columns(pl.lit(0, pl.Int64).alias(_HELD))
            )
            before = pl.col(_HELD).fill_null(0)
        rows = rows.with_columns(((before + pl.col(_NUMBER)) // self.window.rows).alias(_NUMBER))
        by = [_NUMBER, *keys]
        spans = rows.group_by(by).agg(
            pl.len().cast(pl.Int64).alias(_HELD), pl.col(AT).min().alias(_START), pl.col(AT).max().alias(_LAST)
        )
        partials = partials_of(self.aggregation, rows, by)
        pieces = partials.join(spans, on=by, nulls_equal=True, maintain_order="left")
        if held is None or not held.height:
            return pieces
        both = concat([held.select(pieces.columns), pieces])
        spans = both.group_by(by).agg(pl.col(_HELD).sum(), pl.col(_START).min(), pl.col(_LAST).max())
        merged = merge_partials(self.aggregation, both, by)
        return merged.join(spans, on=by, nulls_equal=True, maintain_order="left").select(pieces.columns)

    def _result(self, full: pl.DataFrame) -> pl.DataFrame:
        return results(full, self.keys, self.aggregation, pl.col(_START), pl.col(_LAST), pl.col(_LAST))
