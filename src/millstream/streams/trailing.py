"""Sliding windows: for each row, an exact answer over the span of time that ends with it.

Rows are answered once the watermark has passed their time, in the order of their time; until then an earlier
row, or one of the same time, could still come. So the answers do not depend on the order of arrival (within
the lateness), and are final.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec
import numpy as np
import polars as pl

from .aggregates import Aggregation, Partial
from .columns import AT, LATE, hidden, key_column, need, utc, visible
from .errors import UnsupportedExpression
from .expressions import apply, is_rowwise
from .history import Index, Pending, Sorted, stretches
from .keys import Ints, KeyIds
from .state import Batch, OperatorState, Order, Parts, Step, concat
from .windows import Sliding, split_late


class SlidingState(msgspec.Struct, frozen=True, eq=False):
    """Rows that wait for the watermark, and an index over those of the last span.

    The parts are the rows as they came in, waiting or settled, and are all that is kept: the rest follows.
    """

    parts: Parts
    pending: Pending
    index: Index


class SlidingWindows(msgspec.Struct, frozen=True, eq=False):
    """The operator of sliding windows."""

    window: Sliding
    keys: tuple[str, ...]
    aggregation: Aggregation

    order: ClassVar[Order] = "settled"

    @property
    def reads(self) -> set[str]:
        """The columns that it reads."""
        return {*self.keys, *self.aggregation.reads}

    @property
    def shape(self) -> str:
        return f"sliding {self.window.size} {self.window.closed} by {self.keys} of {self.aggregation.shape}"

    def start(self) -> SlidingState:
        return SlidingState(Parts(), Pending(), Index(KeyIds(self.keys)))

    def restore(self, parts: Parts, watermark: int) -> SlidingState:
        parts = parts.expire(watermark - self.window.size, AT)
        state = self.start()
        if not parts.items:
            return msgspec.structs.replace(state, parts=parts)
        settled, pending = Pending().add(concat(part.frame for part in parts.items)).settle(watermark)
        index = state.index
        if settled is not None:
            for piece in stretches(settled, self.window.size):
                index, _ = self._answer(index, piece)
        return SlidingState(parts, pending, index)

    def step(self, state: OperatorState, batch: Batch) -> Step:
        assert isinstance(state, SlidingState)
        parts, index = state.parts, state.index
        if batch.reshaped:
            return self._reshaped(state, batch)
        rows, late = split_late(batch.frame)
        pending = state.pending
        if rows.height:
            need(self.keys, rows.columns, "group_by")
            pending = pending.add(rows)
            parts = parts.add(rows, pending.lows[-1], pending.highs[-1]).compact(lambda frame: frame)
        settled, pending = pending.settle(batch.after)
        answers = []
        if settled is not None:
            for piece in stretches(settled, self.window.size):
                index, answer = self._answer(index, piece)
                answers.append(answer)
        parts = parts.expire(batch.after - self.window.size)
        return Step(SlidingState(parts, pending, index), concat(answers) if answers else pl.DataFrame(), late)

    def _reshaped(self, state: SlidingState, batch: Batch) -> Step:
        rows = batch.frame
        need(self.keys, rows.columns, "group_by")
        self._values(rows)
        nothing = self._finish(rows, [np.zeros(0, np.int64) for _ in self.aggregation.partials])
        parts = state.parts.reshaped(rows, lambda held: held)
        if parts is state.parts:
            return Step(state, nothing)
        return Step(self.restore(parts, batch.before), nothing)

    # --- answers --------------------------------------------------------------------------------------

    def _answer(self, index: Index, rows: pl.DataFrame) -> tuple[Index, pl.DataFrame]:
        """The answers to rows that are later than all in the index, and the index with them."""
        size = self.window.size
        at = rows[AT].to_numpy()
        limit = int(at.min()) - size
        index = index.fit(rows, limit)
        ids = index.ids.encode(rows)
        packed = index.pack(ids, at)
        # Rows of one key and time have one answer, so their order is free.
        order = pl.Series(packed).arg_sort().to_numpy()
        packed = packed[order]
        sums = self._values(rows)
        beside = tuple(values[order] for values in sums)
        index = index.add(Sorted(packed, beside, int(at.max())), limit)
        if beside:
            runs = tuple(run if run.sums else run.summed() for run in index.runs)
            index = msgspec.structs.replace(index, runs=runs)
        # The searches are asked in ascending order, which keeps the run's pages in the cache.
        low = (ids[order] << index.bits) | np.maximum(at[order] - size - index.base, 0)
        return index, self._finish(rows, self._spans(index, low, packed, order))

    def _spans(self, index: Index, low: Ints, high: Ints, order: Ints) -> list[Ints]:
        """For each row, how many rows and what sums stand between two packed numbers."""
        totals = [np.zeros(len(low), np.int64) for _ in range(len(self.aggregation.partials))]
        side = "left" if self.window.closed == "both" else "right"
        for run in index.runs:
            begins = run.packed.searchsorted(low, side=side)  # type: ignore[call-overload]
            ends = run.packed.searchsorted(high, side="right")
            sums = iter(run.sums)
            for total, partial in zip(totals, self.aggregation.partials, strict=True):
                if partial.value is None:
                    total += ends - begins
                else:
                    running = next(sums)
                    total += running[ends] - running[begins]
        answers = []
        for total in totals:
            answer = np.empty_like(total)
            answer[order] = total
            answers.append(answer)
        return answers

    def _values(self, rows: pl.DataFrame) -> list[Ints]:
        """What each row adds to each partial, but for those that count rows."""
        partials = [partial for partial in self.aggregation.partials if partial.value is not None]
        if not partials:
            return []
        schema = rows.schema
        frame = apply("agg", rows.columns, lambda: rows.select(_value(p, schema) for p in partials))
        return [frame[partial.name].to_numpy() for partial in partials]

    def _finish(self, rows: pl.DataFrame, totals: list[Ints]) -> pl.DataFrame:
        partials = [
            pl.Series(partial.name, total) for partial, total in zip(self.aggregation.partials, totals, strict=True)
        ]
        others = [name for name in visible(rows) if name not in self.keys]
        return rows.with_columns(*partials).select(
            *self.keys,
            utc(pl.col(AT) - self.window.size).alias("window_start"),
            utc(pl.col(AT)).alias("window_end"),
            *others,
            *self.aggregation.finals,
            *(name for name in hidden(rows) if not name.startswith("__key") and name != LATE),
            pl.lit(False).alias(LATE),
            *(pl.col(key).alias(key_column(i)) for i, key in enumerate(self.keys)),
        )


def check_sliding(aggregation: Aggregation) -> None:
    """Refuse aggregates that a sliding window cannot answer.

    Raises:
        UnsupportedExpression: It is not a count, or a sum or mean of integers or booleans.
    """
    for partial in aggregation.partials:
        if partial.kind not in ("len", "count", "sum") or (partial.value is not None and not is_rowwise(partial.value)):
            raise UnsupportedExpression(
                f"{partial.kind}({partial.value})",
                "a sliding window",
                "only counts, sums and means of each row's integers are answered over a sliding span",
                hint="Use len, count, sum or mean; write a filtered sum as (condition).sum()",
            )


def _value(partial: Partial, schema: pl.Schema) -> pl.Expr:
    assert partial.value is not None
    if partial.kind == "count":
        return partial.value.is_not_null().cast(pl.Int64).alias(partial.name)
    if partial.kind == "len":
        return pl.lit(1, pl.Int64).alias(partial.name)
    dtype = partial.sum_type(schema)
    if dtype != pl.Int64:
        raise UnsupportedExpression(
            f"{partial.value}.sum()",
            "a sliding window",
            f"a sum of {dtype} is not answered over a sliding span",
            hint="Cast the column to an integer, such as cents",
        )
    return partial.value.cast(pl.Int64).fill_null(0).alias(partial.name)
