"""Alerts: the rows that meet a condition, once per burst and key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import msgspec
import polars as pl

from .columns import AT, SEQUENCE, key_column, names_of, need, ordered
from .expressions import apply
from .keyed import among, begins, beside
from .state import Batch, Kept, OperatorState, Parts, Step, concat

_LAST = "__last"
_FEW = 1_024


class Alert(msgspec.Struct, frozen=True, eq=False):
    """The operator of alerts.

    A burst of a key is a stretch of rows that meet the condition, each less than ``cooldown`` of event time
    after the one before. The first row of a burst is the alert; the condition has to stay unmet for
    ``cooldown`` before there is another. With a cooldown of zero every row that meets it is one. Kept is when the
    condition last held, for each key for which that was less than a cooldown ago.
    """

    condition: pl.Expr
    cooldown: int
    keys: int
    """How many hidden key columns the rows carry."""

    keeps: ClassVar[bool] = True
    """Its rows are rows that it was given."""

    @property
    def reads(self) -> set[str]:
        """The columns that it reads."""
        return names_of([self.condition])

    @property
    def shape(self) -> str:
        return f"alert cooldown {self.cooldown} by {self.keys}"

    def start(self) -> Kept:
        return Kept()

    def restore(self, parts: Parts, watermark: int) -> Kept:
        return Kept(parts.expire(self._limit(watermark)))

    def _limit(self, watermark: int) -> int:
        # Rows to come are not before the watermark, so older meetings are a cooldown away from all of them.
        return watermark - self.cooldown + 1

    def step(self, state: OperatorState, batch: Batch) -> Step:
        parts = state.parts
        frame = batch.frame
        if frame.height or batch.reshaped:
            frame = apply("alert", frame.columns, lambda: frame.filter(self.condition))
        if batch.reshaped:
            keys = [key_column(i) for i in range(self.keys)]
            like = frame.select(*keys, pl.col(AT).alias(_LAST))
            return Step(Kept(parts.reshaped(like, lambda held: self._merge(held, keys))), frame)
        if frame.height and self.cooldown:
            keys = [key_column(i) for i in range(self.keys)]
            frame, parts = self._bursts(parts, frame, keys, batch.before)
        return Step(Kept(parts.expire(self._limit(batch.after))), frame)

    def _bursts(self, parts: Parts, hot: pl.DataFrame, keys: Sequence[str], before: int) -> tuple[pl.DataFrame, Parts]:
        need(keys, hot.columns, "alert")
        if hot.height == 1:
            hot = hot.hstack([pl.Series(_LAST, [None], pl.Int64)])
        else:
            hot = hot.sort([*keys, AT, SEQUENCE], maintain_order=True)
            hot = hot.with_columns(pl.when(~begins(keys)).then(pl.col(AT).shift(1)).alias(_LAST))
        if parts.items:
            # To look for the keys of these rows alone is worth it only among many.
            few = all(part.lane is None for part in parts.items) and parts.rows <= _FEW
            held = [part.frame for part in parts.items] if few else among(parts, hot, keys)
            known = self._merge(concat(held), keys)
            if keys:
                hot = beside(hot, known, keys, suffix="_known")
            else:
                hot = hot.join(known, how="cross", suffix="_known", maintain_order="left")
            hot = hot.with_columns(pl.coalesce(_LAST, _LAST + "_known").alias(_LAST)).drop(_LAST + "_known")
        new = self._merge(hot.select(*keys, pl.col(AT).alias(_LAST)), keys)
        # What ran out before these rows goes when parts are merged, so that keys that came and went do not add up.
        alive = pl.col(_LAST) >= self._limit(before)
        parts = parts.add_by(new, _LAST).compact(lambda frame: self._merge(frame.filter(alive), keys), by=keys)
        anew = pl.col(_LAST).is_null() | (pl.col(AT) - pl.col(_LAST) >= self.cooldown)
        return ordered(hot.filter(anew).drop(_LAST)), parts

    def _merge(self, frame: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
        if not keys:
            return frame.select(pl.col(_LAST).max())
        return frame.group_by(list(keys)).agg(pl.col(_LAST).max())
