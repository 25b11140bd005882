"""How a column's values are written in JSON, by the column's kind, and what Python value each is.

| kind | in JSON | in Python |
|---|---|---|
| any | as a SQLite value is: see `encode_any` | int, float, str, bytes, `Undecodable` |
| bool | true, false | bool |
| int | number | int |
| float | number, or "NaN", "Infinity", "-Infinity" | float |
| decimal | text | Decimal |
| text | text | str |
| bytes | base64 | bytes |
| uuid | text | UUID |
| date, time, timetz | ISO 8601 | date, time |
| timestamp | ISO 8601 without a zone | datetime without a zone |
| timestamptz | ISO 8601 with a zone, mostly ``Z`` | datetime with one |
| duration | ``[-]HH:MM:SS[.ffffff]``, hours beyond 24 as they are | timedelta |
| interval | ISO 8601, ``P1Y2M3DT4H5M6.7S`` | `Interval` |
| json | the document's text, as the source has it | `Json` |
| range:KIND | ``[lower,upper)`` as PostgreSQL writes it | `Range` |
| KIND[] | a list, nested for more dimensions | list |

NULL is null in each. What a source holds and Python's type cannot (a date BC or of the year 10000, an infinite
timestamp, 24:00, MySQL's zero dates) stays the source's text: a `str`, so that nothing is lost. A value that the
source did not send because it is stored apart and was not changed is ``{"$unchanged": true}``, `Unchanged`.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import cache, partial
from math import inf, isfinite
from typing import Any, Final, final
from uuid import UUID

import msgspec

from .shape import Shape

Row = dict[str, Any]


@final
class _Unchanged:
    """The one value that says: as it was."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "Unchanged"

    def __bool__(self) -> bool:
        return False

    def __copy__(self) -> _Unchanged:
        return self

    def __deepcopy__(self, memo: object) -> _Unchanged:
        return self

    def __reduce__(self) -> str:
        return "Unchanged"


Unchanged: Final = _Unchanged()
"""A value that the source did not tell, because the update left it as it was."""

UNCHANGED: Final = {"$unchanged": True}
"""`Unchanged` in JSON."""


class Undecodable(bytes):
    """Text whose bytes are no UTF-8, as the source holds it. (Plain bytes are a BLOB.)"""


class Json(str):
    """A JSON document as the source has it, to the last blank and digit. `value` parses it."""

    __slots__ = ()

    @property
    def value(self) -> Any:
        """What it says, in Python's values."""
        return msgspec.json.decode(self)


class Interval(msgspec.Struct, frozen=True):
    """A span of the calendar: months and days have no fixed length, so they are kept apart.

    Attributes:
        months, days: Whole numbers, of any sign.
        microseconds: The rest.
    """

    months: int = 0
    days: int = 0
    microseconds: int = 0


class Range(msgspec.Struct, frozen=True):
    """A range of values.

    Attributes:
        lower, upper: Its bounds; None for one that is open to infinity.
        bounds: Whether they belong to it, such as ``[)``; ``empty`` when nothing does.
    """

    lower: Any = None
    upper: Any = None
    bounds: str = "[)"


def text_of(raw: bytes) -> str | Undecodable:
    """A text value from the bytes that the source holds."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return Undecodable(raw)


# --- rows -------------------------------------------------------------------------------------------------


def decode_row(row: Row, shape: Shape | None) -> Row:
    """The row of a change with its values as the source holds them, by the shape of the change's run."""
    if shape is None:
        return {name: decode_any(value) for name, value in row.items()}
    needed = _needed(shape)
    if not needed:
        return row
    found = dict(row)
    for name, decode in needed:
        value = found.get(name)
        if value is not None:
            found[name] = Unchanged if value == UNCHANGED else decode(value)
    return found


def encode_row(row: Row, shape: Shape) -> Row:
    """A row as it stands in a change: what `decode_row` undoes."""
    kinds = {column.name: column.kind for column in shape.columns}
    return {name: encode_value(value, kinds.get(name, "any")) for name, value in row.items()}


