"""From how a column is held to what a reader gets: columns typed by their kinds."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec
import polars as pl

from ..values import decode_any, decoder
from .lines import Held

_CLOCK = r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,6})?"
_DAY = r"([1-9]\d{3}|0[1-9]\d\d|00[1-9]\d|000[1-9])-\d\d-\d\d"
_DATE = rf"^{_DAY}$"
_TIME = rf"^{_CLOCK}$"
_TIMESTAMP = rf"^{_DAY}T{_CLOCK}$"
_UTC = rf"^{_DAY}T{_CLOCK}Z$"
_ZONED = rf"^{_DAY}T{_CLOCK}(Z|[+-]\d\d:?\d\d)$"
_DURATION = r"^(-?)(\d{1,7}):(\d\d):(\d\d)(?:\.(\d{1,6}))?$"
_DECIMAL = r"^[+-]?\d+(\.\d+)?$"
_WHOLE = r"^-?\d+$"
_REAL = r"^-?\d+\.\d+(e[+-]?\d+)?$"
_SCALE = re.compile(r"\(\d+,\s*(\d+)\)")
_MOST_DIGITS = 38

_decode = msgspec.json.Decoder().decode


def typed_column(column: pl.Series, held: Held) -> pl.Series:
    """A column with the type of its kind; as text where one of its values is beyond what that type holds."""
    if held.kind == "any":
        return _any(column) if held.json else column
    if held.kind.endswith("[]") or held.json:
        return _decoded(column, held)
    make = _TYPES.get(held.kind)
    if make is None or column.null_count() == len(column):
        return column.cast(_EMPTY[held.kind]) if make is not None and held.kind in _EMPTY else column
    made = make(column, held)
    # What could not be read has become null: then no value of the column is changed.
    return made if made is not None and made.null_count() == column.null_count() else column


def python_values(column: pl.Series, held: Held) -> list[Any]:
    """The values of a column as the source holds them (see `millstream.cdc.values`)."""
    decode = decoder(held.kind)
    values = column.to_list()
    if held.json:
        values = [None if text is None else _decode(text) for text in values]
    if decode is None:
        return values

    def known(value: Any) -> Any:
        try:
            return None if value is None else decode(value)
        except (TypeError, ValueError, ArithmeticError, AttributeError):
            return value  # of another kind than its column

    return list(map(known, values))


def _fits(column: pl.Series, pattern: str) -> bool:
    return bool(column.str.contains(pattern).all())


def _decimal(column: pl.Series, held: Held) -> pl.Series | None:
    if not _fits(column, _DECIMAL):
        return None
    parts = column.str.strip_chars_start("+-").str.split_exact(".", 1).struct.unnest()
    whole = _longest(parts["field_0"].str.strip_chars_start("0"))
    said = _SCALE.search(held.type)
    scale = max(_longest(parts["field_1"]), int(said[1]) if said else 0)
    if whole + scale > _MOST_DIGITS:
        return None
    return column.str.strip_chars_start("+").cast(pl.Decimal(_MOST_DIGITS, scale), strict=False)


def _longest(texts: pl.Series) -> int:
    return max((length for length in texts.str.len_bytes().unique() if length is not None), default=0)


def _date(column: pl.Series, held: Held) -> pl.Series | None:
    return column.str.to_date("%Y-%m-%d", strict=False) if _fits(column, _DATE) else None


def _time(column: pl.Series, held: Held) -> pl.Series | None:
    return column.str.to_time("%H:%M:%S%.f", strict=False) if _fits(column, _TIME) else None


def _timestamp(column: pl.Series, held: Held) -> pl.Series | None:
    if not _fits(column, _TIMESTAMP):
        return None
    return column.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f", time_unit="us", strict=False)


def _timestamptz(column: pl.Series, held: Held) -> pl.Series | None:
    if _fits(column, _UTC):
        plain = column.str.head(-1).str.to_datetime("%Y-%m-%dT%H:%M:%S%.f", time_unit="us", strict=False)
        return plain.dt.replace_time_zone("UTC")
    if not _fits(column, _ZONED):
        return None
    zoned = column.str.replace("Z$", "+00:00")
    return zoned.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%#z", time_unit="us", time_zone="UTC", strict=False)


def _duration(column: pl.Series, held: Held) -> pl.Series | None:
    if not _fits(column, _DURATION):
        return None
    sign, hours, minutes, seconds, fraction = (column.str.extract(_DURATION, group) for group in range(1, 6))
    clock = (hours.cast(pl.Int64) * 60 + minutes.cast(pl.Int64)) * 60 + seconds.cast(pl.Int64)
    micros = clock * 1_000_000 + fraction.fill_null("").str.pad_end(6, "0").cast(pl.Int64)
    return (micros * pl.select(pl.when(sign == "-").then(-1).otherwise(1)).to_series()).cast(pl.Duration("us"))


def _bytes(column: pl.Series, held: Held) -> pl.Series | None:
    return column.str.decode("base64", strict=False)


_TYPES: dict[str, Callable[[pl.Series, Held], pl.Series | None]] = {
    "decimal": _decimal,
    "date": _date,
    "time": _time,
    "timestamp": _timestamp,
    "timestamptz": _timestamptz,
    "duration": _duration,
    "bytes": _bytes,
}
_EMPTY: dict[str, Any] = {
    "date": pl.Date(),
    "time": pl.Time(),
    "timestamp": pl.Datetime("us"),
    "timestamptz": pl.Datetime("us", "UTC"),
    "duration": pl.Duration("us"),
    "bytes": pl.Binary(),
}

# --- lists, and columns that hold what they are given ---------------------------------------------------

_ITEMS: dict[str, Any] = {
    "bool": pl.Boolean(),
    "int": pl.Int64(),
    "uint": pl.UInt64(),
    "float": pl.Float64(),
    "text": pl.String(),
    "bytes": pl.Binary(),
    "date": pl.Date(),
    "time": pl.Time(),
    "timestamp": pl.Datetime("us"),
    "timestamptz": pl.Datetime("us", "UTC"),
    "duration": pl.Duration("us"),
}


def _decoded(column: pl.Series, held: Held) -> pl.Series:
    """A column of lists, or one that holds a value that its kind does not know."""
    if not held.kind.endswith("[]"):
        return series_of_values(column.name, python_values(column, held))
    inner = held.kind.rstrip("[]")
    try:
        if inner in _ITEMS:
            return pl.Series(column.name, python_values(column, held), dtype=pl.List(_ITEMS[inner]), strict=True)
        # What is text in JSON and has no type of its own stays so: decimals of any size, UUIDs, intervals.
        values = [None if text is None else _decode(text) for text in column.to_list()]
        return pl.Series(column.name, values, dtype=pl.List(pl.String()), strict=True)
    except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError):
        return column  # of more than one dimension, or with an item that its type cannot hold


def _any(column: pl.Series) -> pl.Series:
    """A column of SQLite's values. It has the type that all of them have; one that mixes them is text."""
    if column.null_count() < len(column):
        if _fits(column, _WHOLE):
            return column.cast(pl.Int64)
        if _fits(column, _REAL):
            return column.cast(pl.Float64)
        if _fits(column, r'^"[^"\\]*"$'):
            return column.str.slice(1).str.head(-1)
    return series_of_values(column.name, [None if text is None else decode_any(_decode(text)) for text in column])


def series_of_values(name: str, values: list[Any]) -> pl.Series:
    """Values of SQLite as a column."""
    kinds = {type(value) for value in values} - {type(None)}
    if kinds <= {int}:
        dtype: Any = pl.Int64 if kinds else pl.Null
    elif kinds <= {int, float}:
        dtype, values = pl.Float64, [None if v is None else float(v) for v in values]
    elif kinds <= {bytes}:
        dtype = pl.Binary
    else:
        dtype, values = pl.String, [_text(value) for value in values]
    try:
        return pl.Series(name, values, dtype=dtype)
    except (TypeError, OverflowError, pl.exceptions.PolarsError):  # a whole number of more than 64 bits
        return pl.Series(name, [_text(value) for value in values], dtype=pl.String)


def _text(value: Any) -> str | None:
    if value is None:
        return None
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
