"""Session windows: stretches of a key's rows, each less than a gap after the one before.

What is held is a row for each piece of a session that came in one batch; pieces less than a gap apart are one
session, whenever they are merged. A session closes when the watermark is a gap past its last row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import msgspec
import polars as pl

from .aggregates import Aggregation, merge_partials, partials_of
from .closing import Closing, is_much
from .columns import AT, need
from .keyed import among, begins
from .keys import unsigned
from .state import Batch, Kept, OperatorState, Order, Parts, Step, concat
from .windows import Session, results, split_late

_START, _LAST, _NUMBER = "__start", "__last", "__session"


class SessionWindows(msgspec.Struct, frozen=True, eq=False):
    """The operator of session windows. Kept are the pieces of sessions that have not closed."""

    window: Session
    keys: tuple[str, ...]
    aggregation: Aggregation

    order: ClassVar[Order] = "time"

    @property
    def reads(self) -> set[str]:
        """The columns that it reads."""
        return {*self.keys, *self.aggregation.reads}

    @property
    def shape(self) -> str:
        return f"session {self.window.gap} by {self.keys} of {self.aggregation.shape}"

    def start(self) -> Kept:
        return Kept()

    def restore(self, parts: Parts, watermark: int) -> Kept:
        return Kept(parts.expire(self._limit(watermark), _LAST))

    def _limit(self, watermark: int) -> int:
        """The least last row of a session that is still open."""
        return watermark - self.window.gap + 1

    def step(self, state: OperatorState, batch: Batch) -> Step:
        parts = state.parts
        if batch.reshaped:
            like = self._pieces(batch.frame)
            return Step(Kept(parts.reshaped(like, self._merge)), self._result(like))
        parts, late = self._with(parts, batch)
        closed, parts = self._close(parts, self._limit(batch.after))
        return Step(Kept(parts), closed, late)

    def closing(self, state: OperatorState, batch: Batch) -> Closing | None:
        """The same, when what closes is too much for one frame."""
        limit = self._limit(batch.after)
        if batch.reshaped or not is_much(state.parts, limit, _LAST):
            return None
        parts, late = self._with(state.parts, batch)
        left = []

        def results() -> Iterator[pl.DataFrame]:
            for lane in parts.in_lanes(self.keys).values():
                closed, lane = self._close(lane, limit)
                left.append(lane)
                yield closed

        return Closing(results(), lambda: Kept(parts.joined(left, self.keys)), late)

    def _with(self, parts: Parts, batch: Batch) -> tuple[Parts, pl.DataFrame | None]:
        """The state with the rows of a batch, and those that came late."""
        rows, late = split_late(batch.frame)
        if rows.height:
            parts = parts.add_by(self._pieces(rows), _LAST).compact(self._merge, by=self.keys)
        return parts, late

    def _close(self, parts: Parts, limit: int) -> tuple[pl.DataFrame, Parts]:
        """The results of the sessions whose last row is below a limit, and the state without them."""
        done = [part.frame.filter(pl.col(_LAST) < limit) for part in parts.items if part.low < limit]
        if not any(frame.height for frame in done):
            return pl.DataFrame(), parts.expire(limit, _LAST)
        held = concat(among(parts, concat(done), self.keys))
        spans = self._numbered(held).with_columns(
            pl.col(_START).min().over(_NUMBER), pl.col(_LAST).max().over(_NUMBER).alias("__end")
        )
        closed = spans.filter(pl.col("__end") < limit)
        # Old pieces of a session that goes on take its last row's time for their own, and so go on with it.
        lasting = spans.filter((pl.col("__end") >= limit) & (pl.col(_LAST) < limit))
        parts = parts.expire(limit, _LAST)
        if lasting.height:
            kept = lasting.with_columns(pl.col("__end").alias(_LAST)).drop("__end", _NUMBER)
            parts = parts.add_by(self._merge(kept), _LAST).compact(self._merge, by=self.keys)
        return self._result(self._merge(closed.drop("__end", _NUMBER))), parts

    def _pieces(self, rows: pl.DataFrame) -> pl.DataFrame:
        need(self.keys, rows.columns, "group_by")
        rows = unsigned(rows, self.keys)
        numbered = self._numbered(rows.with_columns(pl.col(AT).alias(_START), pl.col(AT).alias(_LAST)))
        partials = partials_of(self.aggregation, numbered, [_NUMBER, *self.keys])
        spans = numbered.group_by(_NUMBER).agg(pl.col(_START).min(), pl.col(_LAST).max())
        return partials.join(spans, on=_NUMBER, maintain_order="left").drop(_NUMBER)

    def _merge(self, pieces: pl.DataFrame) -> pl.DataFrame:
        numbered = self._numbered(pieces)
        merged = merge_partials(self.aggregation, numbered, [_NUMBER, *self.keys])
        spans = numbered.group_by(_NUMBER).agg(pl.col(_START).min(), pl.col(_LAST).max())
        return merged.join(spans, on=_NUMBER, maintain_order="left").select(pieces.columns)

    def _numbered(self, pieces: pl.DataFrame) -> pl.DataFrame:
        """Pieces with the number of their session."""
        pieces = pieces.sort(*self.keys, _START, maintain_order=True)
        first = begins(self.keys) if self.keys else pl.int_range(pl.len()) == 0
        reached = pl.col(_LAST).shift(1)
        if not pieces.select((first | (pl.col(_LAST) >= reached)).all()).item():
            # A piece lies within an earlier one, which is seldom: to go key by key takes several times as long.
            reached = pl.col(_LAST).cum_max().shift(1)
            reached = reached.over(self.keys) if self.keys else reached
        new = (first | (pl.col(_START) - reached >= self.window.gap)).fill_null(True)
        return pieces.with_columns(new.cum_sum().cast(pl.Int64).alias(_NUMBER))

    def _result(self, merged: pl.DataFrame) -> pl.DataFrame:
        end = pl.col(_LAST) + self.window.gap
        return results(merged, self.keys, self.aggregation, pl.col(_START), end, end - 1)
