"""JSON objects as columns: each field of many events as one column whose type holds every value without loss.

Objects have no declared columns. A field that is a number in one event and text in another, or now a list and now
an object, has no common type: such values become text, those that were not text as JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from math import isfinite, isnan
from typing import Any

import msgspec
import polars as pl

from ..errors import DamagedLog
from ..events import Event, decoder
from ..frames import Columns, columns_together, conform, python_values, widen
from ..personal import Erased, plain_text, shape_of

_AS_THEY_ARE = (Decimal, datetime, date, time, timedelta, bytes)
_SCALARS: dict[type, Callable[[], pl.DataType]] = {
    bool: pl.Boolean,
    float: pl.Float64,
    str: pl.String,
    date: pl.Date,
    bytes: pl.Binary,
}
_LONGEST = timedelta(microseconds=(1 << 63) - 1)
"""What a column of durations holds; Python's own go further."""
_DEEPEST = 32
"""So many levels of objects and lists have types of their own; what lies deeper is text."""
_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder(enc_hook=plain_text).encode


def values_of(lines: Sequence[Any], cls: type[Event] | None, position: int) -> list[dict[str, Any]]:
    """Each event's fields as plain values: by its class, if there is one that all of them fit, else as JSON has them.

    Raises:
        DamagedLog: A line is not a JSON object.
    """
    try:
        if cls is not None:
            return _typed(lines, cls)
    except msgspec.ValidationError:
        pass  # an older shape of the class: its plain data is readable all the same
    except msgspec.DecodeError as error:
        raise DamagedLog(position, f"its JSON cannot be decoded ({error})") from error
    try:
        return [_decode(line) for line in lines]
    except msgspec.DecodeError as error:
        raise DamagedLog(position, f"its JSON cannot be decoded ({error})") from error


def values_one_by_one(lines: Sequence[Any], cls: type[Event] | None, position: int) -> list[dict[str, Any]]:
    """The same, but an event that does not fit its class does not change how its neighbours are read."""
    if cls is not None and len(lines) > 1:
        try:
            return _typed(lines, cls)
        except msgspec.ValidationError:
            return [values_of([line], cls, position)[0] for line in lines]
        except msgspec.DecodeError as error:
            raise DamagedLog(position, f"its JSON cannot be decoded ({error})") from error
    return values_of(lines, cls, position)


def _typed(lines: Sequence[Any], cls: type[Event]) -> list[dict[str, Any]]:
    decode = decoder(cls).decode
    rows = [plain_values(decode(line)) for line in lines]
    shape = shape_of(cls)
    if shape is not None:
        # A column of dates stays one of dates: what was erased of it is null.
        for name in shape.fields.keys() - shape.textual:
            for row in rows:
                if row.get(name) == Erased:
                    row[name] = None
    return rows


def plain_values(value: Any) -> dict[str, Any]:
    """A struct, or a dict of anything, as a dict of values that a column can hold."""
    return plain_value(value)  # type: ignore[no-any-return]


def plain_value(value: Any) -> Any:
    """A value as a column can hold it: structs as dicts, sets as lists."""
    if type(value) in _SCALARS:
        return value
    try:
        return msgspec.to_builtins(value, builtin_types=_AS_THEY_ARE, str_keys=True, enc_hook=plain_text)
    except TypeError:
        return _with_text_keys(value)


def _with_text_keys(value: Any) -> Any:
    """The same of a value in which the keys of a dict are numbers or dates: they become what they are in JSON."""
    if isinstance(value, msgspec.Struct):
        fields = msgspec.structs.fields(type(value))
        return {each.encode_name: _with_text_keys(getattr(value, each.name)) for each in fields}
    if isinstance(value, Mapping):
        keys = _decode(_encode(dict.fromkeys(value)))
        return {key: _with_text_keys(each) for key, each in zip(keys, value.values(), strict=True)}
    if isinstance(value, list | tuple | set | frozenset):
        return [_with_text_keys(each) for each in value]
    if isinstance(value, msgspec.Raw):
        return _decode(value)
    return value if type(value) in _AS_THEY_ARE else msgspec.to_builtins(value, enc_hook=plain_text)


