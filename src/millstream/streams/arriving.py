"""The rows of a source as they come: their time, whether they are late, and how its watermark moves."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import polars as pl

from .columns import AT, ENVELOPE, IDLE, LATE, NO_TIME, SEQUENCE, UTC, is_near, micros, visible
from .errors import FlowError, MissingColumn
from .tree import Source

_MICROS = (pl.Datetime("us"), UTC)

_known = pl.col(AT).fill_null(NO_TIME)


def timed(source: Source, rows: pl.DataFrame, high: int, asked: Collection[str]) -> tuple[pl.DataFrame, int]:
    """The rows with their time and whether they are late; and the greatest time so far.

    Args:
        source: The source.
        rows: Its rows, with the log's envelope.
        high: The greatest time before.
        asked: The columns of the envelope that the flow asks for.
    """
    name = source.time or "_time"
    if name not in rows.columns:
        raise MissingColumn(name, f"stream({source.stream!r}, time=...)", visible(rows), source)
    keep = [n for n in rows.columns if n not in ENVELOPE or n in asked or n == SEQUENCE]
    quick = _plain(rows, name) if source.ahead is None and IDLE not in rows.columns else None
    if quick is not None:
        rows = pl.DataFrame([*(rows[each] for each in keep), quick])
    else:
        rows = rows.select(*keep, _reckoned(source, rows, name).alias(AT))
    if not rows.height:
        return rows.with_columns(pl.lit(False).alias(LATE)), high
    rows = rows.hstack([_late(rows[AT], high, source.lateness)])
    greatest = rows[AT].max()
    return rows, max(high, greatest) if isinstance(greatest, int) else high


def _plain(rows: pl.DataFrame, name: str) -> pl.Series | None:
    """The times of a column that holds them as they are reckoned with here; None of any other."""
    if rows.schema[name] not in _MICROS:
        return None
    at = rows[name].to_physical()
    return at.alias(AT) if is_near(at) else None


def _reckoned(source: Source, rows: pl.DataFrame, name: str) -> pl.Expr:
    """The times of any column; null where it holds none."""
    at = micros(name, rows.schema[name])
    if at is None:
        raise FlowError(
            f"column {name!r} of stream {source.stream!r} is {rows.schema[name]}, which is no time",
            hint="Name a column of datetimes, or of ISO 8601 text",
        )
    at = at.cast(pl.Int64)
    if source.ahead is not None:
        if "_time" not in rows.columns:
            raise MissingColumn("_time", f"stream({source.stream!r}, ahead=...)", visible(rows))
        # A stamp that cannot be is no time: so it moves no watermark, and its row goes aside.
        at = pl.when(at <= pl.col("_time").dt.epoch("us") + source.ahead).then(at)
    return pl.coalesce(IDLE, at) if IDLE in rows.columns else at


def _late(at: pl.Series, high: int, lateness: int) -> pl.Series:
    """Whether each row is late, by the watermark when it comes: the greatest time of the rows before decides."""
    nulls = at.null_count() > 0
    times = (at.fill_null(NO_TIME) if nulls else at).to_numpy()
    reached = np.maximum.accumulate(times)
    np.maximum(reached, high, out=reached)
    late = np.empty(len(times), np.bool_)
    late[0] = times[0] < high - lateness
    reached -= lateness
    np.less(times[1:], reached[:-1], out=late[1:])
    found = pl.Series(LATE, late)
    return found | at.is_null() if nulls else found


def passage(source: Source, frame: pl.DataFrame, high: int) -> tuple[pl.Series, pl.Series]:
    """A source's positions, and its watermark once each of them was taken in."""
    reached = pl.max_horizontal(_known.cum_max(), pl.lit(high, pl.Int64))
    marks = pl.when(reached > NO_TIME).then(reached - source.lateness).otherwise(NO_TIME)
    found = frame.select(SEQUENCE, marks.alias(AT))
    return found[SEQUENCE], found[AT]


def watermark_of(source: Source, high: int) -> int:
    """The watermark of a source of which that was the greatest time."""
    return high - source.lateness if high > NO_TIME else NO_TIME


def heights(frame: pl.DataFrame | Sequence[pl.DataFrame | None]) -> list[int]:
    """How many rows of each source there are, without what says that one is silent."""
    frames = [frame] if isinstance(frame, pl.DataFrame) else list(frame)
    return [
        0 if each is None else each.height if IDLE not in each.columns else each[IDLE].null_count() for each in frames
    ]
