"""Frames: what a frame may hold, how it becomes bytes, how two shapes become one, and what its hash covers.

The format's rules stand in docs/format.md; a change here that alters a digest is a change of format.
"""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import polars as pl

from .errors import InvalidEvent, MissingExtra, SchemaConflict, UnsupportedColumn
from .events import ENVELOPE_NAMES

MAX_ROWS = 65_536
"""The most events that one run of a frame holds."""

Columns = dict[str, pl.DataType]


def as_frame(data: object) -> pl.DataFrame | None:
    """A Polars frame of a Polars, Arrow or pandas frame; None when it is none of these.

    Raises:
        InvalidEvent: It is a frame that Polars cannot read.
    """
    if isinstance(data, pl.DataFrame):
        return data
    try:
        if isinstance(data, pl.LazyFrame):
            return data.collect()
        if type(data).__module__.partition(".")[0] == "pandas":
            _need("pandas", "pyarrow")
            found = pl.from_pandas(data)
            return found if isinstance(found, pl.DataFrame) else found.to_frame()
        if hasattr(data, "__arrow_c_stream__"):
            return pl.DataFrame(data)
    except MissingExtra:
        raise
    except (Exception, pl.exceptions.PanicException) as error:
        raise InvalidEvent(f"the frame cannot be read: {error}", hint="Make it a Polars frame first") from error
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


RESERVED = ENVELOPE_NAMES


def _supported(dtype: pl.DataType) -> bool:
    if isinstance(dtype, pl.Array):
        return dtype.size > 0 and _supported(dtype.inner)  # type: ignore[arg-type]
    if isinstance(dtype, pl.List):
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
    """The frame as it is stored: one chunk, dictionaries of strings (categoricals, enums) as strings, at any depth."""
    stored = {name: _stored(dtype) for name, dtype in frame.schema.items()}
    changed = [pl.col(name).cast(dtype) for name, dtype in stored.items() if dtype != frame.schema[name]]
    if changed:
        frame = frame.with_columns(changed)
    return frame.rechunk()


def _stored(dtype: pl.DataType) -> pl.DataType:
    if isinstance(dtype, pl.Enum | pl.Categorical):
        return pl.String()
    if isinstance(dtype, pl.Array):
        return pl.Array(_stored(dtype.inner), dtype.size)  # type: ignore[arg-type]
    if isinstance(dtype, pl.List):
        return pl.List(_stored(dtype.inner))  # type: ignore[arg-type]
    if isinstance(dtype, pl.Struct):
        return pl.Struct([pl.Field(f.name, _stored(f.dtype)) for f in dtype.fields])  # type: ignore[arg-type]
    return dtype


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
        case "sealed":
            return _undescribe(rest[1])
        case "list":
            return pl.List(_undescribe(rest[0]))
        case _:
            return pl.Struct([pl.Field(name, _undescribe(inner)) for name, inner in rest[0]])


def schema_text(schema: pl.Schema, sealed: Mapping[str, str] | None = None) -> str:
    """The columns and types of a frame as the JSON text that the log keeps.

    Args:
        sealed: Columns that are sealed, each with the column that says whose its values are.
    """
    columns = []
    for name, dtype in schema.items():
        kind = _describe(dtype)
        columns.append([name, ["sealed", sealed[name], kind] if sealed and name in sealed else kind])
    return msgspec.json.encode(columns).decode()


def sealed_columns(text: str) -> dict[str, tuple[str, pl.DataType]]:
    """The columns that a schema text says are sealed: which column says whose they are, and the type inside."""
    return {
        name: (kind[1], _undescribe(kind))
        for name, kind in msgspec.json.decode(text)
        if isinstance(kind, list) and kind[0] == "sealed"
    }


def schema_columns(text: str) -> Columns:
    """The columns and types that a schema text stands for; of a sealed column, the type inside."""
    return {name: _undescribe(dtype) for name, dtype in msgspec.json.decode(text)}


def is_frame_schema(text: str) -> bool:
    """Whether a schema text is of a frame (events with a class have a number)."""
    return text.startswith("[")


# --- shapes together ---------------------------------------------------------------------------------

_INTEGERS = [pl.Int8, pl.Int16, pl.Int32, pl.Int64]
_UNSIGNED = [pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64]


def widen(a: pl.DataType, b: pl.DataType) -> pl.DataType | None:
    """The type that holds every value of both without loss, or None when there is none."""
    return join([a, b])


def join(types: Sequence[pl.DataType]) -> pl.DataType | None:
    """The type that holds every value of all these types without loss, in whatever order; None when there is none."""
    present = list(dict.fromkeys(t for t in types if not isinstance(t, pl.Null)))
    if len(present) < 2:
        return present[0] if present else pl.Null()
    bases = {t.base_type() for t in present}
    if bases <= _NUMBERS:
        return _join_numbers(bases)
    if len(bases) > 1:
        return None
    first = present[0]
    if isinstance(first, pl.Datetime):
        # Finer is wider in resolution and narrower in span: ms -> us loses nothing in practice, ns does.
        zones, units = {t.time_zone for t in present}, {t.time_unit for t in present}  # type: ignore[attr-defined]
        return pl.Datetime("us", first.time_zone) if len(zones) == 1 and "ns" not in units else None
    if isinstance(first, pl.Decimal):
        scale = max(t.scale for t in present)  # type: ignore[attr-defined]
        whole = max((t.precision or 38) - t.scale for t in present)  # type: ignore[attr-defined]
        return pl.Decimal(whole + scale, scale) if whole + scale <= 38 else None
    if isinstance(first, pl.List):
        inner = join([t.inner for t in present])  # type: ignore[attr-defined]
        return None if inner is None else pl.List(inner)
    return None


