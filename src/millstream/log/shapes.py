"""Events of a class as columns at once, where the class says what type each of its fields is."""

from __future__ import annotations

import types
from collections.abc import Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from operator import attrgetter
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
import polars as pl

from ..conversion import ready
from ..events import Event, Plain, decoder
from ..personal import shape_of
from .objects import series_of
from .records import Run
from .singles import Singles

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
    try:
        return _shapes[cls]
    except KeyError:
        if len(_shapes) >= _KEPT:
            _shapes.clear()
        found = _shapes[cls] = _shape(cls)
        return found


_shapes: dict[type[Any], Shape | None] = {}
_KEPT = 256


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


def _array(group: Sequence[Run | Singles]) -> str | bytes:
    """The events of JSON runs as one JSON array."""
    if len(group) == 1:
        first = group[0]
        return first.array() if isinstance(first, Singles) else b"[" + first.text().replace(b"\n", b",") + b"]"
    texts = [run.body for run in group if type(run) is Run and isinstance(run.body, str)]
    if len(texts) == len(group):
        return "[" + ",".join(texts) + "]"
    return b"[" + b",".join([run.text().replace(b"\n", b",") for run in group]) + b"]"
