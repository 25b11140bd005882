"""Times that are text of one usual form, read as numbers: far faster than by a parser, which takes all other text."""

from __future__ import annotations

from datetime import date

import numpy as np
import numpy.typing as npt
import polars as pl

from ..time import DAY

_AT_ONCE = 16_384
"""So many texts are read at a time, which keeps them in the processor's cache."""

_DATE = len("2024-01-15T")
_EPOCH = date(1970, 1, 1).toordinal()
_SHORTEST, _LONGEST = len("2024-01-15T12:00:00Z"), len("2024-01-15T12:00:00.123456Z")


def usual_instants(text: pl.Series) -> pl.Series | None:
    """Microseconds since 1970 of ISO 8601 text in UTC, such as ``2024-01-15T12:00:00.123Z``.

    None when any value is of another form, or of another length than the rest: that is for a parser.
    """
    count, length = len(text), text.str.len_bytes()
    size = length.min()
    if not count or text.null_count() or not isinstance(size, int) or size != length.max():
        return None
    if not _SHORTEST <= size <= _LONGEST or size == _SHORTEST + 1:
        return None
    found = []
    for start in range(0, count, _AT_ONCE):
        joined = text.slice(start, _AT_ONCE).str.join("").item().encode()
        days = _days(joined, size)
        clock = _clock(joined, size)
        if days is None or clock is None:
            return None
        clock += days * np.int64(DAY)
        found.append(clock)
    return pl.Series(text.name, found[0] if len(found) == 1 else np.concatenate(found))


def _days(joined: bytes, size: int) -> npt.NDArray[np.int64] | int | None:
    """The days since 1970 of texts of one size, one after another; one number where it is one day. None: not usual."""
    count = len(joined) // size
    # A date and the T after it are eleven bytes: eight, and the last four once more.
    parts = (np.ndarray((count,), kind, joined, at, (size,)) for kind, at in (("<u8", 0), ("<u4", 7)))
    if all((part == part[0]).all() for part in parts):
        try:
            only = date.fromisoformat(joined[:10].decode("ascii"))
        except ValueError:
            return None
        return only.toordinal() - _EPOCH if joined[4:11:3] == b"--T" else None
    signs = _turned(joined, size, 0, _DATE)
    if not all((signs[place] == ord(sign)).all() for place, sign in ((4, "-"), (7, "-"), (10, "T"))):
        return None
    digits = signs - ord("0")
    if any(digits[place].max() > 9 for place in (0, 1, 2, 3, 5, 6, 8, 9)):
        return None
    year, month, day = (_number(digits, *span) for span in ((0, 4), (5, 7), (8, 10)))
    if month.min() < 1 or month.max() > 12 or day.min() < 1 or year.min() < 1:
        return None
    months = year * 12 + month - 1
    first = int(months.min())
    begins = _days_before(np.arange(first, int(months.max()) + 2))
    months -= first
    if (day > np.diff(begins)[months]).any():
        return None
    days: npt.NDArray[np.int64] = begins[months] + (day - 1)
    return days


def _clock(joined: bytes, size: int) -> npt.NDArray[np.int64] | None:
    """The microseconds since midnight of texts of one size, one after another; None: not usual."""
    signs = _turned(joined, size, _DATE, size)
    fraction = len(signs) - len("12:00:00.Z")
    separators = {2: ":", 5: ":", len(signs) - 1: "Z"} | ({8: "."} if fraction > 0 else {})
    if not all((signs[place] == ord(sign)).all() for place, sign in separators.items()):
        return None
    # What stands before "0" becomes great.
    digits = signs - ord("0")
    if any(digits[place].max() > 9 for place in range(len(signs)) if place not in separators):
        return None
    hour, minute, second = (_number(digits, *span) for span in ((0, 2), (3, 5), (6, 8)))
    if hour.max() > 23 or minute.max() > 59 or second.max() > 59:
        return None
    micros = ((hour * 60 + minute) * 60 + second).astype(np.int64)
    micros *= 1_000_000
    if fraction > 0:
        micros += _number(digits, 9, 9 + fraction) * np.int32(10 ** (6 - fraction))
    return micros


def _turned(joined: bytes, size: int, start: int, end: int) -> npt.NDArray[np.uint8]:
    """Some bytes of each of many texts of one size: a row for each place."""
    return np.ascontiguousarray(np.frombuffer(joined, np.uint8).reshape(-1, size)[:, start:end].T)


def _number(digits: npt.NDArray[np.uint8], start: int, end: int) -> npt.NDArray[np.int32]:
    number: npt.NDArray[np.int32] = digits[start].astype(np.int32)
    for place in range(start + 1, end):
        number *= 10
        number += digits[place]
    return number


def _days_before(months: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The days from 1970 to the first of months, which are counted from the year 0."""
    return (months - 1970 * 12).astype("datetime64[M]").astype("datetime64[D]").astype(np.int64)
