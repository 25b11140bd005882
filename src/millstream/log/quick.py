"""JSON straight into columns whose types are known: many times as fast as by way of dicts.

It is taken only where that would give the same: every value is of its column's type, and no field is new. Anything else
is left to the slower way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from operator import attrgetter
from typing import Any

import msgspec
import polars as pl

from ..frames import Columns, columns_together
from .records import Run
from .shapes import shape
from .singles import Singles

_AT_ONCE = 8192
"""So many rows are decoded at a time, where runs allow."""

_LOW, _HIGH = -(1 << 63), (1 << 63) - 1


def quick_frame(group: Sequence[Run | Singles], known: Columns, wanted: frozenset[str] | None) -> pl.DataFrame | None:
    """The rows of JSON runs of one kind, in the columns so far; None where they are not for this way.

    Args:
        wanted: The fields to read; None for all.
    """
    if not known:
        return None
    pieces = []
    for part in _parts(group):
        piece = _piece(part, known, wanted)
        if piece is None:
            return None
        pieces.append(piece)
    return pieces[0] if len(pieces) == 1 else pl.concat(pieces)


def _parts(group: Sequence[Run | Singles]) -> Iterator[Sequence[Run | Singles]]:
    """Runs, so many at a time that what is decoded of them stays in the processor's cache until it is in columns."""
    begin = rows = 0
    for end, run in enumerate(group, start=1):
        rows += run.count
        if rows >= _AT_ONCE or end == len(group):
            yield group[begin:end]
            begin, rows = end, 0


def _piece(group: Sequence[Run | Singles], known: Columns, wanted: frozenset[str] | None) -> pl.DataFrame | None:
    cls = group[0].decodes_as
    if cls is not None:
        return _typed(group, cls, known, wanted)
    names = tuple(known)
    kinds = tuple(_kind(dtype) for dtype in known.values())
    if None in kinds:
        return None
    more = None if wanted is None else tuple(sorted(wanted.difference(names)))
    decoder = _decoder(names, kinds, more)
    if decoder is None:
        return None
    try:
        rows = decoder.decode_lines(b"\n".join([run.text() for run in group]))
    except msgspec.DecodeError:
        return None  # also where it is no JSON: who reads it then, says so
    if len(rows) != sum(run.count for run in group):
        return None
    unknown = [attrgetter(f"m{i}") for i in range(len(more or ()))]
    if any(value is not msgspec.UNSET for get in unknown for value in map(get, rows)):
        return None
    try:
        return columns_together(
            _series(name, dtype, list(map(attrgetter(f"c{index}"), rows)))
            for index, (name, dtype) in enumerate(known.items())
        )
    except (OverflowError, TypeError):  # a whole number of more than 64 bits
        return None


def _typed(
    group: Sequence[Run | Singles], cls: type[Any], known: Columns, wanted: frozenset[str] | None
) -> pl.DataFrame | None:
    found = shape(cls)
    if found is None:
        return None
    names = [name for name in found.columns if wanted is None or name in wanted]
    if not known.keys() >= set(names):
        return None
    try:
        events = found.events(group)
        columns = {name: found.column(name, events) for name in names}
    except (msgspec.DecodeError, OverflowError, TypeError, pl.exceptions.PolarsError):
        return None
    height = sum(run.count for run in group)
    if len(events) != height:
        return None
    series = []
    for name, dtype in known.items():
        column = columns.get(name)
        if column is None or column.null_count() == height:
            column = pl.repeat(None, height, dtype=dtype, eager=True).alias(name)
        elif column.dtype != dtype:
            return None
        series.append(column)
    return columns_together(series)


def _series(name: str, dtype: pl.DataType, values: list[Any]) -> pl.Series:
    """Values of a type as a column.

    Raises:
        OverflowError, TypeError: It would not be what the slower way makes of them.
    """
    if isinstance(dtype, pl.Float64):
        if int in set(map(type, values)):
            integers = [value for value in values if type(value) is int]
            if min(integers) < _LOW or max(integers) > _HIGH:
                raise OverflowError
            values = [float(value) if type(value) is int else value for value in values]
    elif isinstance(dtype, pl.Struct):
        there = pl.Series(value is not None for value in values)
        held = [value for value in values if value is not None]
        fields = [
            _series(field.name, field.dtype, list(map(attrgetter(f"c{index}"), held)))  # type: ignore[arg-type]
            for index, field in enumerate(dtype.fields)
        ]
        opened = columns_together(fields)
        if opened.select(pl.all_horizontal(pl.all().is_null()).any()).item():
            raise TypeError  # it may be an object without fields, which has no type
        places = (there.cast(pl.Int64).cum_sum() - 1).set(~there, None)
        return opened.to_struct(name).gather(places) if held else pl.Series(name, values, dtype=dtype)
    return pl.Series(name, values, dtype=dtype)


_KINDS: dict[Any, str] = {
    pl.Int64: "int",
    pl.Float64: "float",
    pl.String: "text",
    pl.Boolean: "bool",
    pl.Null: "null",
}
Kind = str | tuple[tuple[str, Any], ...]
"""What a type is here; of objects, the names and kinds of their fields."""


def _kind(dtype: Any) -> Kind | None:
    if not isinstance(dtype, pl.Struct):
        return _KINDS.get(type(dtype))
    fields = tuple((field.name, _kind(field.dtype)) for field in dtype.fields)
    return fields if fields and all(kind is not None for _, kind in fields) else None


_TYPES: dict[str, Any] = {
    "int": int | None,
    "float": float | int | None,
    "text": str | None,
    "bool": bool | None,
    "null": None,
}


@lru_cache(maxsize=256)
def _decoder(
    names: tuple[str, ...], kinds: tuple[Kind, ...], more: tuple[str, ...] | None
) -> msgspec.json.Decoder[Any] | None:
    """Decodes rows into structs with attributes ``c0``, ``c1``… for what is known, and ``m0``… for what is not."""
    try:
        return msgspec.json.Decoder(_struct(names, kinds, more))
    except ValueError:  # names that a struct's fields cannot have
        return None


def _struct(names: tuple[str, ...], kinds: tuple[Kind, ...], more: tuple[str, ...] | None) -> Any:
    types = [_TYPES[kind] if isinstance(kind, str) else _object(kind) for kind in kinds]
    fields: list[tuple[str, Any, Any]] = [(f"c{i}", each, None) for i, each in enumerate(types)]
    rename = {f"c{i}": name for i, name in enumerate(names)}
    for i, name in enumerate(more or ()):
        fields.append((f"m{i}", msgspec.Raw | msgspec.UnsetType, msgspec.UNSET))
        rename[f"m{i}"] = name
    return msgspec.defstruct("Row", fields, rename=rename, gc=False, forbid_unknown_fields=more is None)


def _object(kind: tuple[tuple[str, Any], ...]) -> Any:
    return _struct(tuple(name for name, _ in kind), tuple(inner for _, inner in kind), None) | None
