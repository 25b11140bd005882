"""Alerts once a condition becomes true: of each key, the row that meets it after one that did not."""

from __future__ import annotations

from typing import ClassVar

import msgspec
import polars as pl

from .columns import AT, END_OF_TIME, SEQUENCE, key_column, names_of, need, ordered
from .expressions import apply
from .keyed import beside, held_of, newest
from .state import Batch, Kept, OperatorState, Parts, Step

_HOT, _WAS = "__hot", "__was"


class Entering(msgspec.Struct, frozen=True, eq=False):
    """The operator of alerts ``on="enter"``. Kept is whether the last row of each key met the condition; that of a key
    which is not there did not."""

    condition: pl.Expr
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
        return f"alert on entering by {self.keys}"

    def start(self) -> Kept:
        return Kept()

    def restore(self, parts: Parts, watermark: int) -> Kept:
        return Kept(parts)

    def step(self, state: OperatorState, batch: Batch) -> Step:
        parts, frame = state.parts, batch.frame
        if not (frame.height or batch.reshaped):
            return Step(state, frame)
        keys = [key_column(i) for i in range(self.keys)]
        need(keys, frame.columns, "alert")
        hot = self.condition.fill_null(False).alias(_HOT)
        frame = apply("alert", frame.columns, lambda: frame.with_columns(hot)).sort([*keys, AT, SEQUENCE])
        if batch.reshaped:
            parts = parts.reshaped(frame.select(*keys, _HOT), lambda held: newest(held, keys))
            return Step(Kept(parts), frame.drop(_HOT))
        before = pl.col(_HOT).shift(1)
        frame = frame.with_columns((before.over(keys) if keys else before).alias(_WAS))
        known = held_of(parts, frame, keys)
        if known is not None:
            known = known.rename({_HOT: "__known"})
            if keys:
                frame = beside(frame, known, keys)
            else:
                frame = frame.with_columns(pl.lit(known["__known"].first(), pl.Boolean).alias("__known"))
            frame = frame.with_columns(pl.coalesce(_WAS, "__known").alias(_WAS)).drop("__known")
        parts = parts.add(newest(frame.select(*keys, _HOT), keys), END_OF_TIME, END_OF_TIME)
        # Those that do not meet it only hide what is older.
        parts = parts.compact(lambda held: newest(held, keys), by=keys, oldest=lambda held: held.filter(_HOT))
        entered = frame.filter(pl.col(_HOT) & ~pl.col(_WAS).fill_null(False)).drop(_HOT, _WAS)
        return Step(Kept(parts), ordered(entered))
