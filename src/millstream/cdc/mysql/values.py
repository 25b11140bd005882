"""From the bytes of a row in the binary log to the JSON of its values, for the types that need more than a format."""

from __future__ import annotations

import socket
import zlib
from binascii import b2a_base64
from collections.abc import Callable
from struct import Struct, error, pack, unpack

import msgspec

from ...errors import CaptureError

Convert = Callable[[bytes], bytes]

CACHED = 200_000
"""How many days or texts are remembered at most."""

_f32 = Struct("<f").unpack


class Remembered(dict[int, bytes]):
    """Texts by numbers, each made when it is first needed."""

    def __init__(self, make: Callable[[int], bytes]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, number: int) -> bytes:
        if len(self) > CACHED:
            self.clear()
        found = self[number] = self._make(number)
        return found


def _day_of_date(raw: int) -> bytes:
    return b"%04d-%02d-%02d" % (raw >> 9, raw >> 5 & 15, raw & 31)


def _day_of_datetime(raw: int) -> bytes:
    year, month = divmod(raw >> 5 & 0x1FFFF, 13)
    return b"%04d-%02d-%02d" % (year, month, raw & 31)


def _clock(raw: int) -> bytes:
    return b"T%02d:%02d:%02d" % (raw >> 12, raw >> 6 & 63, raw & 63)


def _day_of_epoch(days: int) -> bytes:
    from datetime import date, timedelta

    return (date(1970, 1, 1) + timedelta(days)).isoformat().encode()


def _second(seconds: int) -> bytes:
    return b"T%02d:%02d:%02d" % (seconds // 3600, seconds // 60 % 60, seconds % 60)


DATES = Remembered(_day_of_date)
"""By the three bytes of a DATE."""
DAYS = Remembered(_day_of_datetime)
"""By the upper bits of a DATETIME."""
CLOCKS = Remembered(_clock)
"""By the lower 17 bits of a DATETIME."""
EPOCH_DAYS = Remembered(_day_of_epoch)
SECONDS = Remembered(_second)


def fraction(digits: int) -> tuple[int, int]:
    """How many bytes a fraction of so many digits takes, and what to divide their number by."""
    return (digits + 1) // 2, 10 if digits % 2 else 1


def duration(digits: int) -> Convert:
    """Of a TIME."""
    size, divisor = fraction(digits)
    offset, mask = 0x800000 << 8 * size, (1 << 8 * size) - 1
    tail = b".%%0%dd" % digits

    def convert(raw: bytes) -> bytes:
        value = int.from_bytes(raw, "big") - offset
        sign, value = (b"-", -value) if value < 0 else (b"", value)
        part, value = value & mask, value >> 8 * size
        text = b"%b%02d:%02d:%02d" % (sign, value >> 12 & 1023, value >> 6 & 63, value & 63)
        return text + tail % (part // divisor) if digits else text

    return convert


_SIZES = (0, 1, 1, 2, 2, 3, 3, 4, 4, 4)


def decimal_size(precision: int, scale: int) -> int:
    """How many bytes a DECIMAL takes."""
    whole = precision - scale
    return whole // 9 * 4 + _SIZES[whole % 9] + scale // 9 * 4 + _SIZES[scale % 9]


def decimal(precision: int, scale: int) -> Convert:
    """Of a DECIMAL: its digits stand in groups of nine, four bytes each; all bits are inverted below zero."""
    size = decimal_size(precision, scale)
    top, full = 0x80 << 8 * (size - 1), (1 << 8 * size) - 1
    whole = precision - scale
    groups = [whole % 9] * (whole % 9 > 0) + [9] * (whole // 9)
    parts = [9] * (scale // 9) + [scale % 9] * (scale % 9 > 0)
    shifts, left = [], size
    for digits in groups + parts:
        left -= _SIZES[digits] if digits < 9 else 4
        shifts.append((8 * left, (1 << 8 * (_SIZES[digits] if digits < 9 else 4)) - 1, digits))
    wholes, rests = shifts[: len(groups)], shifts[len(groups) :]
    if len(wholes) == 1 and len(rests) == 1:
        # By far the most decimals: up to nine digits on either side.
        above, form, mask = wholes[0][0], b"%%d.%%0%dd" % rests[0][2], rests[0][1]
        negative = b"-" + form

        def short(raw: bytes) -> bytes:
            value = int.from_bytes(raw, "big")
            if value & top:
                value ^= top
                return form % (value >> above, value & mask)
            value ^= full ^ top
            return negative % (value >> above, value & mask)

        return short

    if len(wholes) == 2 and len(rests) == 1:
        (high, _, _), (low, ones, _) = wholes
        form, mask = b"%%d.%%0%dd" % rests[0][2], rests[0][1]
        negative = b"-" + form

        def longer(raw: bytes) -> bytes:
            value = int.from_bytes(raw, "big")
            if value & top:
                value ^= top
                return form % ((value >> high) * 1_000_000_000 + (value >> low & ones), value & mask)
            value ^= full ^ top
            return negative % ((value >> high) * 1_000_000_000 + (value >> low & ones), value & mask)

        return longer

    def convert(raw: bytes) -> bytes:
        value = int.from_bytes(raw, "big")
        sign, value = (b"", value ^ top) if value & top else (b"-", value ^ full ^ top)
        number = 0
        for shift, mask, digits in wholes:
            number = number * 10**digits + (value >> shift & mask)
        text = b"%b%d" % (sign, number)
        if not rests:
            return text
        return text + b"." + b"".join(b"%0*d" % (digits, value >> shift & mask) for shift, mask, digits in rests)

    return convert


def float32(raw: bytes) -> bytes:
    """The shortest text that gives the same number of single precision."""
    return short_float(_f32(raw)[0])


def short_float(value: float) -> bytes:
    """The shortest text of a number of single precision."""
    for digits in (6, 7, 8, 9):
        text = b"%.*g" % (digits, value)
        try:
            if unpack("<f", pack("<f", float(text)))[0] == value:
                break
        except (OverflowError, error):
            continue
    return repr(float(text)).encode()


def based(raw: bytes) -> bytes:
    """Base64, as JSON has bytes."""
    return b2a_base64(raw, newline=False)


_encode_text = msgspec.json.Encoder().encode


def escaped(raw: bytes) -> bytes:
    """Text as it stands within a JSON string."""
    return _encode_text(raw.decode("utf-8", "replace"))[1:-1]


def quoted(text: str) -> bytes:
    """Text as a JSON string."""
    return _encode_text(text)


def uuid(raw: bytes) -> bytes:
    """Of MariaDB's UUID."""
    h = raw.ljust(16, b"\0").hex()
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}".encode()


def inet6(raw: bytes) -> bytes:
    """Of MariaDB's INET6."""
    return socket.inet_ntop(socket.AF_INET6, raw.ljust(16, b"\0")).encode()


def inet4(raw: bytes) -> bytes:
    """Of MariaDB's INET4."""
    return socket.inet_ntop(socket.AF_INET, raw.ljust(4, b"\0")).encode()


def inflate(raw: bytes) -> bytes:
    """A value of a column that MariaDB keeps compressed."""
    if not raw:
        return raw
    head = raw[0]
    if head == 0:
        return raw[1:]
    if head >> 4 != 8:
        raise CaptureError(
            f"a value of a compressed column has the method {head >> 4}, which is not known",
            hint="Alter the column, so that it is not COMPRESSED",
        )
    return zlib.decompress(raw[1 + (head & 7) :], -15 if head & 8 else 15)
