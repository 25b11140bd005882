"""The search for matches: in rows of keys, as packed numbers and masks.

Where the last variable closes a match for sure (see `Automaton.closing`), rows are looked up only for the keys
that such a row came for, and one search of a compiled regular expression decides. Other patterns, and keys
whose rows fit the last variable and another, are walked by the automaton row by row. Both give the same matches.

A *barrier* is a row that says that its key is done with all rows up to a time and place.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np

from .history import Index, Sorted
from .keys import Ints
from .pattern import Automaton

BARRIER = 0x80
"""The mask of a barrier."""

Barriers = list[tuple[int, int, int]]
"""Barriers to set: key, time, place."""


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


class Search(msgspec.Struct, frozen=True, eq=False):
    """How matches of a pattern are found.

    Attributes:
        automaton: The pattern.
        within: The longest time from the first row of a match to its last.
    """

    automaton: Automaton
    within: int

    def find(
        self, index: Index, run: Sorted | None, watermark: int, waiting: dict[int, int]
    ) -> tuple[list[Found], Barriers]:
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
        barriers: Barriers = []
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

    def undecided(self, index: Index, keys: Ints, watermark: int) -> dict[int, int]:
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
    ) -> Barriers:
        """The search by automaton, row by row: any pattern, any rows. Gives the barriers to set."""
        barriers: Barriers = []
        if not len(rows.packed):
            return barriers
        keys, time = rows.packed >> index.bits, index.times(rows.packed)
        borders = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1], [True]]))
        # What was searched before this step ended with a barrier, or with a row that closes for sure.
        past = (self._is_end(rows.mask) & (time < since)) | (rows.mask == BARRIER)
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

    def pruned(self, index: Index, run: Sorted) -> Sorted:
        """A run without the rows that stand, in their key, before one that a key is done with."""
        packed, (mask, sequence) = run.packed, run.beside
        if not self._is_end(mask).any():
            return run
        if (mask == BARRIER).any():
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
        ends: Ints = mask == BARRIER
        return ends | (mask == self.automaton.closing) if self.automaton.closing else ends


_NONE = np.zeros(0, np.int64)


def sorted_run(packed: Ints, mask: Ints, sequence: Ints, newest: int) -> Sorted:
    order = np.argsort(packed, kind="stable")
    return Sorted(packed[order], (mask[order], sequence[order]), newest)


def _order(packed: Ints, mask: Ints, sequence: Ints) -> Ints:
    """The order of rows by key, time and place; a barrier stands after the row whose place it bears."""
    barriers = mask == BARRIER
    if barriers.any():
        return np.lexsort((barriers, sequence, packed))
    # Runs, and rows in them, stand in the order of the log where key and time are equal.
    return np.argsort(packed, kind="stable")


def _after_barriers(mask: Ints, ends: Ints) -> Ints:
    """For each of some rows, the first row after the last barrier before it (of any key)."""
    barriers = np.flatnonzero(mask == BARRIER)
    if not len(barriers):
        return np.zeros(len(ends), np.int64)
    before = barriers.searchsorted(ends)
    return np.where(before > 0, barriers[np.maximum(before - 1, 0)] + 1, 0)
