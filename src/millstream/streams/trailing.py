"""Sliding windows: for each row, an exact answer over the span of time that ends with it.

Rows are answered once the watermark has passed their time, in the order of their time; until then an earlier
row, or one of the same time, could still come. So the answers do not depend on the order of arrival (within
the lateness), and are final.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import msgspec
import numpy as np
import polars as pl

from .aggregates import Aggregation
from .balances import Balances
from .columns import AT, LATE, SEQUENCE, UTC, hidden, key_column, need, order_of, picked, times_of, visible
from .compiled import worth_it
from .errors import FlowError
from .expressions import apply
from .history import Index, Pending, Sorted, stretches
from .keys import Ints, KeyIds
from .spans import Answer, Track, answers, laid_out
from .state import Batch, OperatorState, Order, Parts, Step, concat
from .windows import Sliding, split_late

_RESTORED = 1 << 17
"""Rows that are taken in at once when a state is taken up again."""

Behind = Balances | Index
"""What answers questions about the settled rows of the last span: balances where all that is asked can be taken from
one another, as numbers of rows can; else an index."""


class How(msgspec.Struct, frozen=True, eq=False):
    """How rows of some columns are answered; with None, from the rows themselves."""

    schema: pl.Schema
    answers: Sequence[Answer] | None


class SlidingState(msgspec.Struct, frozen=True, eq=False):
    """Rows that wait for the watermark, and what answers questions about those of the last span.

    The parts are the rows as they came in, waiting or settled, and are all that is kept: the rest follows.
    """

    parts: Parts
    pending: Pending
    behind: Behind
    how: How | None = None

    @property
    def beside(self) -> int:
        """How many bytes the answering takes."""
        return self.behind.nbytes


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
        return SlidingState(Parts(), Pending(), Balances(KeyIds(self.keys)))

    def restore(self, parts: Parts, watermark: int) -> SlidingState:
        parts = parts.expire(watermark - self.window.size, AT)
        state = self.start()
        if not parts.items:
            return msgspec.structs.replace(state, parts=parts)
        waiting = Pending()
        how = answers(self.aggregation, pl.Schema(parts.items[0].schema))
        behind = self._nothing(how or ())
        # A part at a time, since together they may be more than there is to be in memory.
        for part in parts.items:
            settled, pending = Pending().add(part.frame).settle(watermark)
            for piece in pending.pieces:
                waiting = waiting.add(piece)
            if settled is not None and how is not None:
                for slice in settled.iter_slices(_RESTORED):
                    if isinstance(behind, Balances):
                        behind = behind.hold(slice, slice[AT].to_numpy(), self._values(slice, how), self.window.size)
                    else:
                        behind, *_ = self._indexed(behind, slice, watermark - self.window.size, how)
        if isinstance(behind, Balances) and how is not None:
            behind = behind.added_up(self.window.size, counted=_is_counted(how))
        return SlidingState(parts, waiting, behind)

    def step(self, state: OperatorState, batch: Batch) -> Step:
        assert isinstance(state, SlidingState)
        if batch.reshaped:
            return self._reshaped(state, batch)
        parts, behind = state.parts, state.behind
        rows, late = split_late(batch.frame)
        pending = state.pending
        if rows.height:
            need(self.keys, rows.columns, "group_by")
            rows = picked(rows, [name for name in rows.columns if name != LATE])
            pending = pending.add(rows)
            parts = parts.add(rows, pending.lows[-1], pending.highs[-1]).gather()
        if isinstance(behind, Balances) and worth_it(rows.height):
            # They are gone through in the order of time, and that is how they leave in the end.
            settled, pending = pending.settle_in_order(batch.after, [*self.keys, SEQUENCE])
        else:
            settled, pending = pending.settle(batch.after)
        out, known = pl.DataFrame(), state.how
        if settled is not None:
            if known is None or known.schema != settled.schema:
                known = How(settled.schema, answers(self.aggregation, settled.schema))
            how = known.answers
            if how is None:
                out = self._finish(settled, self._laid_out(settled, parts, batch.after))
            else:
                if not behind.rows:
                    behind = self._nothing(how)
                out, behind = self._answer(settled, behind, how)
        parts = parts.expire(batch.after - self.window.size)
        return Step(SlidingState(parts, pending, behind, known), out, late)

    def _reshaped(self, state: SlidingState, batch: Batch) -> Step:
        rows = batch.frame.drop(LATE)
        need(self.keys, rows.columns, "group_by")
        for name in ("window_start", "window_end", *self.aggregation.names):
            if name in visible(rows):
                raise FlowError(
                    f"the rows of the sliding window have a column {name!r} already",
                    hint="Leave it out with select(...), or give the aggregate another name",
                )
        how = apply("agg", rows.columns, lambda: answers(self.aggregation, rows.schema))
        if how is None:
            partials = apply(
                "agg", rows.columns, lambda: laid_out(self.aggregation, rows, rows, self.keys, self.window.size)
            )
            nothing = self._finish(rows, partials)
        else:
            self._values(rows, how)
            nothing = self._finish(rows, pl.DataFrame(schema={each.name: each.dtype for each in how}))
        parts = state.parts.reshaped(rows, lambda held: held)
        if parts.items and parts is state.parts:
            return Step(state, nothing)
        # Also where nothing is held: what answers may still have rows that have run out, of the types before.
        return Step(self.restore(parts, batch.before), nothing)

    # --- answers --------------------------------------------------------------------------------------

    def _nothing(self, how: Sequence[Answer]) -> Behind:
        """What answers such questions, without any row."""
        added = all(track.combine is None for answer in how for track in answer.tracks)
        return Balances(KeyIds(self.keys)) if added else Index(KeyIds(self.keys))

    def _answer(self, rows: pl.DataFrame, behind: Behind, how: Sequence[Answer]) -> tuple[pl.DataFrame, Behind]:
        """The answers to rows that are later than all before, and what they leave behind."""
        if isinstance(behind, Balances):
            behind, counts, found = self._balanced(behind, rows, how)
            return self._finish(rows, _columns(how, counts, found)), behind
        out = []
        for piece in stretches(rows, self.window.size):
            behind, counts, found = self._looked_up(behind, piece, how)
            out.append(self._finish(piece, _columns(how, counts, found)))
        return concat(out), behind

    def _balanced(
        self, balances: Balances, rows: pl.DataFrame, how: Sequence[Answer]
    ) -> tuple[Balances, Ints, list[Ints]]:
        inclusive = self.window.closed == "both"
        values: list[Ints | None] = [*self._values(rows, how)]
        counted = _is_counted(how)
        balances, found = balances.step(
            rows, rows[AT].to_numpy(), [None, *values] if counted else values, self.window.size, inclusive=inclusive
        )
        return balances, found[0], found[counted:]

    def _looked_up(self, index: Index, rows: pl.DataFrame, how: Sequence[Answer]) -> tuple[Index, Ints, list[Ints]]:
        size = self.window.size
        at = rows[AT].to_numpy()
        index, packed, ids, order = self._indexed(index, rows, int(at.min()) - size, how)
        tracks = [track for answer in how for track in answer.tracks]
        if tracks:
            index = msgspec.structs.replace(index, runs=tuple(_built(run, tracks) for run in index.runs))
        # The searches are asked in ascending order, which keeps the run's pages in the cache.
        low = (ids[order] << index.bits) | np.maximum(at[order] - size - index.base, 0)
        counts, found = self._spans(index, low, packed, tracks)
        return index, _unordered(counts, order), [_unordered(values, order) for values in found]

    def _indexed(
        self, index: Index, rows: pl.DataFrame, limit: int, how: Sequence[Answer]
    ) -> tuple[Index, Ints, Ints, Ints]:
        """The index with more rows, without what is older than a limit; these rows' packed key and time in ascending
        order, the numbers of their keys, and which of them stands where in that order."""
        at = rows[AT].to_numpy()
        index = index.fit(rows, limit)
        ids = index.ids.encode(rows)
        packed = index.pack(ids, at)
        # Rows of one key and time have one answer, so their order is free.
        order = order_of(ids, at)
        if order is None:
            order = pl.Series(packed).arg_sort().to_numpy()
        packed = packed[order]
        beside = tuple(values[order] for values in self._values(rows, how))
        return index.add(Sorted(packed, beside, int(at.max())), limit), packed, ids, order

    def _spans(self, index: Index, low: Ints, high: Ints, tracks: Sequence[Track]) -> tuple[Ints, list[Ints]]:
        """How many rows stand between two packed numbers, and what each track comes to there."""
        counts = np.zeros(len(low), np.int64)
        found: list[Ints] = []
        side = "left" if self.window.closed == "both" else "right"
        for run in index.runs:
            begins = run.packed.searchsorted(low, side=side)  # type: ignore[call-overload]
            ends = run.packed.searchsorted(high, side="right")
            counts += ends - begins
            more = [track.over(built, begins, ends) for track, built in zip(tracks, run.built, strict=True)]
            if found:
                more = [track.added(*both) for track, *both in zip(tracks, found, more, strict=True)]
            found = more
        return counts, found

    def _values(self, rows: pl.DataFrame, how: Sequence[Answer]) -> list[Ints]:
        """What is kept beside each row."""
        values = [track.value.alias(f"__t{i}") for i, track in enumerate(t for answer in how for t in answer.tracks)]
        if not values:
            return []
        frame = apply("agg", rows.columns, lambda: rows.select(values))
        # Literals alone are one value for all rows.
        return [
            (each if len(each) == rows.height else each.new_from_index(0, rows.height)).to_numpy() for each in frame
        ]

    def _laid_out(self, settled: pl.DataFrame, parts: Parts, watermark: int) -> pl.DataFrame:
        """The partials of settled rows, from the rows of their spans."""
        size = self.window.size
        near = pl.col(AT).is_between(times_of(settled)[0] - size, watermark, closed="left")
        among = [part.frame.filter(near) for part in parts.items]
        if self.keys:
            wanted = settled.select(self.keys).unique()
            among = [frame.join(wanted, on=list(self.keys), how="semi", nulls_equal=True) for frame in among]
        span = size if self.window.closed == "both" else size - 1
        return apply(
            "agg",
            sorted(self.aggregation.reads),
            lambda: laid_out(self.aggregation, settled, concat(among), self.keys, span),
        )

    def _finish(self, rows: pl.DataFrame, partials: pl.DataFrame) -> pl.DataFrame:
        others = [name for name in visible(rows) if name not in self.keys]
        keys = [rows[key] for key in self.keys]
        at = rows[AT]
        answers = rows.hstack(partials.get_columns()).with_columns(self.aggregation.finals)
        return pl.DataFrame(
            [
                *keys,
                (at - self.window.size).cast(UTC).alias("window_start"),
                at.cast(UTC).alias("window_end"),
                *(rows[name] for name in others),
                *(answers[name] for name in self.aggregation.names),
                *(rows[name] for name in hidden(rows) if not name.startswith("__key")),
                pl.Series(LATE, np.zeros(rows.height, np.bool_)),
                *(key.alias(key_column(i)) for i, key in enumerate(keys)),
            ]
        )


def _is_counted(how: Sequence[Answer]) -> bool:
    """Whether rows are counted, too: also of literals alone, of which nothing is asked, there are as many as rows."""
    return not how or not all(answer.tracks for answer in how)


def _columns(how: Sequence[Answer], counts: Ints, found: Sequence[Ints]) -> pl.DataFrame:
    """The partials, of how many rows there are and what each track comes to."""
    columns, used = [], 0
    for answer in how:
        columns.append(answer.series(found[used : used + len(answer.tracks)], counts))
        used += len(answer.tracks)
    return pl.DataFrame(columns)


def _unordered(values: Ints, order: Ints) -> Ints:
    """Values that were asked for in an order, as the rows stand."""
    out = np.empty_like(values)
    out[order] = values
    return out


def _built(run: Sorted, tracks: Sequence[Track]) -> Sorted:
    if run.built:
        return run
    built = tuple(track.built(values) for track, values in zip(tracks, run.beside, strict=True))
    return msgspec.structs.replace(run, built=built)
