"""The columns that a flow keeps beside the user's own, and which of them leave it.

A flow's frames carry, next to the user's columns, the event time as an integer, whether the row is late, and
where it stands in the log. They travel through ``select`` unseen and are dropped where the flow ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from ..errors import UsageError
from ..time import DAY
from .errors import FlowError, MissingColumn
from .instants import usual_instants

AT = "__at"
"""Event time of the row, microseconds since 1970 (Int64)."""

LATE = "__late"
"""Whether the row's time is below the watermark before it."""

SEQUENCE = "_position"
"""Where the row stands in the log; breaks ties of time and key."""

IDLE = "__idle"
"""Of what says that a source is silent, the time that it has reached (Int64); null for its rows."""

ID, OTHER = "__id", "__other"
"""When a row is explained: what each row is followed by; and what a joined row had on the other side."""

GONE = "__gone"
"""Of what is joined to others: whether a row says that its key is gone."""

ENVELOPE = ("_position", "_stream", "_version", "_type", "_time")
"""What the log knows of each event; usable in expressions, never part of the output."""

NO_TIME = -(2**62)
"""A time before all times: the watermark of a flow that has seen no row."""

END_OF_TIME = 2**62
"""A time after all times: the watermark that closes everything."""

NUMBERS = (pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64)
"""The types of whole numbers of at most 64 bits."""

_STRETCHES = 16

_NEARLY = 5
"""Rows are nearly in order where fewer than one in so many is earlier than the one before it."""

_FARTHEST = 2**61
"""A time that is farther from 1970 (some 73,000 years) is none: all others, and those a span later, are before the end
of time."""


def key_column(index: int) -> str:
    """The name under which a key column travels, so that ``select`` cannot lose the output's order."""
    return f"__key{index}"


def is_hidden(name: str) -> bool:
    """Whether a column is the flow's or the log's own."""
    return name.startswith("__") or name in ENVELOPE


def types_of(said: str, given: Mapping[str, Any]) -> dict[str, pl.DataType]:
    """The types that an argument gives to columns.

    Raises:
        UsageError: One of them is no type, or not a whole one.
    """
    if not isinstance(given, Mapping):
        raise UsageError(f"{said} is {given!r:.60}", hint=f"Write {said}{{'score': pl.Float64}}")
    found = {}
    for name, dtype in given.items():
        if not isinstance(name, str):
            raise UsageError(f"{said} names a column {name!r:.60}", hint="Name columns by text")
        try:
            found[name] = pl.Schema({name: dtype})[name]
        except TypeError as error:
            raise UsageError(
                f"{said} gives column {name!r} no type that is one: {dtype!r:.60}",
                hint="Give a type of Polars, with all that belongs to it: pl.Float64, pl.List(pl.String)",
            ) from error
    return found


def check_one(name: str) -> None:
    """Refuse a name that Polars reads as several columns.

    Raises:
        UsageError: It does.
    """
    if name == "*" or (name.startswith("^") and name.endswith("$")):
        raise UsageError(
            f"{name!r} is not the name of one column: it stands for several",
            hint="Name each of them; a column that is called so needs another name where its events are recorded",
        )


def columns_named(said: str, given: str | Iterable[str]) -> tuple[str, ...]:
    """The names of columns that an argument gives: one, or several.

    Raises:
        UsageError: They are no names, one of them is there twice, or stands for several columns.
    """
    if isinstance(given, str):
        given = (given,)
    if isinstance(given, Mapping | pl.Expr | pl.Series | pl.DataFrame) or not isinstance(given, Iterable):
        raise UsageError(f"{said} takes the names of columns, and got {given!r:.60}", hint=f"Write {said}'user'")
    names = tuple(given)
    for place, name in enumerate(names):
        if not isinstance(name, str):
            raise UsageError(f"{said} takes the names of columns, and got {name!r:.60}", hint=f"Write {said}'user'")
        if name in names[:place]:
            raise UsageError(f"{said} names {name!r} twice", hint="Name it once")
        check_one(name)
    return names


