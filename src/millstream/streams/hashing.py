"""A number for each value that is the same in every process, on every machine and with every version of Polars.

What a flow keeps of hashes is read again by later versions, so they must not change. Numbers that are equal have equal
hashes whatever their type, since a column of integers may become one of floats.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from ..time import DAY
from .errors import UnsupportedExpression

Hashes = np.ndarray[Any, np.dtype[np.uint64]]

_NULL, _TRUE_TEXT, _NOT_A_NUMBER = np.uint64(0x9E3779B97F4A7C15), np.uint64(0x7465787400000000), np.uint64(0x7FF8 << 48)
_LOW = (1 << 64) - 1
_EXACT = float(1 << 53)
"""Whole numbers beyond this have no float of their own."""


def hashed(values: pl.Series) -> Hashes:
    """64 bits for each value; null is a value.

    Raises:
        UnsupportedExpression: Values of this type are not told apart here.
    """
    dtype = values.dtype
    found: Hashes
    if isinstance(dtype, pl.Struct):
        found = np.full(len(values), _NULL)
        for field in dtype.fields:
            found = mixed(found ^ hashed(values.struct.field(field.name)))
    elif dtype.is_float():
        found = _of_floats(values.cast(pl.Float64).fill_null(0.0).to_numpy())
    elif dtype == pl.UInt64:
        found = mixed(values.fill_null(0).to_numpy())
    elif dtype in (pl.Int128, pl.UInt128):
        found = _of_long(values.fill_null(0).to_list())
    elif dtype.is_integer() or dtype == pl.Boolean:
        found = mixed(values.cast(pl.Int64).fill_null(0).to_numpy().view(np.uint64))
    elif isinstance(dtype, pl.Date) or (isinstance(dtype, pl.Datetime) and dtype.time_unit == "ms"):
        # As microseconds, which for the farthest are more than 64 bits hold, and more than Polars has.
        number = values.to_physical().cast(pl.Int64).fill_null(0).to_numpy()
        found = mixed((number * (DAY if isinstance(dtype, pl.Date) else 1_000)).view(np.uint64))
    elif isinstance(dtype, pl.Datetime):
        found = mixed(values.cast(pl.Datetime("us")).to_physical().fill_null(0).to_numpy().view(np.uint64))
    elif isinstance(dtype, pl.Duration):
        found = mixed(values.cast(pl.Duration("us")).to_physical().fill_null(0).to_numpy().view(np.uint64))
    elif isinstance(dtype, pl.Decimal):
        found = _of_floats(values.cast(pl.Float64).fill_null(0.0).to_numpy())
    elif dtype in (pl.String, pl.Categorical, pl.Enum):
        text = values.cast(pl.String).fill_null("")
        found = _of_bytes(text.str.join("").item().encode(), text.str.len_bytes().to_numpy())
    elif dtype == pl.Binary:
        held = values.fill_null(b"")
        found = _of_bytes(b"".join(held.to_list()), held.bin.size().to_numpy())
    elif dtype == pl.Null:
        found = np.full(len(values), _NULL)
    else:
        raise UnsupportedExpression(
            f"approx_n_unique of {values.name!r}", "agg", f"values of type {dtype} have no hash", hint="Make them text"
        )
    if values.null_count():
        found = np.where(values.is_null().to_numpy(), _NULL, found)
    return found


def _of_long(values: list[int]) -> Hashes:
    """Of what 64 bits hold, the hash that it has there."""
    low = np.array([value & _LOW for value in values], np.uint64)
    high = np.array([value >> 64 & _LOW if not -(1 << 63) <= value <= _LOW else 0 for value in values], np.uint64)
    return mixed(np.where(high == 0, low, low ^ mixed(high)))


def mixed(values: Hashes) -> Hashes:
    """Each bit of a value spread over all bits (the finalizer of SplitMix64; Steele, Lea and Flood, 2014)."""
    z = values + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _of_floats(values: np.ndarray[Any, np.dtype[np.float64]]) -> Hashes:
    whole = (np.floor(values) == values) & (np.abs(values) <= _EXACT)
    bits = np.where(np.isnan(values), _NOT_A_NUMBER, values.view(np.uint64))
    integers = np.where(whole, values, 0.0).astype(np.int64).view(np.uint64)
    return mixed(np.where(whole, integers, bits))


def _of_bytes(data: bytes, sizes: np.ndarray[Any, Any]) -> Hashes:
    """Eight bytes at a time of all texts that are so long."""
    sizes = sizes.astype(np.int64)
    starts = np.cumsum(sizes) - sizes
    padded = data + b"\0" * 8
    words: Hashes = np.ndarray((len(data) + 1,), "<u8", padded, strides=(1,))
    found = mixed(sizes.view(np.uint64) ^ _TRUE_TEXT)
    alive = np.flatnonzero(sizes > 0)
    done = 0
    while len(alive):
        left = np.minimum(sizes[alive] - done, 8)
        kept = np.uint64(0xFFFFFFFFFFFFFFFF) >> (64 - 8 * left).astype(np.uint64)
        found[alive] = mixed(found[alive] ^ (words[starts[alive] + done] & kept))
        done += 8
        alive = alive[sizes[alive] > done]
    return found
