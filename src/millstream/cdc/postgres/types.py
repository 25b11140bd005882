"""PostgreSQL's types: the kind of a column's values, and the JSON of a value from the text that the server sends.

The server is asked to write times in UTC and ISO 8601, intervals in ISO 8601 and bytes in hexadecimal, so that
its text needs little or no work to become JSON.
"""

from __future__ import annotations

from base64 import b64encode
from binascii import a2b_hex
from collections.abc import Callable
from typing import Literal

import msgspec

Convert = Callable[[bytes], bytes]

SETTINGS = {
    "client_encoding": "UTF8",
    "datestyle": "ISO",
    "timezone": "UTC",
    "intervalstyle": "iso_8601",
    "bytea_output": "hex",
    "extra_float_digits": "3",
}
"""What the connections that read values are set to."""

_KINDS = {
    "bool": "bool",
    "int2": "int",
    "int4": "int",
    "int8": "int",
    "oid": "int",
    "float4": "float",
    "float8": "float",
    "numeric": "decimal",
    "bytea": "bytes",
    "uuid": "uuid",
    "date": "date",
    "time": "time",
    "timetz": "timetz",
    "timestamp": "timestamp",
    "timestamptz": "timestamptz",
    "interval": "interval",
    "json": "json",
    "jsonb": "json",
    "int4range": "range:int",
    "int8range": "range:int",
    "numrange": "range:decimal",
    "daterange": "range:date",
    "tsrange": "range:timestamp",
    "tstzrange": "range:timestamptz",
}
_TEXTS = frozenset({"text", "varchar", "bpchar", "name"})
_LISTED = frozenset({"bool", "int", "float", "decimal", "uuid", "date", "time", "timestamp", "timestamptz", "text"})
"""Kinds whose arrays become lists; other arrays stay text."""


class Type(msgspec.Struct, frozen=True):
    """A type of the database.

    Attributes:
        kind: See `millstream.cdc.values`.
        by_format: A query must ask for its text, since the server would make JSON of it in a way of its own.
    """

    oid: int
    name: str
    kind: str
    by_format: bool = False


UNKNOWN = Type(0, "unknown", "text")

QUERY = """
with recursive wanted as (
    select t.oid as asked, t.oid, t.typname, t.typtype, t.typelem, t.typbasetype, t.typcategory, t.typsubscript
    from pg_type t where t.oid = any($1)
    union all
    select w.asked, t.oid, t.typname, t.typtype, t.typelem, t.typbasetype, t.typcategory, t.typsubscript
    from wanted w join pg_type t on t.oid = w.typbasetype where w.typtype = 'd'
)
select w.asked::int8 as oid, w.typname as name, w.typtype::text as kind, w.typcategory::text as category,
       e.typname as element, e.typtype::text as element_kind
from wanted w left join pg_type e on e.oid = w.typelem and w.typcategory = 'A'
where w.typtype <> 'd'
"""
"""The types of some numbers, domains resolved; parameter: the numbers."""


def type_of(oid: int, name: str, kind: str, category: str, element: str | None, element_kind: str | None) -> Type:
    """The type that a row of `QUERY` tells of."""
    if category == "A" and element is not None:
        inner = "text" if element in _TEXTS or element_kind == "e" else _KINDS.get(element)
        if inner in _LISTED:
            return Type(oid, name, f"{inner}[]")
        return Type(oid, name, "text", by_format=True)
    if name in _KINDS:
        return Type(oid, name, _KINDS[name])
    return Type(oid, name, "text", by_format=kind in "cmr" or name == "hstore")


# --- from the server's text to JSON -------------------------------------------------------------------------

Form = Literal["plain", "quoted", "text", "call"]
"""How a value becomes JSON: as it stands, within quotes, within quotes unless it holds what JSON escapes, or by a
function that gives all of it."""

_FORMS: dict[str, Form] = {
    "int": "plain",
    "decimal": "quoted",
    "uuid": "quoted",
    "date": "quoted",
    "time": "quoted",
    "timetz": "quoted",
    "interval": "quoted",
    "text": "text",
}