def visible(frame: pl.DataFrame) -> list[str]:
    """The names of the user's columns."""
    return [name for name in frame.columns if not is_hidden(name)]


def hidden(frame: pl.DataFrame) -> list[str]:
    """The names of the columns that travel unseen."""
    return [name for name in frame.columns if is_hidden(name)]


def picked(frame: pl.DataFrame, names: list[str]) -> pl.DataFrame:
    """Some columns of a frame. As an expression it would take ten times as long."""
    if names == frame.columns:
        return frame
    return pl.DataFrame([frame[name] for name in names]) if names else frame.select()


def followed(frame: pl.DataFrame) -> list[str]:
    """What rows are followed by, where they are."""
    return [ID] if ID in frame.columns else []


def times_of(frame: pl.DataFrame, column: str = AT) -> tuple[int, int]:
    """The least and the greatest time of rows, of which there is one at least."""
    low, high = frame[column].min(), frame[column].max()
    assert isinstance(low, int)
    assert isinstance(high, int)
    return low, high


def ordered(frame: pl.DataFrame, by: Sequence[str] | None = None) -> pl.DataFrame:
    """The rows by event time, key (nulls first), position: the order in which a flow's output is promised.

    Args:
        by: What decides where times are equal; by default the hidden columns of the keys, and the position.
    """
    if frame.height < 2:
        return frame
    if by is None:
        keys = sorted(name for name in frame.columns if name.startswith("__key"))
        by = [*keys, *([SEQUENCE] if SEQUENCE in frame.columns else [])]
    at = frame[AT].to_numpy()
    order = time_order(at)
    if order is not None:
        at = at[order]
    same = at[1:] == at[:-1]
    if by and same.any():
        # Times are mostly distinct, so it is cheaper to sort by time alone, and by the rest where it is equal.
        tied = np.flatnonzero(np.append(same, False) | np.append(False, same))
        places = tied if order is None else order[tied]
        # Rows of one position, which were one event once, stay in the order in which they came.
        among = _arranged([frame[name] for name in (AT, *by)], places)
        if not (among[1:] > among[:-1]).all():
            order = np.arange(frame.height) if order is None else order
            order[tied] = places[among]
    return frame if order is None else taken(frame, order)


def taken(frame: pl.DataFrame, places: npt.NDArray[np.int64]) -> pl.DataFrame:
    """The rows at some places, in that order."""
    return pl.DataFrame([_taken(series, places) for series in frame])


def _taken(series: pl.Series, places: npt.NDArray[np.int64]) -> pl.Series:
    if series.null_count() or not (series.dtype in NUMBERS or isinstance(series.dtype, pl.Datetime | pl.Duration)):
        # Of several pieces it would take ten times as long.
        return series.rechunk().gather(places)
    # By this thread alone, which then need not wait for those of Polars.
    values = pl.Series(series.name, np.take(series.to_physical().to_numpy(), places))
    return values if values.dtype == series.dtype else values.cast(series.dtype)


