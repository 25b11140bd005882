"""Frames: what a frame may hold, how it becomes bytes, how two shapes become one, and what its hash covers.

The format's rules stand in docs/format.md; a change here that alters a digest is a change of format.
"""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import polars as pl

from .errors import InvalidEvent, MissingExtra, SchemaConflict, UnsupportedColumn

MAX_ROWS = 65_536
"""The most events that one run of a frame holds."""

Columns = dict[str, pl.DataType]


def as_frame(data: object) -> pl.DataFrame | None:
    """A Polars frame of a Polars, Arrow or pandas frame; None when it is none of these."""
    if isinstance(data, pl.DataFrame):
        return data
    if isinstance(data, pl.LazyFrame):
        return data.collect()
    module = type(data).__module__.partition(".")[0]
    if module == "pandas":
        _need("pandas", "pyarrow")
        return pl.from_pandas(data)
    if hasattr(data, "__arrow_c_stream__"):
        return pl.DataFrame(data)
    return None


def _need(extra: str, package: str) -> None:
    try:
        __import__(package)
    except ImportError as error:
        raise MissingExtra(extra, package) from error


def check_columns(frame: pl.DataFrame) -> None:
    """Refuse what cannot be stored.

    Raises:
        UnsupportedColumn: A column holds Python objects or a type without a stable encoding.
        InvalidEvent: The frame has no columns, or uses a column name that the log keeps for itself.
    """
    if not frame.width:
        raise InvalidEvent("the frame has no columns", hint="Give it at least one")
    for name, dtype in frame.schema.items():
        if not _supported(dtype):
            raise UnsupportedColumn(name, str(dtype))
        if name in RESERVED:
            raise InvalidEvent(f"column {name!r} is a name of the log's own", hint="Rename the column")


RESERVED = frozenset({"_position", "_stream", "_version", "_type", "_time"})


def _supported(dtype: pl.DataType) -> bool:
    if isinstance(dtype, pl.List | pl.Array):
        return _supported(dtype.inner)  # type: ignore[arg-type]
    if isinstance(dtype, pl.Struct):
        return bool(dtype.fields) and all(_supported(f.dtype) for f in dtype.fields)  # type: ignore[arg-type]
    return dtype.base_type() in _NAMES or isinstance(
        dtype, pl.Datetime | pl.Duration | pl.Decimal | pl.Enum | pl.Categorical
    )


_NAMES: dict[Any, str] = {
    pl.Int8: "i8",
    pl.Int16: "i16",
    pl.Int32: "i32",
    pl.Int64: "i64",
    pl.UInt8: "u8",
    pl.UInt16: "u16",
    pl.UInt32: "u32",
    pl.UInt64: "u64",
    pl.Float32: "f32",
    pl.Float64: "f64",
    pl.Boolean: "bool",
    pl.String: "str",
    pl.Binary: "bin",
    pl.Date: "date",
    pl.Time: "time",
    pl.Null: "null",
}
_TYPES: dict[str, Any] = {name: dtype for dtype, name in _NAMES.items()}


