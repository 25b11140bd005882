"""Sequences of rows: the operator of ``match``.

Rows are read per key in order of time (ties in order of the log), once the watermark has passed them. Each
row becomes a mask of the variables that it fits. Where the last variable closes a match for sure (see
`Automaton.closing`), the rows before it are looked up only when such a row comes, and one search of a
compiled regular expression decides; other patterns, and keys whose rows fit the last variable and another,
are walked by the automaton row by row. Both give the same matches.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np
import polars as pl

from .columns import AT, LATE, SEQUENCE, key_column, names_of, utc
from .errors import MissingColumn
from .expressions import apply
from .history import Index, Pending, Sorted, stretches
from .keys import Ints, KeyIds
from .pattern import Automaton
from .state import Batch, OperatorState, Parts, Step, concat
from .windows import numbered, split_late

_MASK = "__mask"
_BARRIER = 0x80


class MatchState(msgspec.Struct, frozen=True, eq=False):
    """Rows that wait for the watermark, an index of those that may yet have a part in a match, and who waits.

    The parts are the rows as they came in, and *barriers*: rows that say that a key is done with all before.
    """

    parts: Parts
    pending: Pending
    index: Index
    waiting: dict[int, int] = {}
    """For each key with a match that is not decided yet, the time by which it is."""


class Found(msgspec.Struct, frozen=True):
    """A match: its key, its first and last row's time, its rows, and the time at which it was decided."""

    key: int
    first: int
    last: int
    rows: int
    decided: int


class Rows(msgspec.Struct, frozen=True, eq=False):
    """Rows of some keys, by key, time and place in the log."""

    packed: Ints
    mask: Ints
    sequence: Ints

    def where(self, chosen: Ints) -> Rows:
        """Only some of the rows."""
        return Rows(self.packed[chosen], self.mask[chosen], self.sequence[chosen])


