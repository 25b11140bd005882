"""The columns beside documents: of which kinds they are, and which values of fields they hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from datetime import time as clock
from decimal import Decimal, localcontext
from enum import Enum
from typing import Any
from uuid import UUID

import msgspec
import polars as pl

from ..errors import UsageError
from ..personal import plain_text

_KINDS: dict[Any, tuple[str, pl.DataType]] = {
    msgspec.inspect.BoolType: ("boolean", pl.Boolean()),
    msgspec.inspect.IntType: ("bigint", pl.Int64()),
    msgspec.inspect.FloatType: ("double precision", pl.Float64()),
    msgspec.inspect.DecimalType: ("decimal(38, 10)", pl.Decimal(38, 10)),
    msgspec.inspect.TimeDeltaType: ("bigint", pl.Int64()),
}
"""Columns compare as their fields do: numbers as numbers, durations as microseconds, the rest as text in that order."""
_TEXT = ("text", pl.String())
_SMALLEST = Decimal(1).scaleb(-10)
_LARGEST = Decimal(10) ** 28
_BEYOND = 1 << 63


def kind_of(field: msgspec.inspect.Type) -> tuple[str, pl.DataType]:
    """The column of a field: its type in SQL and in a frame."""
    return _KINDS.get(_plain(field), _TEXT)


def _plain(found: msgspec.inspect.Type) -> type[msgspec.inspect.Type]:
    """What a column holds that may be empty."""
    if isinstance(found, msgspec.inspect.UnionType):
        kinds = {_plain(each) for each in found.types if not isinstance(each, msgspec.inspect.NoneType)}
        if kinds == {msgspec.inspect.IntType, msgspec.inspect.FloatType}:
            return msgspec.inspect.FloatType
        return kinds.pop() if len(kinds) == 1 else msgspec.inspect.AnyType
    values: Sequence[Any] = ()
    if isinstance(found, msgspec.inspect.EnumType):
        values = [each.value for each in found.cls]
    elif isinstance(found, msgspec.inspect.LiteralType):
        values = found.values
    return msgspec.inspect.IntType if values and all(type(each) is int for each in values) else type(found)


def given(value: Any, dialect: str) -> Any:
    """A value that columns are compared with, in the form that they have it in."""
    if isinstance(value, Decimal):
        return value_of(value, "") if dialect == "sqlite" else value
    if type(value) is int and not -_BEYOND <= value < _BEYOND and dialect != "postgresql":
        return math.copysign(math.inf, value)  # what no column reaches: all are on one side of it
    return value_of(value, "text") if isinstance(value, Enum | datetime | date | clock | timedelta | UUID) else value


def value_of(value: Any, kind: str) -> Any:
    """A field's value as a column of a kind holds it.

    Raises:
        UsageError: No column of that kind does.
    """
    if value is None or (type(value) is str and kind == "text"):
        return value
    if type(value) is int and kind == "bigint":
        return _whole(value, value)
    if isinstance(value, timedelta):
        return _whole(value // timedelta(microseconds=1), value)
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, Decimal) and kind != "text":
        if not value.is_finite():
            raise UsageError(f"{value} cannot be searched by as a number", hint="Leave it empty: Decimal | None")
        with localcontext() as digits:
            digits.prec = 80
            if abs(value) < _LARGEST and abs(rounded := value.quantize(_SMALLEST)) < _LARGEST:
                return format(rounded, "f")
        raise _refused(value, "28 digits before the point")
    if kind == "double precision":
        try:
            return float(value)
        except OverflowError as error:
            raise _refused(value, "a double") from error
    if kind != "text":
        return _whole(value, value) if kind == "bigint" else value
    if isinstance(value, str):
        return str.__str__(value)  # of a class of its own, such as that of `Erased`: plain text
    if isinstance(value, datetime):
        # In one zone, and of one length: so texts are in the order of times.
        return (value if value.tzinfo is None else value.astimezone(UTC)).isoformat(timespec="microseconds")
    if isinstance(value, clock):
        return value.isoformat(timespec="microseconds")
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, Decimal | int | float):
        return str(value)
    return msgspec.json.encode(value, enc_hook=plain_text).decode()


def _whole(number: int, value: Any) -> int:
    if not -_BEYOND <= number < _BEYOND:
        raise _refused(value, "64 bits")
    return number


def _refused(value: Any, bound: str) -> UsageError:
    try:
        shown = f"{value!r:.40}"
    except ValueError:  # an int of more digits than Python writes
        shown = f"an {type(value).__name__} of many digits"
    return UsageError(
        f"{shown} is beyond {bound}, which is what a column of a document holds",
        hint="Leave the field out of columns, or keep it as a text beside",
    )
