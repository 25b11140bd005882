"""Events of a class as columns at once, where the class says what type each of its fields is."""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from operator import attrgetter
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints
from uuid import UUID

import msgspec
import polars as pl

from ..conversion import ready
from ..events import Event, Plain, decoder
from ..frames import Columns
from ..personal import shape_of
from .objects import series_of
from .records import Run
from .singles import Singles

Found = TypeVar("Found")

_DTYPES: dict[Any, pl.DataType] = {
    int: pl.Int64(),
    float: pl.Float64(),
    str: pl.String(),
    bool: pl.Boolean(),
    date: pl.Date(),
    timedelta: pl.Duration("us"),
}
_MIXED = pl.Unknown()
"""What no one type of column holds."""


class Shape(msgspec.Struct, frozen=True):
    """How the JSON of a class becomes columns at once.

    Attributes:
        columns: Name → type; None for what is found from the values (decimals, times).
        decode: Decodes many objects, given as one JSON array.
    """

    columns: dict[str, pl.DataType | None]
    decode: Any

    def events(self, group: Sequence[Run | Singles]) -> list[Any]:
        """The events of JSON runs of the class.

        Raises:
            msgspec.DecodeError: One of them does not fit it.
        """
        return self.decode(_array(group))  # type: ignore[no-any-return]

    def column(self, name: str, events: Sequence[Any]) -> pl.Series:
        """One field of events as a column.

        Raises:
            OverflowError, TypeError, PolarsError: Its type cannot hold a value, such as a whole number beyond 64 bits.
        """
        values, dtype = list(map(attrgetter(name), events)), self.columns[name]
        return series_of(name, values) if dtype is None else pl.Series(name, values, dtype=dtype, strict=True)


def shape(cls: type[Any]) -> Shape | None:
    """How a class becomes columns at once; None when its fields are not all plain values under their own names."""
    return _remembered(_shapes, cls, _shape)


_shapes: dict[type[Any], Shape | None] = {}
_KEPT = 256


def _remembered(known: dict[type[Any], Found], cls: type[Any], make: Callable[[type[Any]], Found]) -> Found:
    """What was found of a class before, or is now; of so many classes."""
    try:
        return known[cls]
    except KeyError:
        if len(known) >= _KEPT:
            known.clear()
        found = known[cls] = make(cls)
        return found


def _shape(cls: type[Any]) -> Shape | None:
    if cls is Plain or not issubclass(cls, Event) or shape_of(cls) is not None:
        return None
    if cls.__struct_encode_fields__ != cls.__struct_fields__ or cls.__struct_config__.omit_defaults:
        return None
    try:
        hints = get_type_hints(cls)
        columns = {name: _dtype(hints[name]) for name in cls.__struct_fields__}
        decoder(cls)  # what refuses the class says so here
    except Exception:
        return None
    if not columns or any(isinstance(dtype, pl.Unknown) for dtype in columns.values()):
        return None
    return Shape(columns, msgspec.json.Decoder(ready(list[cls])).decode)  # type: ignore[valid-type]


def _dtype(annotation: Any) -> pl.DataType | None:
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
        return _dtype(kinds[0]) if len(kinds) == 1 else _MIXED
    if origin is Literal and {type(each) for each in get_args(annotation)} == {str}:
        return pl.String()
    if annotation in (Decimal, datetime):
        return None
    return _DTYPES.get(annotation, _MIXED)


def types_said(cls: type[Any]) -> Columns:
    """The types that a class says of its fields, by their names in JSON, as their values have them in columns.

    It is for fields that have had no value yet. One may be missing here: of any type, or a time of which it is not said
    whether it has a zone.
    """
    return _remembered(_said_by, cls, _fields)


_said_by: dict[type[Any], Columns] = {}


def _fields(cls: type[Any], within: tuple[type[Any], ...] = ()) -> Columns:
    try:
        hints = get_type_hints(cls, include_extras=True)
    except Exception:
        return {}
    within = (*within, cls)
    said = {each.encode_name: _said(hints[each.name], within) for each in msgspec.structs.fields(cls)}
    return {name: dtype for name, dtype in said.items() if dtype is not None}


def _said(annotation: Any, within: tuple[type[Any], ...], zoned: bool | None = None) -> pl.DataType | None:
    """The type of values that are annotated so, in a field of these classes, one within the other."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        zones = [each.tz for each in inner[1:] if isinstance(each, msgspec.Meta) and each.tz is not None]
        return _said(inner[0], within, zones[-1] if zones else zoned)
    if origin in (Union, types.UnionType):
        kinds = [kind for kind in inner if kind is not type(None)]
        return _said(kinds[0], within, zoned) if len(kinds) == 1 else None
    if annotation is datetime:
        return None if zoned is None else pl.Datetime("us", "UTC" if zoned else None)
    if origin in (list, set, frozenset) or (origin is tuple and inner[1:] == (...,)):
        of = _said(inner[0], within)
        return None if of is None else pl.List(of)
    if origin is Literal:
        return _common_type(inner)
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return _common_type([each.value for each in annotation])
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return _struct(annotation, within)
    return _SAID.get(annotation) if isinstance(annotation, type) else None


def _struct(cls: type[msgspec.Struct], within: tuple[type[Any], ...]) -> pl.DataType | None:
    config = cls.__struct_config__
    if cls in within or config.omit_defaults or config.array_like or config.tag is not None:
        return None  # It may hold itself, or fields that are not always there.
    fields = _fields(cls, within)
    return pl.Struct(fields) if fields and len(fields) == len(cls.__struct_fields__) else None


def _common_type(values: Sequence[Any]) -> pl.DataType | None:
    kinds = set(map(type, values))
    return _DTYPES[kinds.pop()] if kinds in ({str}, {int}) else None


_SAID: dict[Any, pl.DataType] = _DTYPES | {
    time: pl.Time(),
    bytes: pl.Binary(),
    UUID: pl.String(),
    Decimal: pl.Decimal(38, 0),
}


def _array(group: Sequence[Run | Singles]) -> str | bytes:
    """The events of JSON runs as one JSON array."""
    if len(group) == 1:
        first = group[0]
        return first.array() if isinstance(first, Singles) else b"[" + first.text().replace(b"\n", b",") + b"]"
    texts = [run.body for run in group if type(run) is Run and isinstance(run.body, str)]
    if len(texts) == len(group):
        return "[" + ",".join(texts) + "]"
    return b"[" + b",".join([run.text().replace(b"\n", b",") for run in group]) + b"]"