def form_of(kind: str) -> Form:
    """How values of a kind become JSON."""
    return "text" if kind.startswith("range:") else _FORMS.get(kind, "call")


_encode_text = msgspec.json.Encoder().encode


def quoted(raw: bytes) -> bytes:
    """Text as a JSON string."""
    return _encode_text(raw.decode())


def _bool(raw: bytes) -> bytes:
    return b"true" if raw == b"t" else b"false"


def _float(raw: bytes) -> bytes:
    if raw[-1] > 57:
        return b'"%b"' % raw  # NaN, Infinity
    return raw if raw != b"-0" else b"-0.0"  # JSON's readers take -0 for a whole number, which has no sign


def _bytes(raw: bytes) -> bytes:
    return b'"%b"' % b64encode(a2b_hex(raw[2:]))


def _timestamp(raw: bytes) -> bytes:
    return b'"%b"' % raw.replace(b" ", b"T", 1)


def _timestamptz(raw: bytes) -> bytes:
    # In the server's own JSON the zone has minutes, too.
    if raw[-3:] == b"+00":
        return b'"%bT%b:00"' % (raw[:10], raw[11:]) if raw[10] == 32 else b'"%b:00"' % raw.replace(b" ", b"T", 1)
    return b'"%b"' % raw.replace(b" ", b"T", 1).replace(b"+00 ", b"+00:00 ")


_CALLS: dict[str, Convert] = {
    "bool": _bool,
    "float": _float,
    "bytes": _bytes,
    "timestamp": _timestamp,
    "timestamptz": _timestamptz,
    "json": quoted,
}


def converter(kind: str) -> Convert:
    """What makes the JSON of a value that is not NULL."""
    if kind.endswith("[]"):
        inner = converter(kind[:-2])
        return lambda raw: _array(raw, inner)
    match form_of(kind):
        case "plain":
            return lambda raw: raw
        case "quoted":
            return lambda raw: b'"%b"' % raw
        case "text":
            return quoted
    return _CALLS[kind]


def _array(raw: bytes, inner: Convert) -> bytes:
    """An array's text as a JSON list. One whose indexes do not begin with 1 stays text, for it says so there."""
    if raw[:1] != b"{":
        return quoted(raw)
    out: list[bytes] = []
    position, size = 0, len(raw)
    while position < size:
        c = raw[position]
        if c == 0x7B:  # {
            out.append(b"[")
            position += 1
        elif c == 0x7D:  # }
            out.append(b"]")
            position += 1
        elif c == 0x2C:  # ,
            out.append(b",")
            position += 1
        elif c == 0x22:  # a quoted element
            element, position = _quoted_element(raw, position + 1)
            out.append(inner(element))
        else:
            end = position
            while raw[end] not in b",}":
                end += 1
            element = raw[position:end]
            out.append(b"null" if element == b"NULL" else inner(element))
            position = end
    return b"".join(out)


def _quoted_element(raw: bytes, position: int) -> tuple[bytes, int]:
    """An element of an array that stands in quotes, and where it ends."""
    parts = bytearray()
    while (c := raw[position]) != 0x22:
        if c == 0x5C:  # a backslash: the next one as it is
            position += 1
            c = raw[position]
        parts.append(c)
        position += 1
    return bytes(parts), position + 1


# --- the server's own JSON ------------------------------------------------------------------------------------


def as_json(quoted_name: str, kind: str, by_format: bool) -> str:
    """A column in a query whose rows the server turns into JSON, so that its value is what `converter` makes."""
    if kind == "bytes":
        return f"translate(encode({quoted_name}, 'base64'), E'\\n', '')"
    if kind in ("decimal", "json"):
        return f"{quoted_name}::text"
    if kind == "int":
        return f"{quoted_name}::int8"
    if kind == "decimal[]":
        return f"{quoted_name}::text[]"
    if by_format:
        return f"case when {quoted_name} is distinct from null then format('%s', {quoted_name}) end"
    return quoted_name
