"""MySQL's binary JSON as the text that the server would give for it."""

from __future__ import annotations

from base64 import b64encode
from struct import Struct

import msgspec

from .values import decimal, decimal_size, duration

_u16 = Struct("<H").unpack_from
_i16 = Struct("<h").unpack_from
_u32 = Struct("<I").unpack_from
_i32 = Struct("<i").unpack_from
_u64 = Struct("<Q").unpack_from
_i64 = Struct("<q").unpack_from
_f64 = Struct("<d").unpack_from

_LITERALS = {0: "null", 1: "true", 2: "false"}
_DATE, _TIME, _DATETIME, _TIMESTAMP, _DECIMAL = 10, 11, 12, 7, 246


def json_text(raw: bytes) -> str:
    """A document as text, written as the server writes it.

    Raises:
        ValueError, IndexError, struct.error: It is no such document.
    """
    return _value(raw[0], raw, 1) if raw else "null"


def _value(kind: int, b: bytes, p: int) -> str:
    """The value of a kind that begins at a place."""
    match kind:
        case 0 | 1 | 2 | 3:
            return _container(b, p, large=bool(kind & 1), is_object=kind < 2)
        case 4:
            return _LITERALS[b[p]]
        case 5:
            return str(_i16(b, p)[0])
        case 6:
            return str(_u16(b, p)[0])
        case 7:
            return str(_i32(b, p)[0])
        case 8:
            return str(_u32(b, p)[0])
        case 9:
            return str(_i64(b, p)[0])
        case 10:
            return str(_u64(b, p)[0])
        case 11:
            return _double(_f64(b, p)[0])
        case 12:
            size, p = _size(b, p)
            return _string(b[p : p + size])
        case 15:
            size, start = _size(b, p + 1)
            return _opaque(b[p], b[start : start + size])
    raise ValueError(f"a JSON value of kind {kind}")


def _container(b: bytes, p: int, *, large: bool, is_object: bool) -> str:
    number, width = (_u32, 4) if large else (_u16, 2)
    count = number(b, p)[0]
    at = p + 2 * width
    keys = []
    if is_object:
        for _ in range(count):
            start, size = p + number(b, at)[0], _u16(b, at + width)[0]
            keys.append(_string(b[start : start + size]))
            at += width + 2
    values = []
    for _ in range(count):
        kind = b[at]
        inlined = kind in (4, 5, 6) or (large and kind in (7, 8))
        values.append(_value(kind, b, at + 1 if inlined else p + number(b, at + 1)[0]))
        at += 1 + width
    if is_object:
        return "{" + ", ".join(f"{key}: {value}" for key, value in zip(keys, values, strict=True)) + "}"
    return "[" + ", ".join(values) + "]"


def _size(b: bytes, p: int) -> tuple[int, int]:
    """A length in groups of seven bits, and the place after it."""
    size = shift = 0
    while True:
        size |= (b[p] & 127) << shift
        p += 1
        if not b[p - 1] & 128:
            return size, p
        shift += 7


_encoder = msgspec.json.Encoder()


def _string(raw: bytes) -> str:
    return _encoder.encode(raw.decode()).decode()


def _double(value: float) -> str:
    """As the server writes it: without a sign and zeros in the exponent."""
    text = repr(value)
    mantissa, e, exponent = text.partition("e")
    if not e:
        return text
    power = int(exponent)
    digits = mantissa.replace(".", "").lstrip("-")
    if -16 < power < 0:
        sign = "-" if value < 0 else ""
        return f"{sign}0.{'0' * (-power - 1)}{digits}"
    return f"{mantissa}e{power}"


def _opaque(kind: int, data: bytes) -> str:
    if kind == _DECIMAL:
        precision, scale = data[0], data[1]
        return decimal(precision, scale)(data[2 : 2 + decimal_size(precision, scale)]).decode()
    if kind == _TIME:
        (packed,) = _i64(data, 0)
        return '"' + duration(6)((packed + (0x800000 << 24)).to_bytes(6, "big")).decode() + '"'
    if kind in (_DATE, _DATETIME, _TIMESTAMP):
        (packed,) = _i64(data, 0)
        raw = packed >> 24
        month_year, day, clock = raw >> 22, raw >> 17 & 31, raw & 0x1FFFF
        year, month = divmod(month_year & 0x1FFFF, 13)
        text = f"{year:04d}-{month:02d}-{day:02d}"
        if kind != _DATE:
            text += f" {clock >> 12:02d}:{clock >> 6 & 63:02d}:{clock & 63:02d}.{packed & 0xFFFFFF:06d}"
        return f'"{text}"'
    return f'"base64:type{kind}:{b64encode(data).decode()}"'
