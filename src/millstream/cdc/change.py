"""A change of a row, as it stands in the log, and values that JSON has no word for.

JSON holds null, 64-bit integers, finite reals and text. What else a column may hold is written as an object with
one key, which no SQLite value can be mistaken for: ``{"$bytes": "3q0="}`` (base64), ``{"$real": "Infinity"}``, and
``{"$text": "/w=="}`` for text whose bytes are no UTF-8. `decoded` gives the values themselves.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from itertools import chain
from math import inf
from typing import Any, Literal, TypeVar

import msgspec

from ..events import Event

Operation = Literal["INSERT", "UPDATE", "DELETE", "READ", "TRUNCATE"]
"""What happened. READ is a row found by a snapshot; TRUNCATE says that every row known before is gone."""

Row = dict[str, Any]


class Change(Event):
    """A row of a captured table changed.

    Attributes:
        operation: INSERT, UPDATE or DELETE; READ for a row found by a snapshot; TRUNCATE for the whole table.
        table: The table's name in the source.
        before: The row before; None for INSERT, READ and TRUNCATE.
        after: The row after; None for DELETE and TRUNCATE.
        timestamp: When it happened at the source: the commit's time where the source tells it; of SQLite,
            the time of the statement (to the millisecond, by the clock of the writer's machine).

    Example:
        >>> from millstream.cdc import Change
        >>> from datetime import UTC, datetime
        >>> now = datetime.now(UTC)
        >>> change = Change(operation="INSERT", table="users", before=None, after={"id": 1}, timestamp=now)
        >>> change.after
        {'id': 1}
    """

    operation: Operation
    table: str
    before: Row | None
    after: Row | None
    timestamp: datetime


class SnapshotCompleted(Event):
    """All rows of a table are in the log: from here on, its changes applied in order give the table."""

    table: str
    columns: list[str]
    rows: int
    timestamp: datetime


class SchemaChanged(Event):
    """Columns were added to a table.

    Attributes:
        columns: All columns from here on.
        added: The new ones, each with the value that rows have which were there before.
    """

    table: str
    columns: list[str]
    added: Row
    timestamp: datetime


class Undecodable(bytes):
    """Text whose bytes are no UTF-8, as the source holds it. (Plain bytes are a BLOB.)"""


def text_of(raw: bytes) -> str | Undecodable:
    """A text value from the bytes that the source holds."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return Undecodable(raw)


def encode_value(value: Any) -> Any:
    """A column's value as JSON can hold it."""
    if isinstance(value, bytes):
        return {"$text" if isinstance(value, Undecodable) else "$bytes": b64encode(value).decode()}
    if isinstance(value, float) and value in (inf, -inf):
        return {"$real": "Infinity" if value > 0 else "-Infinity"}
    return value


def decode_value(value: Any) -> Any:
    """The value that `encode_value` wrote."""
    if not isinstance(value, dict) or len(value) != 1:
        return value
    [(kind, text)] = value.items()
    match kind:
        case "$bytes":
            return b64decode(text)
        case "$text":
            return Undecodable(b64decode(text))
        case "$real":
            return float(text)
    return value


_PLAIN = frozenset({int, str, float, type(None)})


def encode_row(names: Iterable[str], values: tuple[Any, ...]) -> Row:
    """A row as JSON can hold it."""
    if _PLAIN.issuperset(map(type, values)) and inf not in values and -inf not in values:
        return dict(zip(names, values, strict=True))
    return {name: encode_value(value) for name, value in zip(names, values, strict=True)}


def row_encoder(rows: Sequence[tuple[Any, ...]]) -> Callable[[Iterable[str], tuple[Any, ...]], Row]:
    """The cheapest function that does what `encode_row` does for all of these rows: mostly JSON has a word for
    everything, which is found out faster for a page than for each row."""

    def values() -> Iterator[Any]:
        return chain.from_iterable(rows)

    if _PLAIN.issuperset(map(type, values())) and inf not in values() and -inf not in values():
        return _plain_row
    return encode_row


def _plain_row(names: Iterable[str], values: tuple[Any, ...]) -> Row:
    return dict(zip(names, values, strict=True))


def decode_row(row: Row) -> Row:
    """The row with its values as the source holds them."""
    if _PLAIN.issuperset(map(type, row.values())):
        return row
    return {name: decode_value(value) for name, value in row.items()}


C = TypeVar("C", bound=Change)


def decoded(change: C) -> C:
    """The change with its values as the source holds them: bytes, infinities, `Undecodable` text."""
    before = change.before and decode_row(change.before)
    after = change.after and decode_row(change.after)
    if before is change.before and after is change.after:
        return change
    return msgspec.structs.replace(change, before=before, after=after)