class Match(msgspec.Struct, frozen=True, eq=False):
    """The operator of a pattern."""

    keys: tuple[str, ...]
    automaton: Automaton
    define: tuple[pl.Expr, ...]
    within: int
    relaxed: bool

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
            waiting = self._undecided(index, keys, watermark)
        return MatchState(parts, pending, index, waiting)

    def step(self, state: OperatorState, batch: Batch) -> Step:
        assert isinstance(state, MatchState)
        parts, index, waiting = state.parts, state.index, dict(state.waiting)
        rows, late = split_late(batch.frame)
        pending = state.pending
        if rows.height:
            rows = self._masked(rows)
        if rows.height:
            pending = pending.add(rows)
            parts = parts.add(rows, pending.lows[-1], pending.highs[-1]).compact(lambda frame: frame)
        settled, pending = pending.settle(batch.after)
        results: list[pl.DataFrame] = []
        pieces = stretches(settled, self.within) if settled is not None else []
        for piece in pieces:
            # Each stretch is taken in as if the watermark had stood right after it.
            low, high = piece.select(pl.col(AT).min().alias("low"), pl.col(AT).max().alias("high")).row(0)
            until = batch.after if piece is pieces[-1] else high + 1
            if any(deadline < low for deadline in waiting.values()):
                # First what time alone decides: the index then need not reach back further than a span.
                found, barriers = self._search(index, None, low, waiting)
                results.append(self._describe(index, found))
                index, parts = self._bar(index, parts, barriers)
            index, run = self._enter(index, piece, waiting)
            found, barriers = self._search(index, run, until, waiting)
            results.append(self._describe(index, found))
            index, parts = self._bar(self._keep(index, run), parts, barriers)
        if not pieces and waiting:
            found, barriers = self._search(index, None, batch.after, waiting)
            results.append(self._describe(index, found))
            index, parts = self._bar(index, parts, barriers)
        parts = parts.expire(batch.after - self.within)
        frames = [result for result in results if result.height]
        frame = numbered(concat(frames)) if frames else pl.DataFrame()
        return Step(MatchState(parts, pending, index, waiting), frame, late)

    # --- rows in --------------------------------------------------------------------------------------

    def _masked(self, rows: pl.DataFrame) -> pl.DataFrame:
        for key in self.keys:
            if key not in rows.columns:
                raise MissingColumn(key, "group_by", rows.columns)
        mask = pl.lit(0, pl.Int64)
        for bit, condition in enumerate(self.define):
            mask = mask + condition.fill_null(False).cast(pl.Int64) * (1 << bit)
        frame = apply(
            "match",
            rows.columns,
            lambda: rows.select(*self.keys, AT, SEQUENCE, mask.cast(pl.UInt8).alias(_MASK)),
        )
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
        return index, _sorted(packed, rows[_MASK].to_numpy(), rows[SEQUENCE].to_numpy(), int(at.max()))

    def _keep(self, index: Index, run: Sorted) -> Index:
        """The index with a run that was searched, without what can have no part in a later match."""
        limit = run.newest - self.within
        return index.add(self._pruned(index, run), limit, lambda each: self._pruned(index, each))

    def _pruned(self, index: Index, run: Sorted) -> Sorted:
        """A run without the rows that stand, in their key, before one that a key is done with."""
        packed, (mask, sequence) = run.packed, run.beside
        if not self._is_end(mask).any():
            return run
        if (mask == _BARRIER).any():
            order = _order(packed, mask, sequence)
            packed, mask, sequence = packed[order], mask[order], sequence[order]
        # The last such row of each key, and all rows of the key before it.
        last = np.flatnonzero(self._is_end(mask))
        key = packed[last] >> index.bits
        last = last[np.append(key[1:] != key[:-1], True)]
        first = packed.searchsorted((packed[last] >> index.bits) << index.bits)
        edges = np.zeros(len(packed) + 1, np.int8)
        edges[first] += 1
        edges[last] -= 1
        alive = np.cumsum(edges[:-1], dtype=np.int8) == 0
        return Sorted(packed[alive], (mask[alive], sequence[alive]), run.newest)

    def _is_end(self, mask: Ints) -> Ints:
        """Whether all rows of a key up to here are done with, once this row has been searched."""
        ends: Ints = mask == _BARRIER
        return ends | (mask == self.automaton.closing) if self.automaton.closing else ends

    def _bar(self, index: Index, parts: Parts, barriers: list[tuple[int, int, int]]) -> tuple[Index, Parts]:
        """Note that keys are done with all rows up to a time and place: in the index, and in what is kept."""
        if not barriers:
            return index, parts
        ids, at, sequence = (np.array(column, np.int64) for column in zip(*barriers, strict=True))
        mask = np.full(len(ids), _BARRIER, np.uint8)
        low, high = int(at.min()), int(at.max())
        run = _sorted(index.pack(ids, at), mask, sequence, high)
        index = index.add(run, index.floor, lambda each: self._pruned(index, each))
        frame = index.ids.decode(ids).with_columns(
            pl.Series(AT, at), pl.Series(SEQUENCE, sequence), pl.Series(_MASK, mask)
        )
        return index, parts.add(frame, low, high).compact(lambda frame: frame)

    # --- the search -----------------------------------------------------------------------------------

    def _search(
        self, index: Index, run: Sorted | None, watermark: int, waiting: dict[int, int]
    ) -> tuple[list[Found], list[tuple[int, int, int]]]:
        """The matches that new rows, and the time that has passed, decide; and the barriers to set."""
        closing = self.automaton.closing
        touched, since = _NONE, watermark
        if run is not None:
            keys, since = run.packed >> index.bits, int(index.times(run.packed).min())
            touched = np.unique(keys[(run.beside[0] & closing) > 0] if closing else keys)
            if waiting and closing:
                waiters = np.fromiter(waiting, np.int64, len(waiting))
                touched = np.union1d(touched, np.intersect1d(keys, waiters))
        overdue = [key for key, deadline in waiting.items() if deadline < watermark]
        if overdue:
            touched = np.union1d(touched, np.array(overdue, np.int64))
        if not len(touched):
            return [], []
        rows = self._rows_of(index, run, touched)
        mixed = self._mixed(index, rows)
        found: list[Found] = []
        barriers: list[tuple[int, int, int]] = []
        still: dict[int, int] = {}
        if len(mixed):
            strange = np.isin(rows.packed >> index.bits, mixed)
            barriers = self._walk(index, rows.where(strange), since, watermark, found, still)
            rows = rows.where(~strange)
        found.extend(self._closed(index, rows, since))
        for key in touched.tolist():
            waiting.pop(key, None)
        waiting.update(still)
        return found, barriers

    def _undecided(self, index: Index, keys: Ints, watermark: int) -> dict[int, int]:
        """The keys with a match that is not decided, among those whose rows the automaton has to walk."""
        waiting: dict[int, int] = {}
        rows = self._rows_of(index, None, keys)
        walked = np.isin(rows.packed >> index.bits, self._mixed(index, rows))
        self._walk(index, rows.where(walked), watermark, watermark, [], waiting)
        return waiting

    def _mixed(self, index: Index, rows: Rows) -> Ints:
        """The keys that the automaton has to walk."""
        keys = rows.packed >> index.bits
        closing = self.automaton.closing
        if closing:
            fits = rows.mask & 0x7F
            keys = keys[((fits & closing) > 0) & (fits != closing)]
        return np.unique(keys)

    def _closed(self, index: Index, rows: Rows, since: int) -> Iterator[Found]:
        """The search where the last variable closes matches: one for each new row that fits it."""
        ends = np.flatnonzero(rows.mask == self.automaton.closing) if self.automaton.closing else _NONE
        if not len(ends):
            return
        key, time = rows.packed >> index.bits, index.times(rows.packed)
        # A match that ends here begins within the span, in the same key, after the closing row before it.
        floor = (key[ends] << index.bits) | np.maximum(time[ends] - self.within - index.base, 0)
        begins = np.maximum(rows.packed.searchsorted(floor), np.concatenate([[0], ends[:-1] + 1]))
        begins = np.maximum(begins, _after_barriers(rows.mask, ends))
        wanted = (ends - begins + 1 >= self.automaton.least) & (time[ends] >= since)
        masks = rows.mask.tobytes()
        search = self.automaton.expression.search
        for begin, end in zip(begins[wanted].tolist(), ends[wanted].tolist(), strict=True):
            match = search(masks, begin, end + 1)
            if match is not None:
                first, last = match.start(), int(time[end])
                yield Found(int(key[end]), int(time[first]), last, end - first + 1, last)

    def _walk(
        self,
        index: Index,
        rows: Rows,
        since: int,
        watermark: int,
        found: list[Found],
        waiting: dict[int, int],
    ) -> list[tuple[int, int, int]]:
        """The search by automaton, row by row: any pattern, any rows. Gives the barriers to set."""
        barriers: list[tuple[int, int, int]] = []
        if not len(rows.packed):
            return barriers
        keys, time = rows.packed >> index.bits, index.times(rows.packed)
        borders = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1], [True]]))
        # What was searched before this step ended with a barrier, or with a row that closes for sure.
        past = (self._is_end(rows.mask) & (time < since)) | (rows.mask == _BARRIER)
        ends, times, masks = np.flatnonzero(past), time.tolist(), rows.mask.tolist()
        for begin, end in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True):
            before = ends[ends.searchsorted(begin) : ends.searchsorted(end)]
            begin = int(before[-1]) + 1 if len(before) else begin
            if begin == end:
                continue
            key = int(keys[begin])
            resume = self._walk_key(key, times, masks, begin, end, watermark, found, waiting)
            if resume > begin:
                barriers.append((key, times[resume - 1], int(rows.sequence[resume - 1])))
        return barriers

    def _walk_key(
        self,
        key: int,
        times: list[int],
        masks: list[int],
        start: int,
        end: int,
        watermark: int,
        found: list[Found],
        waiting: dict[int, int],
    ) -> int:
        """Walk one key's rows from ``start``; gives the first row that may yet begin a match."""
        automaton = self.automaton
        step, accepts, dead, done = automaton.step, automaton.accepts, automaton.dead, automaton.done
        while start < end:
            state, deadline = automaton.begin, times[start] + self.within
            accepted, decided = -1, None
            at = start
            while at < end and times[at] <= deadline:
                state = step(state, masks[at])
                if state == dead:
                    decided = times[at]
                    break
                if accepts(state):
                    accepted = at
                    if state == done:
                        decided = times[at]
                        break
                at += 1
            if decided is None:
                if deadline >= watermark:
                    # Later rows may still go on with this match, and it has precedence over later ones.
                    waiting[key] = deadline
                    return start
                decided = deadline
            if accepted >= 0:
                found.append(Found(key, times[start], times[accepted], accepted - start + 1, decided))
                start = accepted + 1
            else:
                start += 1
        return start

    def _rows_of(self, index: Index, new: Sorted | None, keys: Ints) -> Rows:
        """The rows of some keys, in order: those that the index holds, and new ones."""
        pieces: list[tuple[Ints, ...]] = []
        for run in (*index.runs, new) if new is not None else index.runs:
            # What stands before the floor may have lost the barrier that hid it.
            low = run.packed.searchsorted(index.pack(keys, np.full(len(keys), index.floor)))
            counts = run.packed.searchsorted((keys + 1) << index.bits) - low
            total = int(counts.sum())
            if total:
                offsets = np.repeat(low - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
                taken = np.arange(total) + offsets
                pieces.append((run.packed[taken], *(values[taken] for values in run.beside)))
        if not pieces:
            return Rows(_NONE, np.zeros(0, np.uint8), _NONE)
        packed, mask, sequence = (np.concatenate(columns) for columns in zip(*pieces, strict=True))
        order = _order(packed, mask, sequence)
        return Rows(packed[order], mask[order], sequence[order])

    # --- matches out ----------------------------------------------------------------------------------

    def _describe(self, index: Index, found: list[Found]) -> pl.DataFrame:
        if not found:
            return pl.DataFrame()
        ids = np.array([match.key for match in found], np.int64)
        frame = pl.DataFrame(
            {
                "match_start": [match.first for match in found],
                "match_end": [match.last for match in found],
                "events": [match.rows for match in found],
                AT: [match.decided for match in found],
            },
            schema=dict.fromkeys(("match_start", "match_end", "events", AT), pl.Int64()),
        )
        keys = index.ids.decode(ids)
        return frame.select(
            *keys.get_columns(),
            utc(pl.col("match_start")),
            utc(pl.col("match_end")),
            "events",
            AT,
            pl.lit(False).alias(LATE),
            *(keys[key].alias(key_column(i)) for i, key in enumerate(self.keys)),
        )


_NONE = np.zeros(0, np.int64)


def _sorted(packed: Ints, mask: Ints, sequence: Ints, newest: int) -> Sorted:
    order = np.argsort(packed, kind="stable")
    return Sorted(packed[order], (mask[order], sequence[order]), newest)


def _order(packed: Ints, mask: Ints, sequence: Ints) -> Ints:
    """The order of rows by key, time and place; a barrier stands after the row whose place it bears."""
    barriers = mask == _BARRIER
    if barriers.any():
        return np.lexsort((barriers, sequence, packed))
    # Runs, and rows in them, stand in the order of the log where key and time are equal.
    return np.argsort(packed, kind="stable")


def _after_barriers(mask: Ints, ends: Ints) -> Ints:
    """For each of some rows, the first row after the last barrier before it (of any key)."""
    barriers = np.flatnonzero(mask == _BARRIER)
    if not len(barriers):
        return np.zeros(len(ends), np.int64)
    before = barriers.searchsorted(ends)
    return np.where(before > 0, barriers[np.maximum(before - 1, 0)] + 1, 0)
