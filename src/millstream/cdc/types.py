"""Classes for the rows of captured tables, made from their shapes."""

from __future__ import annotations

import keyword
import re
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Self, cast
from uuid import UUID

import msgspec

from ..errors import CaptureError, StreamNotFound
from .capture import capture, stream_of
from .past.state import TYPES
from .shape import Shape, shape_of
from .source import reader_of
from .values import Interval, Json, Range, Row, Unchanged, decoder

if TYPE_CHECKING:
    from ..log import Log

_TYPES: dict[str, Any] = {
    "bool": bool,
    "int": int,
    "uint": int,
    "float": float,
    "decimal": Decimal | str,
    "text": str,
    "bytes": bytes,
    "uuid": UUID,
    "date": date | str,
    "time": time | str,
    "timetz": time | str,
    "timestamp": datetime | str,
    "timestamptz": datetime | str,
    "duration": timedelta | str,
    "interval": Interval,
    "json": Json,
}
_IN_JSON = (str, list, dict)
_NOT_A_NAME = re.compile(r"\W")


class CapturedRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of a captured table, with a field for each column; made by `millstream.cdc.types`."""

    @classmethod
    def of(cls, row: Row) -> Self:
        """The row of a change: `Change.after` or `Change.before`, as the log holds it or decoded.

        A column that the row lacks (a key alone stands before a delete, in some sources) is None.
        """
        made = {}
        for name, (column, decode) in _columns[cls].items():
            value = row.get(column)
            if decode is not None and isinstance(value, _IN_JSON) and not isinstance(value, Json):
                value = Unchanged if value == {"$unchanged": True} else decode(value)
            made[name] = value
        return cls(**made)


_columns: dict[type[CapturedRow], dict[str, tuple[str, Any]]] = {}
"""Of each class: its fields, each with the column's name and what decodes its values."""


def types(where: Log | str, table: str, *, prefix: str = "") -> type[CapturedRow]:
    """A class for the rows of a captured table: a frozen struct with a typed field for each column.

    Fields are named as the columns are; what is no identifier is mended (``order-id`` becomes ``order_id``, ``class``
    becomes ``class_``). Each may be None; a kind whose extremes Python's type lacks may be text, too.

    Args:
        where: A log, for the newest shape of the table's changes; or the URL of a source, for its shape now.
        table: The table.
        prefix: As in `capture`.

    Raises:
        StreamNotFound: The log has no changes of this table.
        CaptureError: The source has no such table, or cannot be read.

    Example:
        >>> import millstream as ms
        >>> User = ms.cdc.types(log, "users")  # doctest: +SKIP
        >>> User.of(change.after).email  # doctest: +SKIP
        'ann@example.com'
    """
    if isinstance(where, str):
        with reader_of(capture(where).source) as reader:
            return class_of(table, reader.shape(table))
    stream = prefix + stream_of(table)
    for recorded in where.read(stream, types=TYPES, backwards=True):
        shape = shape_of(recorded.run.schema)
        if shape is not None:
            return class_of(table, shape)
    if not where.version(stream):
        raise StreamNotFound(stream)
    raise CaptureError(f"the changes of {table!r} do not tell their columns", hint="Capture the table again")


def class_of(table: str, shape: Shape) -> type[CapturedRow]:
    """A class for rows of a shape."""
    fields: dict[str, tuple[str, Any]] = {}
    types: list[tuple[str, Any, Any]] = []
    for column in shape.columns:
        name = _identifier(column.name, fields)
        fields[name] = (column.name, decoder(column.kind))
        types.append((name, _type(column.kind) | None, None))
    name = _identifier(table, {})
    made: Any = msgspec.defstruct(name, types, bases=(CapturedRow,), frozen=True, kw_only=True)
    _columns[made] = fields
    return cast("type[CapturedRow]", made)


def _type(kind: str) -> Any:
    if kind.endswith("[]"):
        return list[Any] | str
    if kind.startswith("range:"):
        return Range | str
    return _TYPES.get(kind, Any)


def _identifier(name: str, taken: dict[str, Any]) -> str:
    mended = _NOT_A_NAME.sub("_", name) or "_"
    if mended[0].isdigit():
        mended = f"_{mended}"
    if keyword.iskeyword(mended) or mended == "of":
        mended += "_"
    while mended in taken:
        mended += "_"
    return mended
