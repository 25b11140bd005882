"""Keys as small integers, for indexes that pack key and time into one number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from .columns import need
from .errors import FlowError

Ints = np.ndarray[Any, np.dtype[Any]]


class KeyIds:
    """Numbers for the keys of one operator, given as they first occur; a cache, not part of any state.

    A single integer key that is small enough is its own number (plus one; null is zero). Other keys are
    numbered by a private set of Polars categories (plus one; a text that is null is zero, since any text may be
    a key), which costs as much as the batch, not as the set. An
    index that has outlived most of its keys starts with a new `KeyIds`, so that keys that came and went do
    not add up.
    """

    def __init__(self, columns: Sequence[str], *, direct: bool = True) -> None:
        self.columns = tuple(columns)
        self.direct = direct and len(columns) == 1
        categories = pl.Categories.random()
        # Polars forgets the numbers once no series of the type is left.
        self._held = pl.Series([], dtype=pl.Categorical(categories))
        self._known: list[pl.DataFrame] = []
        self._numbers: list[Ints] = []
        self.count = 1
        self._dtype: pl.DataType = pl.Int64()
        """Of a key that is its own number, the type."""

    def takes(self, frame: pl.DataFrame, bits: int) -> bool:
        """Whether the keys of a frame fit numbers of so many bits."""
        if not self.direct or not frame.height:
            return True
        key = frame[self.columns[0]]
        if not key.dtype.is_integer():
            return False
        low, high = key.min(), key.max()
        if not isinstance(low, int) or not isinstance(high, int):
            return True
        return low >= 0 and high < 2**bits - 2

    def encode(self, frame: pl.DataFrame) -> Ints:
        """The number of each row's key."""
        need(self.columns, frame.columns, "group_by")
        if not self.columns:
            return np.zeros(frame.height, np.int64)
        if self.direct:
            self._dtype = frame.schema[self.columns[0]]
            key = frame[self.columns[0]].cast(pl.Int64)
            if key.null_count():
                return (key + 1).fill_null(0).to_numpy()
            return key.to_numpy() + 1
        texts = frame.select(_text([frame.schema[c] for c in self.columns], self.columns)).to_series()
        numbers = texts.cast(self._held.dtype).to_physical().cast(pl.Int64) + 1
        ids: Ints = numbers.fill_null(0).to_numpy()
        self._learn(frame, ids)
        return ids

    def _learn(self, frame: pl.DataFrame, ids: Ints) -> None:
        if not self._known:
            self._known, self._numbers = [frame.clear(1).select(self.columns)], [np.zeros(1, np.int64)]
        fresh = ids >= self.count
        if not fresh.any():
            return
        numbers, rows = np.unique(ids[fresh], return_index=True)
        self._known.append(frame.select(self.columns)[np.flatnonzero(fresh)[rows]])
        self._numbers.append(numbers)
        self.count = int(numbers[-1]) + 1
        if len(self._known) > 32:
            self._gather()

    def _gather(self) -> None:
        self._known = [pl.concat(self._known, how="vertical_relaxed")]
        self._numbers = [np.concatenate(self._numbers)]

    def decode(self, ids: Ints) -> pl.DataFrame:
        """The key columns of these numbers."""
        if not self.columns:
            return pl.DataFrame(height=len(ids))
        if self.direct:
            name = self.columns[0]
            key = pl.Series(name, ids, pl.Int64)
            known = pl.when(pl.col(name) > 0).then(pl.col(name) - 1)
            return pl.DataFrame({name: key}).select(known.cast(self._dtype))
        self._gather()
        return self._known[0][self._numbers[0].searchsorted(ids)]


def unsigned(frame: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    """With zeros as keys without their sign: of two that are one key, which comes first depends on the batch."""
    floats = [_unsigned(frame.schema[key], key).alias(key) for key in keys if frame.schema[key].is_float()]
    return frame.with_columns(floats) if floats else frame


def _unsigned(dtype: pl.DataType, column: str) -> pl.Expr:
    return pl.when(pl.col(column) == 0).then(pl.lit(0, dtype)).otherwise(pl.col(column))


def _text(dtypes: Sequence[pl.DataType], columns: Sequence[str]) -> pl.Expr:
    """One text for a key, different for different keys: of several columns each value with its length before it.

    A key of one column that is null has none.
    """
    if len(columns) == 1:
        return _plain(dtypes[0], columns[0])
    pieces = []
    for dtype, column in zip(dtypes, columns, strict=True):
        text = _plain(dtype, column)
        pieces.append(pl.concat_str(text.str.len_bytes().cast(pl.String), pl.lit(":"), text).fill_null("-"))
    return pl.concat_str(pieces)


def _plain(dtype: pl.DataType, column: str) -> pl.Expr:
    if dtype.is_nested():
        raise FlowError(
            f"{column!r} is {dtype}, which is no key here", hint="Make it text, or take a part of it, with with_columns"
        )
    if dtype.is_float():
        # Zero has two signs and is one key.
        return _unsigned(dtype, column).cast(pl.String)
    if dtype == pl.Binary:
        return pl.col(column).bin.encode("hex")
    if dtype.is_temporal():
        # As text there are some that Polars does not have.
        return pl.col(column).to_physical().cast(pl.String)
    return pl.col(column) if dtype == pl.String else pl.col(column).cast(pl.String)
