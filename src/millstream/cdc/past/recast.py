"""Columns of rows from one way to hold them to another."""

from __future__ import annotations

from typing import Any

import msgspec
import polars as pl

from ...conversion import ready
from ..shape import Column, Shape
from ..values import encode_value
from .lines import Held


def in_json(column: pl.Series, held: Held) -> list[Any]:
    """The values of a column as they stand in a `Change`."""
    if held.json:
        return [None if text is None else _decode(text) for text in column]
    if held.kind == "float":
        return [None if value is None else encode_value(value, "float") for value in column]
    return column.to_list()


_decode = msgspec.json.Decoder().decode


def as_json(column: pl.Series) -> pl.Series:
    """A column that was held plain, as JSON."""
    # NaN and the infinities are texts in JSON.
    values = [None if value is None else msgspec.json.encode(encode_value(value, "float")).decode() for value in column]
    return pl.Series(column.name, values, dtype=pl.String)


_WIDER = {(one, other) for one in ("int", "uint") for other in ("int", "uint", "float", "decimal")}


def recast(column: pl.Series, before: Held, now: Held) -> pl.Series | None:
    """A column as another kind holds it; None when that cannot be said."""
    if before.kind == now.kind or column.null_count() == len(column):
        return column.cast(now.dtype)
    if before.json or now.json or (before.kind, now.kind) not in _WIDER:
        return None
    try:
        return column.cast(now.dtype, strict=True)
    except pl.exceptions.PolarsError:
        return None


class _Names(msgspec.Struct):
    before: dict[str, msgspec.Raw] | None
    after: dict[str, msgspec.Raw] | None


def shape_of_rows(text: bytes) -> Shape:
    """The shape of rows whose run does not tell one: columns of any values, and no key."""
    names: dict[str, None] = {}
    for line in msgspec.json.Decoder(ready(_Names)).decode_lines(text):
        names.update(dict.fromkeys((*(line.before or ()), *(line.after or ()))))
    return Shape(tuple(map(Column, names)))
