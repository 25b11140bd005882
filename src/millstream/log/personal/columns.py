"""Personal columns of frames: sealed row by row, and unsealed to the type that they had.

A sealed column is one of bytes: nonce, encrypted text and tag of the value as MessagePack; nothing for a value that was
erased before it came here. Whose a row is stands in the subject's column. The schema of the kind says of a column
``["sealed", subject's column, type]``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import msgspec
import polars as pl

from ...errors import InvalidEvent
from ...frames import python_values, schema_text, sealed_columns
from ...personal import Erased, PersonalShape
from .keys import Cipher, Keys, check_subject

_encode = msgspec.msgpack.Encoder().encode
_INTEGERS = (pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64)
_PYTHON: dict[Any, Any] = {
    pl.String: str,
    pl.Boolean: bool,
    pl.Float32: float,
    pl.Float64: float,
    pl.Binary: bytes,
    pl.Date: date,
    pl.Datetime: datetime,
    pl.Decimal: Decimal,
    pl.Null: None,
    **dict.fromkeys(_INTEGERS, int),
}

Opened = Callable[[bytes, str, int], bytes | None]
"""Unseals a value of a subject, that of a row; None for one that was erased."""


def seal_frame(
    keys: Keys | None, frame: pl.DataFrame, type: str, shape: PersonalShape, refuse: Callable[[list[str], str], None]
) -> tuple[pl.DataFrame, str]:
    """A frame whose personal columns are sealed, and its schema text.

    Args:
        frame: As `millstream.frames.normalise` gives it.
        refuse: Called with the personal texts of a row and its subject: raises if they stand where they must not.

    Raises:
        InvalidEvent: A row does not say whose it is, or a personal column has a type that cannot be sealed.
        SubjectForgotten, KeysNeeded: As for events.
    """
    names = [name for name in frame.columns if name in shape.fields]
    if not names:
        return frame, schema_text(frame.schema)
    for name in names:
        _python(name, frame.schema[name])
    subjects = _subjects(frame, type, shape.subject)
    with python_values(f"a personal column of a frame of {type!r} events"):
        values = {name: frame[name].to_list() for name in names}
    held: dict[str, None] = {}
    for index, subject in enumerate(subjects):
        row = [values[name][index] for name in names]
        refuse([value for value in row if isinstance(value, str)], subject)
        if any(value != Erased for value in row):
            held[subject] = None
    if held and keys is None:
        raise InvalidEvent("the log's own events hold no personal data", hint="Append it with log.append")
    ciphers = keys.ciphers(held) if held and keys is not None else {}
    sealed = [
        pl.Series(name, [_sealed(v, s, ciphers) for v, s in zip(values[name], subjects, strict=True)], dtype=pl.Binary)
        for name in names
    ]
    text = schema_text(frame.schema, dict.fromkeys(names, shape.subject))
    return frame.with_columns(sealed).rechunk(), text


def _subjects(frame: pl.DataFrame, type: str, column: str) -> list[str]:
    if column not in frame.columns or frame.schema[column] != pl.String or frame[column].null_count():
        raise InvalidEvent(
            f"a frame of {type!r} events has personal columns, and column {column!r} does not say whose each row is",
            hint="Give it a column of text without nulls",
        )
    for subject in frame[column].unique():
        check_subject(subject)
    return frame[column].to_list()


def _sealed(value: Any, subject: str, ciphers: dict[str, Cipher]) -> bytes:
    if isinstance(value, str) and value == Erased:
        return b""
    return ciphers[subject].seal(_encode(value), subject.encode())


def _python(name: str, dtype: pl.DataType) -> Any:
    found = _PYTHON.get(dtype.base_type(), ...)
    if found is ... or (isinstance(dtype, pl.Datetime) and dtype.time_unit == "ns"):
        raise InvalidEvent(
            f"personal column {name!r} is {dtype}, which cannot be sealed in a frame",
            hint="Cast it to text, numbers, dates or microseconds, or append events",
        )
    return found


def unseal_frame(
    frame: pl.DataFrame, schema: str, names: Sequence[str], opened: Opened
) -> tuple[pl.DataFrame, dict[str, list[int]]]:
    """A frame with some of its sealed columns as they were, and the rows of each that were erased.

    In a column of text what was erased is the text of `Erased`; in others it is null.
    """
    erased: dict[str, list[int]] = {}
    series = []
    for name, (subject, dtype) in sealed_columns(schema).items():
        if name not in names or name not in frame.columns:
            continue
        decode = msgspec.msgpack.Decoder(Any if dtype == pl.Null else (_python(name, dtype) | None)).decode
        values: list[Any] = []
        gone = erased[name] = []
        for row, (sealed, whose) in enumerate(zip(frame[name].to_list(), frame[subject].to_list(), strict=True)):
            text = opened(sealed, whose, row) if sealed else None
            if text is None:
                gone.append(row)
            values.append(decode(text) if text is not None else str(Erased) if dtype == pl.String else None)
        series.append(_column(name, values, dtype))
    return frame.with_columns(series), erased


def _column(name: str, values: list[Any], dtype: pl.DataType) -> pl.Series:
    if isinstance(dtype, pl.Datetime) and dtype.time_zone is not None:
        # MessagePack gives moments in UTC.
        return pl.Series(name, values, dtype=pl.Datetime(dtype.time_unit, "UTC")).dt.convert_time_zone(dtype.time_zone)
    return pl.Series(name, values, dtype=dtype)