def columns_of(rows: Sequence[dict[str, Any]], depth: int = 0) -> Columns:
    """The columns of some objects, in order of first appearance."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: _infer([row.get(name) for row in rows], depth) for name in names}


def union(known: Columns, more: Columns) -> Columns:
    """Both sets of columns as one; what has no common type becomes text."""
    both = dict(known)
    for name, dtype in more.items():
        both[name] = _common(both[name], dtype) if name in both else dtype
    return both


def frame_of_objects(rows: Sequence[dict[str, Any]], columns: Columns) -> pl.DataFrame:
    """The objects as a frame with these columns, null where an object lacks one."""
    series = [series_of(name, [row.get(name) for row in rows], dtype) for name, dtype in columns.items()]
    return columns_together(series) if series else pl.DataFrame(height=len(rows))


def series_of(name: str, values: Sequence[Any], dtype: pl.DataType | None = None) -> pl.Series:
    """Plain values as a column of a type; by default of the one that holds all of them."""
    dtype = dtype or _infer(values)
    return pl.Series(name, [_fit(value, dtype) for value in values], dtype=dtype)


def fitted(frame: pl.DataFrame, columns: Columns) -> pl.DataFrame:
    """The frame with exactly these columns, no type narrower than its own; what has become text is as JSON has it."""
    series = []
    for name, dtype in columns.items():
        if name not in frame.columns:
            series.append(pl.Series(name, [None] * frame.height, dtype=dtype))
        elif frame.schema[name] == dtype:
            series.append(frame[name])
        elif isinstance(dtype, pl.String | pl.Struct | pl.List):
            series.append(pl.Series(name, [_fit(value, dtype) for value in _listed(frame[name])], dtype=dtype))
        else:
            series.append(frame[name].cast(dtype))
    return columns_together(series) if series else frame


def _listed(column: pl.Series) -> list[Any]:
    with python_values(f"column {column.name!r}, which meets values of other types,"):
        return column.to_list()


def shaped(frame: pl.DataFrame, columns: Columns) -> pl.DataFrame:
    """The frame with exactly these columns: cast where its own are narrower; what has become text is as JSON has it."""
    become = {
        name: dtype
        for name, dtype in columns.items()
        if name in frame.columns and _becomes_text(frame.schema[name], dtype)
    }
    return conform(frame.with_columns(fitted(frame, become).get_columns()) if become else frame, columns)


def _becomes_text(a: pl.DataType, b: pl.DataType) -> bool:
    """Whether values become text that is more than what they say themselves."""
    if isinstance(a, pl.List) and isinstance(b, pl.List):
        return _becomes_text(a.inner, b.inner)  # type: ignore[arg-type]
    if isinstance(a, pl.Struct) and isinstance(b, pl.Struct):
        inner = {field.name: field.dtype for field in b.fields}
        return any(_becomes_text(f.dtype, inner[f.name]) for f in a.fields if f.name in inner)  # type: ignore[arg-type]
    plain = (pl.String, pl.Null, pl.Categorical, pl.Enum)
    return isinstance(b, pl.String) and not (isinstance(a, plain) or a.is_integer())


def _infer(values: Iterable[Any], depth: int = 0) -> pl.DataType:
    present = [value for value in values if value is not None]
    kinds = {list if isinstance(value, tuple) else type(value) for value in present}
    if not kinds:
        return pl.Null()
    if kinds == {int}:
        low, high = min(present), max(present)
        if low >= -(1 << 63) and high < 1 << 63:
            return pl.Int64()
        return pl.UInt64() if low >= 0 and high < 1 << 64 else pl.String()
    if kinds == {int, float}:
        exact = all(-(1 << 53) <= value <= 1 << 53 for value in present if type(value) is int)
        return pl.Float64() if exact else pl.String()
    if len(kinds) > 1:
        return pl.String()
    kind = kinds.pop()
    if kind in _SCALARS:
        return _SCALARS[kind]()
    if kind is Decimal:
        if not all(value.is_finite() for value in present):
            return pl.String()
        scale = max(_scale(value) for value in present)
        whole = max(value.adjusted() + 1 for value in present)
        return pl.Decimal(38, scale) if scale + max(whole, 0) <= 38 else pl.String()
    if kind is datetime:
        zones = {value.tzinfo is not None for value in present}
        return pl.Datetime("us", "UTC" if True in zones else None) if len(zones) == 1 else pl.String()
    if kind is time and all(value.tzinfo is None for value in present):
        return pl.Time()
    if kind is timedelta and min(present) >= -_LONGEST and max(present) <= _LONGEST:
        return pl.Duration("us")
    if kind is list and depth < _DEEPEST:
        return pl.List(_infer((item for value in present for item in value), depth + 1))
    if kind is dict and any(present) and depth < _DEEPEST:
        return pl.Struct(columns_of(present, depth + 1))
    return pl.String()


def _scale(value: Decimal) -> int:
    exponent = value.as_tuple().exponent
    return -exponent if isinstance(exponent, int) and exponent < 0 else 0


def _common(a: pl.DataType, b: pl.DataType) -> pl.DataType:
    if a == b:
        return a
    if isinstance(a, pl.Decimal) and isinstance(b, pl.Decimal):
        return pl.Decimal(38, max(a.scale, b.scale))
    if isinstance(a, pl.List) and isinstance(b, pl.List):
        return pl.List(_common(a.inner, b.inner))  # type: ignore[arg-type]
    if isinstance(a, pl.Struct) and isinstance(b, pl.Struct):
        fields = (dict(zip((f.name for f in s.fields), (f.dtype for f in s.fields), strict=True)) for s in (a, b))
        return pl.Struct(union(*fields))  # type: ignore[arg-type]
    if {type(a), type(b)} == {pl.Int64, pl.Float64}:
        return pl.Float64()
    return widen(a, b) or pl.String()


def _fit(value: Any, dtype: pl.DataType) -> Any:
    """The value as the column's type takes it."""
    if value is None:
        return None
    if isinstance(dtype, pl.String):
        if isinstance(value, str | Decimal):
            return str(value)
        if isinstance(value, float) and not isfinite(value):
            # JSON has none of these: they were in a frame.
            return "NaN" if isnan(value) else "inf" if value > 0 else "-inf"
        text = _encode(value).decode()
        # What JSON has as text is that text, without the quotes: so a time is still read as a time.
        return str(msgspec.json.decode(text)) if text.startswith('"') else text
    if isinstance(dtype, pl.Float64):
        return float(value)
    if isinstance(dtype, pl.List):
        return [_fit(item, dtype.inner) for item in value]  # type: ignore[arg-type]
    if isinstance(dtype, pl.Struct):
        return {f.name: _fit(value.get(f.name), f.dtype) for f in dtype.fields}  # type: ignore[arg-type]
    return value
