"""Alerts once a condition becomes true: of each key, the row that meets it after one that did not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import msgspec
import polars as pl

from .columns import AT, END_OF_TIME, SEQUENCE, key_column, names_of, ordered
from .errors import MissingColumn
from .expressions import apply
from .state import Batch, OperatorState, Parts, Step, concat

_HOT, _WAS = "__hot", "__was"


class EnteringState(msgspec.Struct, frozen=True, eq=False):
    """Whether the last row of each key met the condition; a key that is not there did not."""

    parts: Parts = Parts()


class Entering(msgspec.Struct, frozen=True, eq=False):
    """The operator of alerts ``on="enter"``."""

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

    def start(self) -> EnteringState:
        return EnteringState()

    def restore(self, parts: Parts, watermark: int) -> EnteringState:
        return EnteringState(parts)

    def step(self, state: OperatorState, batch: Batch) -> Step:
        parts, frame = state.parts, batch.frame
        if not (frame.height or batch.reshaped):
            return Step(state, frame)
        keys = [key_column(i) for i in range(self.keys)]
        if missing := [key for key in keys if key not in frame.columns]:
            raise MissingColumn(missing[0], "alert", frame.columns)
        hot = self.condition.fill_null(False).alias(_HOT)
        frame = apply("alert", frame.columns, lambda: frame.with_columns(hot)).sort([*keys, AT, SEQUENCE])
        if batch.reshaped:
            like = frame.select(*keys, AT, SEQUENCE, _HOT)
            return Step(EnteringState(parts.reshaped(like, lambda held: _last(held, keys))), frame.drop(_HOT))
        before = pl.col(_HOT).shift(1)
        frame = frame.with_columns((before.over(keys) if keys else before).alias(_WAS))
        if parts.items:
            known = _last(concat(part.frame for part in parts.items), keys).select(*keys, pl.col(_HOT).alias("__known"))
            if keys:
                frame = frame.join(known, on=keys, how="left", nulls_equal=True, maintain_order="left")
            else:
                frame = frame.with_columns(pl.lit(known["__known"].first(), pl.Boolean).alias("__known"))
            frame = frame.with_columns(pl.coalesce(_WAS, "__known").alias(_WAS)).drop("__known")
        new = _last(frame.select(*keys, AT, SEQUENCE, _HOT), keys)
        parts = parts.add(new, END_OF_TIME, END_OF_TIME).compact(lambda held: _last(held, keys))
        if len(parts.items) == 1:
            # Nothing older is hidden by those that do not meet it, so they may go.
            [only] = parts.items
            parts = Parts((msgspec.structs.replace(only, frame=only.frame.filter(_HOT)),), parts.next)
        entered = frame.filter(pl.col(_HOT) & ~pl.col(_WAS).fill_null(False)).drop(_HOT, _WAS)
        return Step(EnteringState(parts), ordered(entered))


def _last(rows: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    """Of each key, the last row."""
    rows = rows.sort(AT, SEQUENCE, maintain_order=True)
    return rows.unique(subset=list(keys), keep="last", maintain_order=True) if keys else rows.tail(1)