def _arranged(columns: Sequence[pl.Series], places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The order of rows at some places by all of these columns, nulls first; what is equal stays in its order."""
    if all(each.dtype in NUMBERS and not each.null_count() for each in columns):
        return np.lexsort([each.to_numpy()[places] for each in reversed(columns)])
    rows = pl.DataFrame([each.gather(places) for each in columns])
    by = rows.select(pl.arg_sort_by(rows.columns, nulls_last=False, maintain_order=True))
    return by.to_series().to_numpy().astype(np.int64)


def time_order(at: npt.NDArray[np.int64]) -> npt.NDArray[np.int64] | None:
    """The places of rows by their time; what is equal stays in its order. None where they are in that order."""
    stretches = int(np.count_nonzero(at[1:] < at[:-1]))
    if not stretches:
        return None
    # A few stretches that are in order each are merged: numpy looks for them, and takes ten times as long if not.
    order = order_of(at, nearly=_NEARLY * stretches < len(at)) if stretches > _STRETCHES else None
    return order if order is not None else np.argsort(at, kind="stable")


def order_of(*numbers: npt.NDArray[np.int64], nearly: bool = False) -> npt.NDArray[np.int64] | None:
    """The places of rows in ascending order of their numbers: of the first, where it is equal of the second, and so on.

    Rows that are equal in all of them stay in their order. None where they lie too far apart for this way.

    Args:
        nearly: Whether most of them are in that order already.
    """
    found = packed_order(*numbers, nearly=nearly)
    return found[0] if found is not None else None


def packed_order(
    *numbers: npt.NDArray[np.int64], nearly: bool = False
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64], list[int]] | None:
    """The same, with the numbers in that order, above their least and packed into one; and how many bits each has."""
    rows = len(numbers[0])
    lows = [int(each.min()) if rows else 0 for each in numbers]
    widths = [(int(each.max()) - low).bit_length() if rows else 0 for each, low in zip(numbers, lows, strict=True)]
    beside = max(rows - 1, 0).bit_length()
    if sum(widths) + beside > 64:
        return None
    # With its place as its last bits each number is one of a kind: to sort them takes half of what places take.
    packed = (numbers[0] - lows[0]).view(np.uint64)
    for each, low, width in zip(numbers[1:], lows[1:], widths[1:], strict=True):
        # In place: memory that is new costs more than what is done in it.
        packed <<= np.uint64(width)
        packed |= (each - low).view(np.uint64)
    packed <<= np.uint64(beside)
    packed |= np.arange(rows, dtype=np.uint64)
    if nearly:
        # By merging stretches that are in order, and by this thread alone.
        packed.sort(kind="stable")
    else:
        packed = pl.Series(packed).sort().to_numpy()
    return (packed & np.uint64((1 << beside) - 1)).view(np.int64), packed >> np.uint64(beside), widths


def by_time_and_key(frame: pl.DataFrame) -> pl.DataFrame:
    """Results by event time, then key (nulls first); what is equal stays in its order."""
    keys = sorted(name for name in frame.columns if name.startswith("__key"))
    if _in_order([frame[name] for name in (AT, *keys)]):
        return frame
    if keys and frame.height and frame[AT].min() == frame[AT].max():
        # As what one window gives: to sort by fewer columns takes a third of the time.
        return frame.sort(keys, nulls_last=False, maintain_order=True)
    return frame.sort([AT, *keys], nulls_last=False, maintain_order=True)


def _in_order(columns: Sequence[pl.Series]) -> bool:
    """Whether rows are known to be in the order of these columns already."""
    if len(columns) > 2 or any(each.dtype not in NUMBERS or each.null_count() for each in columns):
        return False
    first, *others = (each.to_numpy() for each in columns)
    later = first[1:] > first[:-1]
    equal = first[1:] == first[:-1]
    for other in others:
        equal &= other[1:] >= other[:-1]
    return bool((later | equal).all())


def shown(frame: pl.DataFrame, asked: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    """The rows as dicts, with the columns that are asked for; None for all of the user's."""
    columns = frame.select(asked if asked is not None else visible(frame))
    return dicts(columns) if columns.width else ({} for _ in range(frame.height))


def dicts(frame: pl.DataFrame) -> Iterator[dict[str, Any]]:
    """The rows as dicts.

    Raises:
        FlowError: A value is none that Python has, such as a time after the year 9999.
    """
    names = frame.columns
    return (dict(zip(names, row, strict=True)) for row in tuples(frame))


def tuples(frame: pl.DataFrame) -> Iterator[tuple[Any, ...]]:
    """The rows as tuples.

    Raises:
        FlowError: A value is none that Python has, such as a time after the year 9999.
    """
    try:
        yield from frame.iter_rows()
    except (OverflowError, ValueError, pl.exceptions.PanicException) as error:
        raise FlowError(
            f"a row holds a value that Python does not have: {error}",
            hint="Filter such rows out before, or leave the column out with select(...)",
        ) from error


def need(names: Iterable[str], columns: list[str], where: str, shown: list[str] | None = None) -> None:
    """See that columns are there.

    Args:
        shown: Those that the error names, when not all of them.

    Raises:
        MissingColumn: One is not.
    """
    for name in names:
        if name not in columns:
            raise MissingColumn(name, where, [n for n in columns if n[:2] != "__"] if shown is None else shown)


UTC = pl.Datetime("us", "UTC")
"""The type of the times that go out."""


def utc(micros: pl.Expr) -> pl.Expr:
    """Integer microseconds as a UTC datetime."""
    return micros.cast(UTC)


def micros(column: str, dtype: pl.DataType) -> pl.Expr | None:
    """A column's event time as integer microseconds, or None where the type holds no time.

    A datetime without a zone is taken as UTC. Text is read as ISO 8601; what is not a time becomes null, and so does
    what is too far from 1970 to be one.
    """
    if isinstance(dtype, pl.Datetime):
        if dtype.time_unit == "ms":
            return _near(pl.col(column).to_physical(), 1_000)
        return _near(pl.col(column).dt.epoch("us"))
    if isinstance(dtype, pl.Date):
        return _near(pl.col(column).to_physical().cast(pl.Int64), DAY)
    if isinstance(dtype, pl.String):
        return _near(pl.col(column).map_batches(_parsed, return_dtype=pl.Int64()))
    if isinstance(dtype, pl.Null):
        return pl.lit(None, pl.Int64)
    return None


def is_near(values: pl.Series, farthest: int = _FARTHEST) -> bool:
    """Whether all numbers are near enough to be times."""
    low, high = values.min(), values.max()
    return not (isinstance(low, int) and isinstance(high, int)) or (low >= -farthest and high <= farthest)


def _near(number: pl.Expr, micros: int = 1) -> pl.Expr:
    """So many times that many microseconds; null where that is too far."""
    farthest = _FARTHEST // micros

    def near(values: pl.Series) -> pl.Series:
        if not is_near(values, farthest):
            # Before they are multiplied, which may be more than a number holds.
            values = values.set(~values.is_between(-farthest, farthest), None)
        return values if micros == 1 else values * micros

    return number.map_batches(near, return_dtype=pl.Int64())


def _parsed(text: pl.Series) -> pl.Series:
    """Text as microseconds: each value for itself, since a format guessed from others would vary with the batch."""
    quick = usual_instants(text)
    if quick is not None:
        return quick
    usual = text.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%#z", time_unit="us", time_zone="UTC", strict=False)
    found = usual.dt.epoch("us")
    odd = found.is_null() & text.is_not_null()
    if odd.any():
        column = pl.col(text.name).str.strip_chars().str.to_uppercase().str.replace(" ", "T", literal=True)
        rest = pl.DataFrame(text.filter(odd)).select(_of_any_form(column)).to_series()
        found = found.scatter(odd.arg_true(), rest)
    return found


def _of_any_form(text: pl.Expr) -> pl.Expr:
    zoned = [f"%Y-%m-%dT%H:%M{seconds}%#z" for seconds in (":%S%.f", "")]
    plain = [f"%Y-%m-%dT%H:%M{seconds}" for seconds in (":%S%.f", "")]
    return pl.coalesce(
        *(text.str.to_datetime(each, time_unit="us", time_zone="UTC", strict=False).dt.epoch("us") for each in zoned),
        *(text.str.to_datetime(each, time_unit="us", strict=False).dt.epoch("us") for each in plain),
        text.str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("us")).dt.epoch("us"),
    )


def names_of(expressions: Iterable[pl.Expr]) -> set[str]:
    """The columns that expressions read."""
    return {name for expression in expressions for name in expression.meta.root_names()}
