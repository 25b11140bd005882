"""State by ranges of its keys' hashes, so that no merge is of all of it, and a question reads only what it asks for.

Parts are *fresh* at first. When these hold many rows, they are merged, sorted by the hash of their key, and cut into
*lanes*: the ranges of the hash by its first bits. From then on parts are merged lane by lane, a few in a step. Parts in
lanes are older than all fresh ones, and those of a lane stand in the order of their ids: merging takes the newest of
a lane alone. Which lane a part is in, its hashes tell, which are stored with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import polars as pl

from .bodies import HASH
from .errors import UnsupportedExpression
from .hashing import Hashes, hashed, mixed
from .keys import Ints

BITS = 5
"""Two to the power of this is how many lanes there are. Stored parts depend on it."""

FRESH = 262_144
"""So many rows are merged at once, and then cut into lanes."""

_SHIFT = np.uint64(64 - BITS)


def lane_of(frame: pl.DataFrame) -> int | None:
    """The lane that all rows of a part are in; None when it is a fresh one."""
    return int(frame[HASH][0]) >> (64 - BITS) if frame.height and HASH in frame.columns else None


def hashes_of(frame: pl.DataFrame, keys: Sequence[str]) -> Hashes | None:
    """A hash for each row's key; None when its type has none."""
    try:
        found = hashed(frame[keys[0]])
        for key in keys[1:]:
            found = mixed(found ^ hashed(frame[key]))
    except UnsupportedExpression:
        return None
    return found


def lanes_of(hashes: Hashes) -> Ints:
    """The lane of each hash."""
    return hashes >> _SHIFT


def plain(frame: pl.DataFrame) -> pl.DataFrame:
    """Rows without their hashes."""
    # Not `drop`, which takes a thousand times as long.
    return pl.DataFrame([series for series in frame.get_columns() if series.name != HASH])


def ordered_by(frame: pl.DataFrame, hashes: Hashes) -> pl.DataFrame:
    """Rows with their hashes, sorted by them; those of one hash stand as they stood."""
    order = np.argsort(hashes, kind="stable")
    return frame[order].with_columns(pl.Series(HASH, hashes[order])).rechunk()


def cut(frame: pl.DataFrame, hashes: Hashes) -> Iterator[tuple[int, pl.DataFrame]]:
    """The lanes that rows are in, and the rows of each, sorted by hash and with memory of their own."""
    if not len(hashes):
        return
    order = np.argsort(hashes, kind="stable")
    lanes = lanes_of(hashes[order])
    bounds = [0, *(np.flatnonzero(np.diff(lanes)) + 1).tolist(), len(order)]
    for begin, end in pairwise(bounds):
        mine = order[begin:end]
        yield int(lanes[begin]), frame[mine].with_columns(pl.Series(HASH, hashes[mine])).rechunk()


class Asked:
    """Keys that are asked for, to be found in parts that are sorted by hash."""

    def __init__(self, hashes: Hashes) -> None:
        ascending: Hashes = pl.Series(hashes).sort().to_numpy()
        self._hashes: Hashes = ascending[np.diff(ascending, prepend=~ascending[:1]) != 0]
        self._bounds = self._hashes.searchsorted(np.arange(1 << BITS, dtype=np.uint64) << _SHIFT)

    def places(self, lane: int, hashes: Hashes) -> Ints:
        """Where the rows stand, of a part in a lane, whose hash is asked for."""
        begin = self._bounds[lane]
        end = self._bounds[lane + 1] if lane + 1 < len(self._bounds) else len(self._hashes)
        wanted = self._hashes[begin:end]
        low = hashes.searchsorted(wanted, side="left")
        high = hashes.searchsorted(wanted, side="right")
        some = high > low
        low, counts = low[some], (high - low)[some]
        if not len(low):
            return low
        if counts.max() == 1:
            return low
        ends = counts.cumsum()
        places: Ints = np.repeat(low - (ends - counts), counts) + np.arange(ends[-1])
        return places


def by_lane(frames: Iterable[pl.DataFrame], keys: Sequence[str]) -> dict[int, list[pl.DataFrame]]:
    """The rows of fresh parts by the lanes that they would be in."""
    found: dict[int, list[pl.DataFrame]] = {}
    for frame in frames:
        hashes = hashes_of(frame, keys)
        assert hashes is not None, "what has lanes has hashes"
        for lane, piece in cut(frame, hashes):
            found.setdefault(lane, []).append(plain(piece))
    return found
