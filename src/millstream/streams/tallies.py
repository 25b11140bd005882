"""Counts and sums of groups whose keys are whole numbers that lie close together.

Each group has its place in an array then, and its rows are added up there: several times as fast as by a hash of the
key. What groups there are comes out in the order of their keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from .columns import NUMBERS
from .keys import Ints

_PLACES = 8
"""So many places for each row are still faster to go over than a hash table."""
_FEW = 4096
"""So many places are always few enough."""

_ADDED = (pl.Boolean, *(dtype for dtype in NUMBERS if dtype != pl.UInt64))


def tallied(frame: pl.DataFrame, by: Sequence[str], values: Mapping[str, pl.Expr | None]) -> pl.DataFrame | None:
    """Values added up by group, or None where that is not for this way.

    Args:
        frame: The rows, one at least.
        by: The columns that tell groups apart, one at least.
        values: By the names of the results, what is added up of each row: whole numbers of at most 64 bits, where
            null is nothing. None counts the rows.

    Returns:
        The columns ``by``, and the results, as 64-bit numbers.
    """
    spans = _spans(frame, by)
    if spans is None:
        return None
    wanted = [value.alias(name) for name, value in values.items() if value is not None]
    added = frame
    if wanted:
        # Without rows first: to find out by all of them would be work for nothing.
        if not all(dtype in _ADDED for dtype in frame.clear().select(wanted).dtypes):
            return None
        added = frame.select(wanted)
    places = np.zeros(1, np.int64)
    size = 1
    for name, (low, span) in zip(by, spans, strict=True):
        places = places * span + _above(frame[name], low)
        size *= span
    counts = np.bincount(places, minlength=size)
    there = np.flatnonzero(counts)
    columns = _keys(frame, by, spans, there)
    for name, value in values.items():
        if value is None:
            columns.append(pl.Series(name, counts[there]))
            continue
        numbers = added[name].cast(pl.Int64)
        if numbers.null_count():
            numbers = numbers.fill_null(0)
        sums = np.zeros(size, np.int64)
        np.add.at(sums, places, np.broadcast_to(numbers.to_numpy(), places.shape))
        columns.append(pl.Series(name, sums[there]))
    return pl.DataFrame(columns)


def _spans(frame: pl.DataFrame, by: Sequence[str]) -> list[tuple[int, int]] | None:
    """The least number of each column, and how many there are from it to the greatest; None if they are too many."""
    most = max(_PLACES * frame.height, _FEW)
    found, size = [], 1
    for name in by:
        column = frame[name]
        if column.dtype not in NUMBERS or column.null_count():
            return None
        low, high = column.min(), column.max()
        if not isinstance(low, int) or not isinstance(high, int):
            return None
        found.append((low, high - low + 1))
        size *= high - low + 1
        if size > most:
            return None
    return found


def _above(column: pl.Series, low: int) -> Ints:
    """How far numbers are above the least of them."""
    if column.dtype == pl.UInt64:
        return (column.to_numpy() - np.uint64(low)).astype(np.int64)
    return column.cast(pl.Int64).to_numpy() - low


def _keys(frame: pl.DataFrame, by: Sequence[str], spans: Sequence[tuple[int, int]], places: Ints) -> list[pl.Series]:
    """The keys that have some places."""
    columns = []
    for name, (low, span) in zip(reversed(by), reversed(spans), strict=True):
        places, above = np.divmod(places, span) if name != by[0] else (places, places)
        dtype = frame.schema[name]
        number = above.astype(np.uint64) + np.uint64(low) if dtype == pl.UInt64 else above + low
        columns.append(pl.Series(name, number).cast(dtype))
    columns.reverse()
    return columns
