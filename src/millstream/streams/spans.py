"""What stretches of a sorted run come to: by running totals, by blocks, or by going over their rows.

Totals of integers can be taken from one another, so that a stretch is two look-ups. Minima, maxima and sums of floats
cannot: they are kept of blocks of 1, 2, 4… rows, and a stretch is made of at most two blocks of each size (the
bottom-up walk of a segment tree). For any other aggregate the rows of each stretch are laid out one after another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
import polars as pl

from .aggregates import Aggregation, partials_of
from .columns import AT, SEQUENCE
from .expressions import is_rowwise
from .joins import spans
from .keys import Ints
from .partials import Partial

_PAIRS = 1 << 20
"""So many rows are laid out at a time, but for a single stretch that has more."""

_ROW = "__row"

_EXTREMES = {
    ("min", True): (np.minimum, np.iinfo(np.int64).max),
    ("max", True): (np.maximum, np.iinfo(np.int64).min),
    # What Polars says of NaN: it counts only where there is nothing else.
    ("min", False): (np.fmin, np.nan),
    ("max", False): (np.fmax, np.nan),
}


class Track(msgspec.Struct, frozen=True, eq=False):
    """A number that is kept beside each row of a run, and how those of a stretch become one."""

    value: pl.Expr
    combine: np.ufunc | None = None
    """None for running totals."""
    nothing: float = 0

    def built(self, values: Ints) -> Any:
        """What a run keeps so that its stretches can be answered."""
        if self.combine is None:
            return np.concatenate([[0], np.cumsum(values)])
        levels = [values]
        while len(levels[-1]) > 1:
            below = levels[-1]
            if len(below) % 2:
                below = np.append(below, np.asarray(self.nothing, values.dtype))
            levels.append(self.combine(below[::2], below[1::2]))
        return levels

    def over(self, built: Any, begins: Ints, ends: Ints) -> Ints:
        """What each of some stretches comes to."""
        if self.combine is None:
            totals: Ints = built[ends] - built[begins]
            return totals
        out = np.full(len(begins), self.nothing, built[0].dtype)
        begins, ends = begins.copy(), ends.copy()
        for level in built:
            if not (begins < ends).any():
                break
            first = np.flatnonzero((begins < ends) & (begins & 1 == 1))
            out[first] = self.combine(out[first], level[begins[first]])
            begins[first] += 1
            last = np.flatnonzero((begins < ends) & (ends & 1 == 1))
            ends[last] -= 1
            out[last] = self.combine(out[last], level[ends[last]])
            begins >>= 1
            ends >>= 1
        return out

    def added(self, one: Ints, other: Ints) -> Ints:
        """What two stretches come to together."""
        found: Ints = one + other if self.combine is None else self.combine(one, other)
        return found


class Answer(msgspec.Struct, frozen=True, eq=False):
    """How one partial is answered; without a track it is the number of rows."""

    name: str
    tracks: tuple[Track, ...]
    dtype: pl.DataType

    def series(self, found: Sequence[Ints], counts: Ints) -> pl.Series:
        """The partial of each stretch."""
        values = pl.Series(self.name, found[0] if found else counts)
        if len(found) > 1:
            # The second track counts what is not null. Without any, a narrower type cannot hold what stands there.
            values = values.set(pl.Series(found[1] == 0), None)
        return values.cast(self.dtype)


def answers(aggregation: Aggregation, schema: pl.Schema) -> list[Answer] | None:
    """How the partials are answered from tracks; None when one of them needs the rows."""
    found = [_answer(partial, schema) for partial in aggregation.partials]
    return None if None in found else [each for each in found if each is not None]


def _answer(partial: Partial, schema: pl.Schema) -> Answer | None:
    value = partial.value
    if value is None:
        return Answer(partial.name, (), pl.Int64()) if partial.kind == "len" else None
    if not is_rowwise(value):
        return None
    present = Track(value.is_not_null().cast(pl.Int64))
    if partial.kind == "count":
        return Answer(partial.name, (present,), pl.Int64())
    if partial.kind == "len":
        return Answer(partial.name, (), pl.Int64())
    if partial.kind == "sum":
        dtype = partial.sum_type(schema)
        if dtype == pl.Int64:
            return Answer(partial.name, (Track(value.cast(pl.Int64).fill_null(0)),), dtype)
        if dtype == pl.Float64:
            return Answer(partial.name, (Track(value.cast(pl.Float64).fill_null(0.0), np.add),), dtype)
        return None
    if partial.kind not in ("min", "max"):
        return None
    dtype = pl.DataFrame(schema=schema).lazy().select(value).collect_schema().dtypes()[0]
    whole = (dtype.is_signed_integer() and dtype != pl.Int128) or dtype in (pl.UInt8, pl.UInt16, pl.UInt32)
    whole = whole or isinstance(dtype, pl.Datetime | pl.Duration | pl.Date)
    if not whole and not dtype.is_float():
        return None
    combine, nothing = _EXTREMES[partial.kind, whole]
    number = value.to_physical().cast(pl.Int64) if whole else value.cast(pl.Float64)
    return Answer(partial.name, (Track(number.fill_null(nothing), combine, nothing), present), dtype)


def laid_out(
    aggregation: Aggregation, rows: pl.DataFrame, among: pl.DataFrame, keys: Sequence[str], span: int
) -> pl.DataFrame:
    """The partials of each row's stretch: those rows of its key whose time is at most ``span`` before its own."""
    needed = among.select(*aggregation.reads, AT, SEQUENCE)
    if not rows.height:
        return _computed(aggregation, needed.clear().with_columns(pl.lit(None, pl.Int64).alias(_ROW)))
    begins, ends, order = spans(rows, among, keys, -span, 0, nulls=True)
    counts = ends - begins
    parts = []
    for low, high in _chunks(counts):
        size, starts = counts[low:high], begins[low:high]
        which = np.repeat(np.arange(low, high), size)
        places = order[np.arange(len(which)) - np.repeat(np.cumsum(size) - size - starts, size)]
        parts.append(_computed(aggregation, needed[places].with_columns(pl.Series(_ROW, which, pl.Int64))))
    return pl.concat(parts)


def _chunks(counts: Ints) -> Iterator[tuple[int, int]]:
    """Stretches in groups of not too many rows together."""
    reached = np.cumsum(counts)
    low = 0
    while low < len(counts):
        before = reached[low - 1] if low else 0
        high = max(int(reached.searchsorted(before + _PAIRS, side="right")), low + 1)
        yield low, high
        low = high


def _computed(aggregation: Aggregation, pairs: pl.DataFrame) -> pl.DataFrame:
    merged = partials_of(aggregation, pairs, [_ROW]).sort(_ROW)
    return aggregation.finished(merged).drop(_ROW)
