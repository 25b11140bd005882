"""Rows of a captured table as columns of a frame, typed by the table's shape."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import msgspec
import polars as pl

from ...errors import Rejected
from ..change import Row
from ..shape import Column
from ..values import Unchanged, encode_any, encode_value

_DTYPES: dict[str, Any] = {
    "bool": pl.Boolean,
    "int": pl.Int64,
    "uint": pl.UInt64,
    "float": pl.Float64,
    "bytes": pl.Binary,
    "date": pl.Date,
    "time": pl.Time,
    "timestamp": pl.Datetime("us"),
    "timestamptz": pl.Datetime("us", "UTC"),
    "duration": pl.Duration("us"),
}
"""By kind. All others are text, but decimals whose type says how long they are, lists, and ``any``."""

_DECIMAL = re.compile(r"\((\d+)\s*(?:,\s*(\d+))?\)")
_LONGEST = 38
_EXACT = 2**53


def dtype_of(column: Column) -> Any:
    """The type of a column; None for one of SQLite, which is that of its values."""
    kind = column.kind
    if kind == "any":
        return None
    if kind.endswith("[]"):
        return pl.List(dtype_of(Column(column.name, kind[:-2])))
    if kind == "decimal":
        found = _DECIMAL.search(column.type)
        if found is not None and int(found[1]) <= _LONGEST:
            return pl.Decimal(int(found[1]), int(found[2] or 0))
    return _DTYPES.get(kind, pl.String)


def series(name: str, values: Sequence[Any], column: Column) -> pl.Series:
    """A column of values.

    Raises:
        Rejected: One of them has no place in the column's type.
    """
    values = [None if value is Unchanged else value for value in values]
    dtype = dtype_of(column)
    if dtype is None:
        return _loose(name, values)
    if dtype == pl.String:
        return pl.Series(name, [_text(value, column.kind) for value in values], dtype=pl.String)
    for value in values:
        if value is not None and not _fits(value, dtype):
            raise Rejected(
                f"column {column.name!r} holds {str(value)!r:.60}, which its type {dtype} in the warehouse cannot;"
                f' kinds={{{column.name!r}: "text"}} makes it text'
            )
    if isinstance(dtype, pl.List):
        inner = Column(column.name, column.kind[:-2])
        values = [None if value is None else series(name, value, inner).to_list() for value in values]
    return pl.Series(name, values, dtype=dtype, strict=True)


def _fits(value: Any, dtype: Any) -> bool:
    if isinstance(dtype, pl.List):
        return isinstance(value, list) and not any(isinstance(item, list) for item in value)
    if isinstance(dtype, pl.Decimal):
        if not isinstance(value, Decimal) or not value.is_finite():
            return False
        _, digits, exponent = value.normalize().as_tuple()
        assert isinstance(exponent, int)
        return -exponent <= dtype.scale and len(digits) + exponent <= (dtype.precision or _LONGEST) - dtype.scale
    if dtype == pl.Int64:
        return isinstance(value, int) and -(2**63) <= value < 2**63
    if dtype == pl.UInt64:
        return isinstance(value, int) and 0 <= value < 2**64
    return not isinstance(value, str)


def _loose(name: str, values: Sequence[Any]) -> pl.Series:
    kinds = {type(value) for value in values} - {type(None)}
    if kinds <= {int}:
        return pl.Series(name, values, dtype=pl.Int64 if kinds else pl.Null)
    if kinds <= {int, float} and all(abs(v) <= _EXACT for v in values if type(v) is int):
        return pl.Series(name, [None if v is None else float(v) for v in values], dtype=pl.Float64)
    if kinds <= {bytes}:
        return pl.Series(name, values, dtype=pl.Binary)
    return pl.Series(name, [_text(value, "any") for value in values], dtype=pl.String)


def _text(value: Any, kind: str) -> str | None:
    if value is None or type(value) is str:
        return value
    if kind == "any":
        value = encode_any(value)
        return msgspec.json.encode(value).decode() if isinstance(value, dict) else str(value)
    told = encode_value(value, kind)
    return told if isinstance(told, str) else msgspec.json.encode(told).decode()


def frame(rows: Sequence[Row], columns: Sequence[Column], kinds: Mapping[str, str], prefix: str = "") -> pl.DataFrame:
    """Rows as a frame; what a row does not have is null.

    Args:
        kinds: Kinds that take the place of those of some columns.
        prefix: What the frame's columns begin with.
    """
    return pl.DataFrame(
        [series(prefix + c.name, [row.get(c.name) for row in rows], with_kind(c, kinds)) for c in columns]
    )


def with_kind(column: Column, kinds: Mapping[str, str]) -> Column:
    """A column with the kind that was asked for."""
    kind = kinds.get(column.name)
    return column if kind is None else Column(column.name, kind, "")