def normalise(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame as it is stored: one chunk, dictionaries of strings (categoricals, enums) as strings."""
    dictionaries = [n for n, t in frame.schema.items() if isinstance(t, pl.Categorical | pl.Enum)]
    if dictionaries:
        frame = frame.with_columns(pl.col(dictionaries).cast(pl.String))
    return frame.rechunk()


# --- shapes as text ----------------------------------------------------------------------------------


def _describe(dtype: pl.DataType) -> Any:
    if isinstance(dtype, pl.Datetime):
        return ["datetime", dtype.time_unit, dtype.time_zone]
    if isinstance(dtype, pl.Duration):
        return ["duration", dtype.time_unit]
    if isinstance(dtype, pl.Decimal):
        return ["decimal", dtype.precision, dtype.scale]
    if isinstance(dtype, pl.Array):
        return ["array", _describe(dtype.inner), dtype.size]  # type: ignore[arg-type]
    if isinstance(dtype, pl.List):
        return ["list", _describe(dtype.inner)]  # type: ignore[arg-type]
    if isinstance(dtype, pl.Struct):
        return ["struct", [[f.name, _describe(f.dtype)] for f in dtype.fields]]  # type: ignore[arg-type]
    if isinstance(dtype, pl.Enum | pl.Categorical):
        return "str"
    return _NAMES[dtype.base_type()]


def _undescribe(text: Any) -> pl.DataType:
    if isinstance(text, str):
        return _TYPES[text]()  # type: ignore[no-any-return]
    kind, *rest = text
    match kind:
        case "datetime":
            return pl.Datetime(rest[0], rest[1])
        case "duration":
            return pl.Duration(rest[0])
        case "decimal":
            return pl.Decimal(rest[0], rest[1])
        case "array":
            return pl.Array(_undescribe(rest[0]), rest[1])
        case "list":
            return pl.List(_undescribe(rest[0]))
        case _:
            return pl.Struct([pl.Field(name, _undescribe(inner)) for name, inner in rest[0]])


def schema_text(schema: pl.Schema) -> str:
    """The columns and types of a frame as the JSON text that the log keeps."""
    return msgspec.json.encode([[name, _describe(dtype)] for name, dtype in schema.items()]).decode()


def schema_columns(text: str) -> Columns:
    """The columns and types that a schema text stands for."""
    return {name: _undescribe(dtype) for name, dtype in msgspec.json.decode(text)}


def is_frame_schema(text: str) -> bool:
    """Whether a schema text is of a frame (events with a class have a number)."""
    return text.startswith("[")


# --- shapes together ---------------------------------------------------------------------------------

_INTEGERS = [pl.Int8, pl.Int16, pl.Int32, pl.Int64]
_UNSIGNED = [pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64]
_UNITS = ["ms", "us", "ns"]


def widen(a: pl.DataType, b: pl.DataType) -> pl.DataType | None:
    """The type that holds every value of both without loss, or None when there is none."""
    if a == b:
        return a
    for one, other in ((a, b), (b, a)):
        if isinstance(one, pl.Null):
            return other
        if one.base_type() in _INTEGERS and other.base_type() in _INTEGERS:
            return max((one, other), key=lambda t: _INTEGERS.index(t.base_type()))  # type: ignore[arg-type]
        if one.base_type() in _UNSIGNED and other.base_type() in _UNSIGNED:
            return max((one, other), key=lambda t: _UNSIGNED.index(t.base_type()))  # type: ignore[arg-type]
        if one.base_type() in _UNSIGNED[:3] and other.base_type() in _INTEGERS:
            need = _UNSIGNED.index(one.base_type()) + 1  # type: ignore[arg-type]
            have = _INTEGERS.index(other.base_type())  # type: ignore[arg-type]
            return _INTEGERS[max(need, have)]()
        if isinstance(one, pl.Float32) and isinstance(other, pl.Float64):
            return other
        if one.base_type() in (pl.Int8, pl.Int16, pl.UInt8, pl.UInt16) and other.is_float():
            return other
        if one.base_type() in (pl.Int32, pl.UInt32) and other.is_float():
            return pl.Float64()
        if isinstance(one, pl.Datetime) and isinstance(other, pl.Datetime):
            # Finer is wider in resolution and narrower in span: ms -> us loses nothing in practice, ns does.
            if one.time_zone == other.time_zone and "ns" not in (one.time_unit, other.time_unit):
                return pl.Datetime("us", one.time_zone)
            return None
        if isinstance(one, pl.Decimal) and isinstance(other, pl.Decimal):
            scale = max(one.scale, other.scale)
            whole = max((one.precision or 38) - one.scale, (other.precision or 38) - other.scale)
            return pl.Decimal(whole + scale, scale) if whole + scale <= 38 else None
        if isinstance(one, pl.List) and isinstance(other, pl.List):
            inner = widen(one.inner, other.inner)  # type: ignore[arg-type]
            return None if inner is None else pl.List(inner)
    return None


def union_columns(stream: str, known: Columns, more: Columns) -> Columns:
    """Both sets of columns as one, each type widened where need be.

    Raises:
        SchemaConflict: A column has two types that no type holds both of without loss.
    """
    union = dict(known)
    for name, dtype in more.items():
        if name not in union:
            union[name] = dtype
        elif union[name] != dtype:
            wider = widen(union[name], dtype)
            if wider is None:
                raise SchemaConflict(stream, name, str(union[name]), str(dtype))
            union[name] = wider
    return union


def conform(frame: pl.DataFrame, columns: Columns) -> pl.DataFrame:
    """The frame with exactly these columns, in this order: cast where narrower, null where missing."""
    if frame.schema == columns:
        return frame
    return frame.select(
        pl.col(name).cast(dtype) if name in frame.columns else pl.lit(None, dtype).alias(name)
        for name, dtype in columns.items()
    )


# --- bytes -------------------------------------------------------------------------------------------


def encode_frame(frame: pl.DataFrame) -> bytes:
    """The frame as an Arrow IPC stream, lz4-compressed."""
    buffer = io.BytesIO()
    frame.write_ipc_stream(buffer, compression="lz4")
    return buffer.getvalue()


def decode_frame(body: bytes, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """The frame of an Arrow IPC stream, or only some of its columns."""
    return pl.read_ipc_stream(body, columns=list(columns) if columns is not None else None)


def time_ranges(frame: pl.DataFrame) -> list[tuple[str, int, int]]:
    """Minimum and maximum, in microseconds, of each datetime column that has values."""
    names = [name for name, dtype in frame.schema.items() if isinstance(dtype, pl.Datetime)]
    if not names or not frame.height:
        return []
    # Nanoseconds are rounded outwards, so that a range never excludes a row.
    low = frame.select(pl.col(names).min().dt.epoch("us")).row(0)
    high = frame.select(pl.col(names).max().dt.epoch("us")).row(0)
    return [(n, a, b + 1) for n, a, b in zip(names, low, high, strict=True) if a is not None]


def frame_hash(frame: pl.DataFrame) -> bytes:
    """SHA-256 of a frame's content: names, types, nulls and values, whatever its buffers look like."""
    digest = hashlib.sha256(schema_text(frame.schema).encode())
    digest.update(struct.pack("<q", frame.height))
    for series in frame:
        _hash_series(digest, series)
    return digest.digest()


def _hash_series(digest: Any, series: pl.Series) -> None:
    if series.null_count():
        valid = series.is_not_null()
        digest.update(b"\x01")
        digest.update(valid.cast(pl.UInt8).to_numpy())
        series = series.drop_nulls()
    else:
        digest.update(b"\x00")
    dtype = series.dtype
    if isinstance(dtype, pl.String):
        digest.update(series.str.len_bytes().to_numpy())
        joined = series.str.join("").item()
        digest.update(joined.encode() if joined else b"")
    elif isinstance(dtype, pl.Binary):
        for value in series:
            digest.update(struct.pack("<I", len(value)))
            digest.update(value)
    elif isinstance(dtype, pl.Boolean):
        digest.update(series.cast(pl.UInt8).to_numpy())
    elif isinstance(dtype, pl.Decimal):
        _hash_series(digest, series.cast(pl.String))
    elif isinstance(dtype, pl.Array):
        _hash_series(digest, series.explode() if len(series) else pl.Series([], dtype=dtype.inner))
    elif isinstance(dtype, pl.List):
        lengths = series.list.len()
        digest.update(lengths.cast(pl.UInt32).to_numpy())
        _hash_series(digest, series.filter(lengths > 0).explode())
    elif isinstance(dtype, pl.Struct):
        for inner in series.struct.unnest():
            _hash_series(digest, inner)
    elif not isinstance(dtype, pl.Null):
        physical = series.to_physical().to_numpy()
        digest.update(physical.astype(physical.dtype.newbyteorder("<"), copy=False))


def split(frame: pl.DataFrame, rows: int = MAX_ROWS) -> Iterable[pl.DataFrame]:
    """The frame in pieces of at most ``rows`` rows, in order."""
    if frame.height <= rows:
        return [frame]
    return (frame.slice(start, rows) for start in range(0, frame.height, rows))
