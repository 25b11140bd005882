"""State as bytes: numbers as small as they are, everything else as Arrow.

A commit writes the rows that the state has gained, and to compress them can take longer than to work on them. Whole
numbers of one column are mostly near each other: times within a window, keys, positions. So each is stored as what it
has beyond the least, or beyond the one before it, in as few bytes as that fits. A column that is equal to another, as
the time of a row often is to a column of its own, is stored once.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np
import polars as pl

from ..conversion import ready
from ..frames import decode_frame, encode_frame, schema_columns, schema_text
from .keys import Ints

_MARK = b"MSP1"
"""What packed rows begin with. An Arrow stream, as state was stored before, begins with four bytes of ones."""

_LOOK = 64
"""Numbers that are looked at before all are, to see whether each is little more than the one before."""


class _Packed(msgspec.Struct, frozen=True, array_like=True):
    """How a column of numbers is stored."""

    column: int
    base: int = 0
    kind: str = ""
    """The kind of what is stored beyond the base, as numpy names it; of none, all are the base."""
    steps: bool = False
    """Whether each is what it has beyond the one before; else beyond the base."""
    same: int | None = None
    """The column that it is equal to, of which alone the numbers are stored."""


class _Head(msgspec.Struct, frozen=True, array_like=True):
    height: int
    schema: str
    """Of the columns that are packed."""
    packed: list[_Packed]


def pack(frame: pl.DataFrame) -> bytes:
    """The rows as bytes."""
    packed: list[_Packed] = []
    pieces: list[bytes] = []
    known: dict[int, Ints] = {}
    others = []
    for column, series in enumerate(frame):
        values = _numbers(series)
        found = None if values is None else _equal(column, values, known) or _small(column, values)
        if found is None:
            others.append(series)
            continue
        packed.append(found[0])
        pieces.append(found[1])
        if values is not None and found[0].same is None:
            known[column] = values
    schema = pl.Schema({frame.columns[each.column]: frame.dtypes[each.column] for each in packed})
    head = msgspec.msgpack.encode(_Head(frame.height, schema_text(schema), packed))
    if others:
        pieces.append(encode_frame(pl.DataFrame(others)))
    return b"".join((_MARK, len(head).to_bytes(4, "little"), head, *pieces))


def unpack(body: bytes) -> pl.DataFrame:
    """The rows that these bytes are."""
    if not body.startswith(_MARK):
        return decode_frame(body)
    offset = 8 + int.from_bytes(body[4:8], "little")
    head = msgspec.msgpack.decode(memoryview(body)[8:offset], type=ready(_Head))
    found: dict[int, pl.Series] = {}
    for (name, dtype), each in zip(schema_columns(head.schema).items(), head.packed, strict=True):
        if each.same is not None:
            found[each.column] = found[each.same].to_physical().cast(dtype).alias(name)
            continue
        if each.kind:
            numbers = np.frombuffer(body, f"<{each.kind}", head.height, offset)
            offset += numbers.nbytes
            values = numbers.cumsum(dtype=np.int64) if each.steps else numbers.astype(np.int64)
            values += each.base
        else:
            values = np.full(head.height, each.base, np.int64)
        series = pl.Series(name, values)
        found[each.column] = series if dtype == pl.Int64 else series.cast(dtype)
    if offset == len(body):
        return pl.DataFrame(list(found.values()))
    others = list(decode_frame(body[offset:]))
    for column in range(len(found) + len(others)):
        if column in found:
            others.insert(column, found[column])
    return pl.DataFrame(others)


def _numbers(series: pl.Series) -> Ints | None:
    """The whole numbers of 64 bits that a column is; None where it is of another kind, or has nulls, or none."""
    if series.dtype.base_type() not in _WHOLE or series.null_count() or not len(series):
        return None
    values: Ints = series.to_physical().to_numpy()
    return values


_WHOLE = (pl.Int64, pl.Datetime, pl.Duration, pl.Time)


def _equal(column: int, values: Ints, known: Mapping[int, Ints]) -> tuple[_Packed, bytes] | None:
    """A column as another that it is equal to."""
    for other, held in known.items():
        if values[0] == held[0] and values[-1] == held[-1] and np.array_equal(values, held):
            return _Packed(column, same=other), b""
    return None


def _small(column: int, values: Ints) -> tuple[_Packed, bytes] | None:
    """A column in fewer bytes than it has; None where it takes eight for each."""
    least, most = int(values.min()), int(values.max())
    if least == most:
        return _Packed(column, least), b""
    kind = next((kind for bits, kind in _KINDS if most - least < 1 << bits), None)
    if kind != "u1" and _is_little(np.diff(values[:_LOOK])):
        steps = np.diff(values, prepend=values[:1])
        if _is_little(steps):
            return _Packed(column, int(values[0]), "u1", steps=True), steps.astype("u1").tobytes()
    if kind is None:
        return None
    numbers = values.astype(kind)
    # What was cut off is cut off from both, so that the rest may be taken from one another.
    numbers -= numbers.dtype.type(least % (1 << 8 * numbers.itemsize))
    return _Packed(column, least, kind), numbers.tobytes()


_KINDS = ((8, "u1"), (16, "u2"), (32, "u4"))


def _is_little(steps: Ints) -> bool:
    """Whether what numbers have beyond those before them fits a byte."""
    return not len(steps) or bool(steps.min() >= 0 and steps.max() < 1 << 8)
