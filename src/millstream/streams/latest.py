"""The newest row of each key: a stream of changes as those that change a table."""

from __future__ import annotations

from typing import ClassVar

import msgspec
import polars as pl

from .columns import AT, key_column, ordered
from .keyed import beside, held_of, marked, newest, put
from .state import Batch, Kept, OperatorState, Parts, Step

_NEWEST = "__newest"


class Latest(msgspec.Struct, frozen=True, eq=False):
    """The operator of ``latest``. Kept is the time of the newest row of each key."""

    keys: tuple[str, ...]
    ordered: bool
    """Whether rows come in order of time, and so go on in that of time and key; else in that of the log."""

    keeps: ClassVar[bool] = True

    @property
    def reads(self) -> set[str]:
        """The columns that it reads."""
        return set(self.keys)

    @property
    def shape(self) -> str:
        return f"latest by {self.keys}"

    def start(self) -> Kept:
        return Kept()

    def restore(self, parts: Parts, watermark: int) -> Kept:
        return Kept(parts)

    def step(self, state: OperatorState, batch: Batch) -> Step:
        parts = state.parts
        if not (batch.frame.height or batch.reshaped):
            return Step(state, batch.frame)
        rows = marked(batch.frame, self.keys, "latest")
        keys = [key_column(i) for i in range(len(self.keys))]
        if batch.reshaped:
            like = rows.select(*keys, pl.col(AT).alias(_NEWEST))
            if parts.items:
                parts = parts.reshaped(like, lambda held: newest(held, keys))
            return Step(Kept(parts), rows)
        # What has no time is neither old nor new. What is late by the watermark may well be the newest of its key.
        late = rows.filter(pl.col(AT).is_null())
        rows = rows.filter(pl.col(AT).is_not_null())
        if self.ordered:
            rows = ordered(rows)
        rows = rows.with_columns(pl.col(AT).cum_max().shift(1).over(keys).alias(_NEWEST))
        known = held_of(parts, rows, keys)
        if known is not None:
            rows = beside(rows, known, keys, suffix="_known")
            rows = rows.with_columns(pl.max_horizontal(_NEWEST, _NEWEST + "_known").alias(_NEWEST))
            rows = rows.drop(_NEWEST + "_known")
        rows = rows.filter(pl.col(_NEWEST).is_null() | (pl.col(AT) >= pl.col(_NEWEST))).drop(_NEWEST)
        changed = newest(rows.select(*keys, pl.col(AT).alias(_NEWEST)), keys)
        return Step(Kept(put(parts, changed, keys, _NEWEST)), rows, late if late.height else None)