def encode_value(value: Any, kind: str) -> Any:
    """A column's value as JSON can hold it."""
    if value is None:
        return None
    if value is Unchanged:
        return UNCHANGED
    if kind == "any":
        return encode_any(value)
    if kind.endswith("[]") and isinstance(value, list):
        return [encode_value(item, kind if isinstance(item, list) else kind[:-2]) for item in value]
    match value:
        case float() if not isfinite(value):
            return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
        case Decimal() | UUID() | Json():
            return str(value)
        case bytes():
            return b64encode(value).decode()
        case datetime():
            text = value.isoformat()
            return text[:-6] + "Z" if text.endswith("+00:00") else text
        case date() | time():
            return value.isoformat()
        case timedelta():
            return _duration_text(value)
        case Interval():
            return _interval_text(value)
        case Range():
            return _range_text(value, kind.removeprefix("range:"))
    return value


@cache
def _needed(shape: Shape) -> list[tuple[str, Callable[[Any], Any]]]:
    """The columns whose values are not in Python what they are in JSON (or may be unchanged), and their decoders."""
    return [(column.name, found) for column in shape.columns if (found := decoder(column.kind)) is not None]


def decoder(kind: str) -> Callable[[Any], Any] | None:
    """What makes a value of the kind from its JSON; None when it is the same in both."""
    if kind.endswith("[]"):
        inner = decoder(kind[:-2])
        return _same if inner is None else partial(_decode_list, inner)
    if kind.startswith("range:"):
        return partial(_parse_range, decoder(kind[6:]) or _bound_of(kind[6:]))
    return _DECODERS.get(kind)


def _same(value: Any) -> Any:
    return value


def _decode_list(inner: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, list):
        return [None if item is None else _decode_list(inner, item) for item in value]
    return inner(value)


