"""Rows by key and time: a buffer that puts them into order, and an index over those that are settled.

A row is *settled* once the watermark has passed its time: no row of that time or before can come any more, so
what it sees behind it is final. The index holds key and time packed into one int64, in sorted runs that are
merged when they have doubled; a question about a span of time of a key is two binary searches per run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import polars as pl

from .columns import AT, NO_TIME, ordered, times_of
from .errors import FlowError
from .keys import Ints, KeyIds
from .state import concat

_BITS = 63

_RATIO = 8
"""A run is merged into the one before unless that is so many times larger: questions cost more than merges."""


class Pending(msgspec.Struct, frozen=True, eq=False):
    """Rows that wait for the watermark."""

    pieces: tuple[pl.DataFrame, ...] = ()
    lows: tuple[int, ...] = ()
    highs: tuple[int, ...] = ()

    def add(self, frame: pl.DataFrame) -> Pending:
        """With more rows."""
        if not frame.height:
            return self
        low, high = times_of(frame)
        return Pending((*self.pieces, frame), (*self.lows, low), (*self.highs, high))

    def settle(self, watermark: int) -> tuple[pl.DataFrame | None, Pending]:
        """The rows before the watermark (None when there are none), and what goes on waiting."""
        if not any(low < watermark for low in self.lows):
            return None, self
        out, rest, waiting = [], [], Pending()
        for piece, low, high in zip(self.pieces, self.lows, self.highs, strict=True):
            if high < watermark:
                out.append(piece)
            elif low >= watermark:
                rest.append(piece)
            else:
                is_out = (piece[AT] < watermark).to_numpy()
                out.append(piece.filter(is_out))
                rest.append(piece[np.flatnonzero(~is_out)])
        # Small pieces are joined, so that a long wait in small batches does not make many of them.
        if len(rest) > 16:
            rest = [concat(rest)]
        for piece in rest:
            waiting = waiting.add(piece)
        # Of one piece: to put several into another order takes ten times as long.
        return concat(out).rechunk(), waiting

    def settle_in_order(self, watermark: int, by: Sequence[str]) -> tuple[pl.DataFrame | None, Pending]:
        """The same, with the rows by time, and by these columns where that is equal."""
        touched = [piece for piece, low in zip(self.pieces, self.lows, strict=True) if low < watermark]
        if not touched:
            return None, self
        settled = sum(int(np.count_nonzero(piece[AT].to_numpy() < watermark)) for piece in touched)
        if 2 * settled < sum(piece.height for piece in touched):
            # Of what mostly goes on waiting, only what does not is worth putting in order.
            rows, waiting = self.settle(watermark)
            return None if rows is None else ordered(rows, by), waiting
        waiting = Pending()
        for piece, low in zip(self.pieces, self.lows, strict=True):
            if low >= watermark:
                waiting = waiting.add(piece)
        rows = ordered(concat(touched), by).rechunk()
        return rows[:settled], waiting.add(rows[settled:])


class Sorted(msgspec.Struct, frozen=True, eq=False):
    """A run of the index: packed key and time in ascending order, and what is kept beside them."""

    packed: Ints
    beside: tuple[Ints, ...]
    newest: int
    """The greatest time in it."""
    built: tuple[Any, ...] = ()
    """What answers questions about stretches of what is kept beside; only where an index is asked such."""


class Index(msgspec.Struct, frozen=True, eq=False):
    """Settled rows by key and time."""

    ids: KeyIds
    base: int = 0
    """The time that is packed as zero; nothing before it is held."""
    bits: int = 0
    """How many bits the time takes; the key has the rest."""
    runs: tuple[Sorted, ...] = ()
    floor: int = NO_TIME
    """Rows before this time count as gone; some may still be there."""

    def fit(self, frame: pl.DataFrame, limit: int) -> Index:
        """The index with room for these rows; what is older than ``limit`` may be dropped on the way.

        Raises:
            FlowError: There are more keys alive than fit beside so long a span of time.
        """
        high = frame[AT].max()
        assert isinstance(high, int)
        index = self
        if not index.bits or limit < index.base or high - index.base >= 2**index.bits:
            newest = max(high, *(run.newest for run in index.runs)) if index.runs else high
            # Room for as much again, so that this happens seldom.
            bits = int(newest - limit).bit_length() + 1
            top = max((int(run.packed[-1]) >> index.bits for run in index.runs if len(run.packed)), default=0)
            if index.ids.direct and top.bit_length() + bits > _BITS:
                index = index._renumbered()
            index = index._repacked(limit, bits)
        stale = not index.ids.direct and index.ids.count > 4 * index.rows + 100_000
        if stale or not index.ids.takes(frame, _BITS - index.bits):
            index = index._renumbered()
        room = 2 ** (_BITS - index.bits)
        if not index.ids.direct and index.ids.count + frame.height >= room <= index.ids.count + _keys(frame, index.ids):
            raise FlowError(
                f"{index.ids.count} keys do not fit an index over so long a span", hint="Use a shorter window"
            )
        return index

    @property
    def rows(self) -> int:
        """How many rows it holds."""
        return sum(len(run.packed) for run in self.runs)

    @property
    def nbytes(self) -> int:
        """How many bytes it takes."""
        return sum(values.nbytes for run in self.runs for values in (run.packed, *run.beside))

    def pack(self, ids: Ints, at: Ints) -> Ints:
        """Key and time as one number. Times before the base count as the base."""
        packed: Ints = (ids << self.bits) | np.maximum(at - self.base, 0)
        return packed

    def times(self, packed: Ints) -> Ints:
        """The times of packed numbers."""
        offsets: Ints = packed & ((1 << self.bits) - 1)
        return offsets + self.base

    def add(self, run: Sorted, limit: int, prune: Callable[[Sorted], Sorted] = lambda run: run) -> Index:
        """With one more run; runs of like size are merged, and rows older than ``limit`` dropped on the way.

        Args:
            prune: Drops more of a merged run.
        """
        runs = [held for held in self.runs if held.newest >= limit]
        runs.append(run)
        while len(runs) > 1 and len(runs[-2].packed) <= _RATIO * len(runs[-1].packed):
            newer, older = runs.pop(), runs.pop()
            runs.append(prune(self.merge([older, newer], limit)))
        return msgspec.structs.replace(self, runs=tuple(runs), floor=max(self.floor, limit))

    def merge(self, runs: Sequence[Sorted], limit: int) -> Sorted:
        """Several runs as one, oldest first where key and time are equal."""
        packed = np.concatenate([run.packed for run in runs])
        floor = min(max(limit - self.base, 0), (1 << self.bits) - 1)
        alive = (packed & ((1 << self.bits) - 1)) >= floor
        newest = max(run.newest for run in runs)
        if not runs[0].beside:
            packed = packed if alive.all() else packed[alive]
            # Two sorted stretches: what numpy calls stable is a merge here.
            packed.sort(kind="stable")
            return Sorted(packed, (), newest)
        order = np.argsort(packed, kind="stable")
        order = order[alive[order]]
        beside = tuple(np.concatenate([run.beside[i] for run in runs])[order] for i in range(len(runs[0].beside)))
        return Sorted(packed[order], beside, newest)

    def _repacked(self, base: int, bits: int) -> Index:
        runs = []
        for run in self.runs:
            times = self.times(run.packed)
            alive = times >= base
            packed = ((run.packed >> self.bits) << bits) | (times - base)
            beside = run.beside
            if not alive.all():
                packed, beside = packed[alive], tuple(values[alive] for values in beside)
            runs.append(Sorted(packed, beside, run.newest))
        return msgspec.structs.replace(self, base=base, bits=bits, runs=tuple(runs))

    def _renumbered(self) -> Index:
        """The index with keys numbered anew, by categories."""
        ids = KeyIds(self.ids.columns, direct=False)
        runs = []
        for run in self.runs:
            numbers, inverse = np.unique(run.packed >> self.bits, return_inverse=True)
            new = ids.encode(self.ids.decode(numbers))[inverse]
            packed = (new << self.bits) | (run.packed & ((1 << self.bits) - 1))
            order = np.argsort(packed, kind="stable")
            runs.append(Sorted(packed[order], tuple(v[order] for v in run.beside), run.newest))
        return msgspec.structs.replace(self, ids=ids, runs=tuple(runs))


def _keys(frame: pl.DataFrame, ids: KeyIds) -> int:
    return frame.select(ids.columns).n_unique() if ids.columns else 1


def stretches(frame: pl.DataFrame, span: int) -> list[pl.DataFrame]:
    """Settled rows in pieces that each cover a time not much longer than ``span``, in order.

    Key and time share 63 bits, so one far stamp must not stretch the time that an index covers.
    """
    width = 1 << max(38, span.bit_length() + 1)
    low, high = times_of(frame)
    if high - low < width:
        return [frame]
    return (
        frame.with_columns((pl.col(AT) // width).alias("__stretch"))
        .sort(AT, maintain_order=True)
        .partition_by("__stretch", include_key=False, maintain_order=True)
    )
