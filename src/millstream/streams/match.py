"""Sequences of rows: the operator of ``match``.

Rows are read per key in order of time (ties in order of the log), once the watermark has passed them. Each
row becomes a mask of the variables that it fits, and `Search` finds the matches.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec
import numpy as np
import polars as pl

from .columns import AT, LATE, SEQUENCE, key_column, names_of, need, times_of, utc
from .expressions import apply
from .history import Index, Pending, Sorted, stretches
from .keys import KeyIds, unsigned
from .pattern import Automaton
from .search import BARRIER, Barriers, Found, Search, sorted_run
from .state import Batch, OperatorState, Order, Parts, Step, concat
from .windows import numbered, split_late

_MASK = "__mask"


class MatchState(msgspec.Struct, frozen=True, eq=False):
    """Rows that wait for the watermark, an index of those that may yet have a part in a match, and who waits.

    The parts are the rows as they came in, and *barriers*: rows that say that a key is done with all before.
    """

    parts: Parts
    pending: Pending
    index: Index
    waiting: dict[int, int] = {}
    """For each key with a match that is not decided yet, the time by which it is."""


class Match(msgspec.Struct, frozen=True, eq=False):
    """The operator of a pattern."""

    keys: tuple[str, ...]
    automaton: Automaton
    define: tuple[pl.Expr, ...]
    within: int
    relaxed: bool

    order: ClassVar[Order] = "time"

    @property
    def search(self) -> Search:
        """How its matches are found."""
        return Search(self.automaton, self.within)

    @property
    def reads(self) -> set[str]:
        """The columns that it reads."""
        return {*self.keys, *names_of(self.define)}

    @property
    def shape(self) -> str:
        elements = " ".join(f"{e.variable}{{{e.least},{e.most}}}" for e in self.automaton.elements)
        kind = "relaxed" if self.relaxed else "strict"
        return f"match {elements} within {self.within} {kind} by {self.keys}"

    def start(self) -> MatchState:
        return MatchState(Parts(), Pending(), Index(KeyIds(self.keys)))

    def restore(self, parts: Parts, watermark: int) -> MatchState:
        parts = parts.expire(watermark - self.within, AT)
        state = msgspec.structs.replace(self.start(), parts=parts)
        if not parts.items:
            return state
        settled, pending = Pending().add(concat(part.frame for part in parts.items)).settle(watermark)
        index = state.index
        waiting: dict[int, int] = {}
        if settled is not None:
            for piece in stretches(settled, self.within):
                index, run = self._enter(index, piece, waiting)
                index = self._keep(index, run)
            # Which matches are undecided follows from the rows; what is decided was cut off by a barrier.
            keys = np.unique(np.concatenate([run.packed >> index.bits for run in index.runs]))
            waiting = self.search.undecided(index, keys, watermark)
        return MatchState(parts, pending, index, waiting)

    def step(self, state: OperatorState, batch: Batch) -> Step:
        assert isinstance(state, MatchState)
        if batch.reshaped:
            return self._reshaped(state, batch)
        parts, index, waiting = state.parts, state.index, dict(state.waiting)
        rows, late = split_late(batch.frame)
        pending = state.pending
        if rows.height:
            rows = self._masked(rows)
        if rows.height:
            pending = pending.add(rows)
            parts = parts.add(rows, pending.lows[-1], pending.highs[-1]).gather()
        settled, pending = pending.settle(batch.after)
        results: list[pl.DataFrame] = []
        pieces = stretches(settled, self.within) if settled is not None else []
        for piece in pieces:
            # Each stretch is taken in as if the watermark had stood right after it.
            low, high = times_of(piece)
            until = batch.after if piece is pieces[-1] else high + 1
            if any(deadline < low for deadline in waiting.values()):
                # First what time alone decides: the index then need not reach back further than a span.
                found, barriers = self.search.find(index, None, low, waiting)
                results.append(self._describe(index, found))
                index, parts = self._bar(index, parts, barriers)
            index, run = self._enter(index, piece, waiting)
            found, barriers = self.search.find(index, run, until, waiting)
            results.append(self._describe(index, found))
            index, parts = self._bar(self._keep(index, run), parts, barriers)
        if not pieces and waiting:
            found, barriers = self.search.find(index, None, batch.after, waiting)
            results.append(self._describe(index, found))
            index, parts = self._bar(index, parts, barriers)
        parts = parts.expire(batch.after - self.within)
        frames = [result for result in results if result.height]
        frame = numbered(concat(frames)) if frames else pl.DataFrame()
        return Step(MatchState(parts, pending, index, waiting), frame, late)

    def _reshaped(self, state: MatchState, batch: Batch) -> Step:
        rows = self._masked(batch.frame)
        nothing = self._described(rows.select(self.keys), [])
        parts = state.parts.reshaped(rows, lambda held: held)
        if parts.items and parts is state.parts:
            return Step(state, numbered(nothing))
        # Also where nothing is held, for the sake of the keys: what is a time and what is text may look alike there.
        return Step(self.restore(parts, batch.before), numbered(nothing))

    # --- rows in --------------------------------------------------------------------------------------

    def _masked(self, rows: pl.DataFrame) -> pl.DataFrame:
        need(self.keys, rows.columns, "group_by")
        mask = pl.lit(0, pl.Int64)
        for bit, condition in enumerate(self.define):
            mask = mask + condition.fill_null(False).cast(pl.Int64) * (1 << bit)
        frame = apply(
            "match",
            rows.columns,
            lambda: rows.select(*self.keys, AT, SEQUENCE, mask.cast(pl.UInt8).alias(_MASK)),
        )
        frame = unsigned(frame, self.keys)
        return frame.filter(pl.col(_MASK) > 0) if self.relaxed else frame

    def _enter(self, index: Index, rows: pl.DataFrame, waiting: dict[int, int]) -> tuple[Index, Sorted]:
        """Settled rows as a run of the index, and the index with room for it."""
        at = rows[AT].to_numpy()
        before, index = index.ids, index.fit(rows, int(at.min()) - self.within)
        if index.ids is not before and waiting:
            held = np.fromiter(waiting, np.int64, len(waiting))
            numbers = index.ids.encode(before.decode(held)).tolist()
            deadlines = list(waiting.values())
            waiting.clear()
            waiting.update(zip(numbers, deadlines, strict=True))
        packed = index.pack(index.ids.encode(rows), at)
        return index, sorted_run(packed, rows[_MASK].to_numpy(), rows[SEQUENCE].to_numpy(), int(at.max()))

    def _keep(self, index: Index, run: Sorted) -> Index:
        """The index with a run that was searched, without what can have no part in a later match."""
        limit = run.newest - self.within
        return index.add(self.search.pruned(index, run), limit, lambda each: self.search.pruned(index, each))

    def _bar(self, index: Index, parts: Parts, barriers: Barriers) -> tuple[Index, Parts]:
        """Note that keys are done with all rows up to a time and place: in the index, and in what is kept."""
        if not barriers:
            return index, parts
        ids, at, sequence = (np.array(column, np.int64) for column in zip(*barriers, strict=True))
        mask = np.full(len(ids), BARRIER, np.uint8)
        low, high = int(at.min()), int(at.max())
        run = sorted_run(index.pack(ids, at), mask, sequence, high)
        index = index.add(run, index.floor, lambda each: self.search.pruned(index, each))
        frame = index.ids.decode(ids).with_columns(
            pl.Series(AT, at), pl.Series(SEQUENCE, sequence), pl.Series(_MASK, mask)
        )
        return index, parts.add(frame, low, high).gather()

    # --- matches out ----------------------------------------------------------------------------------

    def _describe(self, index: Index, found: list[Found]) -> pl.DataFrame:
        if not found:
            return pl.DataFrame()
        ids = np.array([match.key for match in found], np.int64)
        return self._described(index.ids.decode(ids), found)

    def _described(self, keys: pl.DataFrame, found: list[Found]) -> pl.DataFrame:
        frame = pl.DataFrame(
            {
                "match_start": [match.first for match in found],
                "match_end": [match.last for match in found],
                "events": [match.rows for match in found],
                AT: [match.decided for match in found],
            },
            schema=dict.fromkeys(("match_start", "match_end", "events", AT), pl.Int64()),
        )
        return frame.select(
            *keys.get_columns(),
            utc(pl.col("match_start")),
            utc(pl.col("match_end")),
            "events",
            AT,
            pl.lit(False).alias(LATE),
            *(keys[key].alias(key_column(i)) for i, key in enumerate(self.keys)),
        )