def _or_text(make: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A decoder that leaves alone what Python's type cannot hold."""

    def decode(value: Any) -> Any:
        try:
            return make(value)
        except (ValueError, ArithmeticError):
            return value

    return decode


def _bound_of(kind: str) -> Callable[[str], Any]:
    return int if kind == "int" else _same


# --- kinds ------------------------------------------------------------------------------------------------

_INTERVAL = re.compile(
    r"P(?:(-?\d+)Y)?(?:(-?\d+)M)?(?:(-?\d+)W)?(?:(-?\d+)D)?"
    r"(?:T(?:(-?\d+)H)?(?:(-?\d+)M)?(?:(-?)(\d+)(?:\.(\d{1,6}))?S)?)?$"
)


def _parse_interval(text: str) -> Interval:
    found = _INTERVAL.match(text)
    if found is None:
        raise ValueError(text)
    years, months, weeks, days, hours, minutes, sign, seconds, fraction = found.groups()
    rest = int(seconds or 0) * 1_000_000 + int((fraction or "").ljust(6, "0"))
    micros = (int(hours or 0) * 60 + int(minutes or 0)) * 60_000_000 + (-rest if sign else rest)
    return Interval(int(years or 0) * 12 + int(months or 0), int(weeks or 0) * 7 + int(days or 0), micros)


def _interval_text(value: Interval) -> str:
    years, months = divmod(abs(value.months), 12)
    if value.months < 0:
        years, months = -years, -months
    micros = abs(value.microseconds)
    sign = "-" if value.microseconds < 0 else ""
    hours, micros = divmod(micros, 3_600_000_000)
    minutes, micros = divmod(micros, 60_000_000)
    seconds, micros = divmod(micros, 1_000_000)
    second = f"{seconds}.{micros:06d}".rstrip("0") if micros else str(seconds)
    days = "".join(f"{n}{unit}" for n, unit in ((years, "Y"), (months, "M"), (value.days, "D")) if n)
    clock = "".join(
        f"{sign}{n}{unit}" for n, unit in ((hours, "H"), (minutes, "M"), (second, "S")) if n not in (0, "0")
    )
    return "P" + days + ("T" + clock if clock else "") if days or clock else "PT0S"


_DURATION = re.compile(r"(-?)(\d+):(\d\d):(\d\d)(?:\.(\d{1,6}))?$")


def _parse_duration(text: str) -> timedelta:
    found = _DURATION.match(text)
    if found is None:
        raise ValueError(text)
    sign, hours, minutes, seconds, fraction = found.groups()
    span = timedelta(
        hours=int(hours), minutes=int(minutes), seconds=int(seconds), microseconds=int((fraction or "").ljust(6, "0"))
    )
    return -span if sign else span


def _duration_text(value: timedelta) -> str:
    micros = value // timedelta(microseconds=1)
    sign, micros = ("-" if micros < 0 else ""), abs(micros)
    seconds, micros = divmod(micros, 1_000_000)
    text = f"{sign}{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    return f"{text}.{micros:06d}" if micros else text


def _parse_range(inner: Callable[[Any], Any], text: str) -> Range | str:
    if text == "empty":
        return Range(bounds="empty")
    if len(text) < 3 or text[0] not in "[(" or text[-1] not in "])":
        return text
    parts = _bounds(text[1:-1])
    if len(parts) != 2:
        return text
    lower, upper = (None if part is None else inner(part) for part in parts)
    return Range(lower, upper, text[0] + text[-1])


def _bounds(text: str) -> list[str | None]:
    """The two bounds of a range's text, without their quotes; None for one that is not there."""
    parts: list[str | None] = []
    part, quoted, was_quoted, i = "", False, False, 0
    while i < len(text):
        c = text[i]
        if c == '"':
            if quoted and text[i + 1 : i + 2] == '"':
                part += '"'
                i += 1
            else:
                quoted, was_quoted = not quoted, True
        elif c == "\\":
            i += 1
            part += text[i]
        elif c == "," and not quoted:
            parts.append(part if part or was_quoted else None)
            part, was_quoted = "", False
        else:
            part += c
        i += 1
    parts.append(part if part or was_quoted else None)
    return parts


def _range_text(value: Range, kind: str) -> str:
    if value.bounds == "empty":
        return "empty"

    def quoted(bound: Any) -> str:
        if bound is None:
            return ""
        text = str(encode_value(bound, kind))
        plain = text and not any(c in '"\\,()[] ' or c.isspace() for c in text)
        return text if plain else '"' + text.replace("\\", "\\\\").replace('"', '""') + '"'

    return f"{value.bounds[0]}{quoted(value.lower)},{quoted(value.upper)}{value.bounds[1]}"


# --- any: a value of SQLite, whose columns hold what they are given ----------------------------------------


def encode_any(value: Any) -> Any:
    """A SQLite value as JSON can hold it.

    JSON holds null, 64-bit integers, finite reals and text. What else a column may hold is written as an object
    with one key, which no SQLite value can be mistaken for: ``{"$bytes": "3q0="}`` (base64),
    ``{"$real": "Infinity"}``, and ``{"$text": "/w=="}`` for text whose bytes are no UTF-8.
    """
    if isinstance(value, bytes):
        return {"$text" if isinstance(value, Undecodable) else "$bytes": b64encode(value).decode()}
    if isinstance(value, float) and value in (inf, -inf):
        return {"$real": "Infinity" if value > 0 else "-Infinity"}
    return value


def decode_any(value: Any) -> Any:
    """The value that `encode_any` wrote."""
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
        case "$unchanged":
            return Unchanged
    return value


_DECODERS: dict[str, Callable[[Any], Any]] = {
    "any": decode_any,
    "float": float,
    "decimal": _or_text(Decimal),
    "text": _same,
    "bytes": b64decode,
    "uuid": UUID,
    "date": _or_text(date.fromisoformat),
    "time": _or_text(time.fromisoformat),
    "timetz": _or_text(time.fromisoformat),
    "timestamp": _or_text(datetime.fromisoformat),
    "timestamptz": _or_text(datetime.fromisoformat),
    "duration": _or_text(_parse_duration),
    "interval": _or_text(_parse_interval),
    "json": Json,
}
"""By kind. Kinds of values that are never stored apart (bool, int) need none; text may be unchanged."""