_NUMBERS = {*_INTEGERS, *_UNSIGNED, pl.Float32, pl.Float64}


def _join_numbers(bases: set[Any]) -> pl.DataType | None:
    signed = [8 << _INTEGERS.index(t) for t in bases if t in _INTEGERS]
    unsigned = [8 << _UNSIGNED.index(t) for t in bases if t in _UNSIGNED]
    bits = max([*signed, *(size + 1 if signed else size for size in unsigned)], default=0)
    if pl.Float64 in bases or pl.Float32 in bases:
        widest = max([*signed, *unsigned], default=0)
        if pl.Float64 not in bases and widest <= 16:
            return pl.Float32()
        return pl.Float64() if widest <= 32 else None
    if not signed:
        return _UNSIGNED[[8, 16, 32, 64].index(bits)]()
    return next((t() for t, size in zip(_INTEGERS, (8, 16, 32, 64), strict=True) if size >= bits), None)


def join_columns(stream: str, shapes: Iterable[Columns]) -> Columns:
    """All these sets of columns as one, each type widened where need be. The order of the shapes does not matter.

    Raises:
        SchemaConflict: A column has types that no type holds all of without loss.
    """
    types: dict[str, list[pl.DataType]] = {}
    for shape in shapes:
        for name, dtype in shape.items():
            types.setdefault(name, []).append(dtype)
    union: Columns = {}
    for name, found in types.items():
        wider = join(found)
        if wider is None:
            stored, given = join(found[:-1]) or found[0], found[-1]
            raise SchemaConflict(stream, name, str(stored), str(given))
        union[name] = wider
    return union


def union_columns(stream: str, known: Columns, more: Columns) -> Columns:
    """Two sets of columns as one; see `join_columns`."""
    return join_columns(stream, (known, more))


def conform(frame: pl.DataFrame, columns: Columns) -> pl.DataFrame:
    """The frame with exactly these columns, in this order: cast where narrower, null where missing."""
    if frame.schema == columns:
        return frame
    # Whole columns of nulls, not literals: a selection of literals alone would have one row.
    return frame.select(
        pl.col(name).cast(dtype)
        if name in frame.columns
        else pl.repeat(None, frame.height, dtype=dtype, eager=True).alias(name)
        for name, dtype in columns.items()
    )


def columns_together(series: Iterable[pl.Series]) -> pl.DataFrame:
    """Columns as a frame that has their names, the empty one, too: Polars gives that another in a list of columns."""
    return pl.DataFrame({each.name: each for each in series})


@contextmanager
def python_values(what: str) -> Iterator[None]:
    """While values of a frame become Python's own.

    Raises:
        InvalidEvent: There is one that Python does not have, such as a date in the year 0.
    """
    try:
        yield
    except msgspec.MsgspecError:
        raise
    except (OverflowError, ValueError, pl.exceptions.PanicException) as error:
        raise InvalidEvent(
            f"{what} holds a value that Python does not have: {error}",
            hint="Read it as a frame, or cast the column to a number or to text",
        ) from error


# --- bytes -------------------------------------------------------------------------------------------


def encode_frame(frame: pl.DataFrame) -> bytes:
    """The frame as an Arrow IPC stream, lz4-compressed."""
    buffer = io.BytesIO()
    # Polars locks a frame while it writes it, and waits for the interpreter meanwhile: another thread that only asked
    # for the frame's height would stand still with it for ever. So what is written is nobody else's.
    frame.clone().write_ipc_stream(buffer, compression="lz4")
    return buffer.getvalue()


def decode_frame(body: bytes, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """The frame of an Arrow IPC stream, or only some of its columns."""
    return pl.read_ipc_stream(body, columns=list(columns) if columns is not None else None)


def time_ranges(frame: pl.DataFrame) -> list[tuple[str, int, int]]:
    """Minimum and maximum, in microseconds, of each datetime column that has values."""
    found = []
    for name, dtype in frame.schema.items():
        if isinstance(dtype, pl.Datetime):
            numbers = frame[name].cast(pl.Int64)
            first, last = numbers.min(), numbers.max()
            if isinstance(first, int) and isinstance(last, int):
                more, less = _MICROS[dtype.time_unit]
                # Rounded outwards, and cut to what can be kept, so that a range never excludes a row.
                low, high = _kept(first * more // less), _kept(last * more // less + 1)
                found.append((name, low, high))
    return found


_MICROS = {"ms": (1000, 1), "us": (1, 1), "ns": (1, 1000)}
"""Of a unit of time, how many microseconds are how many of it."""
_FARTHEST = (1 << 63) - 1


def _kept(end: int) -> int:
    return max(-_FARTHEST, min(end, _FARTHEST))


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
        physical = (series if dtype.is_numeric() else series.to_physical()).to_numpy()
        digest.update(physical.astype(physical.dtype.newbyteorder("<"), copy=False))


def split(frame: pl.DataFrame, rows: int = MAX_ROWS) -> Iterable[pl.DataFrame]:
    """The frame in pieces of at most ``rows`` rows, in order."""
    if frame.height <= rows:
        return [frame]
    return (frame.slice(start, rows) for start in range(0, frame.height, rows))
