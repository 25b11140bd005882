"""Tumbling and hopping windows: panes of mergeable partials, closed by the watermark.

Time is cut into *panes*, the greatest pieces of which every window is made; a batch adds one part with its
partials per pane and key, and what a batch costs follows the batch. A window covers ``[start, end)`` with
starts at multiples of ``every`` since 1970-01-01T00:00Z. It closes when the watermark reaches its end, and
its result is then final. Windows without a row give no result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
import numpy as np
import polars as pl

from ..errors import UsageError
from ..time import Duration, span_micros
from .aggregates import Aggregation, merge_partials, partials_of, tallied_of
from .closing import Closing, is_much
from .columns import AT, ENVELOPE, LATE, SEQUENCE, by_time_and_key, check_one, is_hidden, key_column, need, utc
from .errors import FlowError
from .keys import unsigned
from .state import Batch, Kept, OperatorState, Order, Parts, Step, concat

PANE = "__pane"
WINDOW = "__window"

_MOST = 100_000
"""In so many windows a row may be."""


class Hopping(msgspec.Struct, frozen=True):
    """Windows of one size that start every so often; see `hopping` and `tumbling`."""

    size: int
    every: int


class Sliding(msgspec.Struct, frozen=True):
    """A trailing span for each row; see `sliding`."""

    size: int
    closed: Literal["both", "right"] = "both"


class Session(msgspec.Struct, frozen=True):
    """Stretches of rows without a gap; see `session`."""

    gap: int


class Count(msgspec.Struct, frozen=True):
    """So many rows; see `count`."""

    rows: int


class Calendar(msgspec.Struct, frozen=True):
    """Days, weeks, months of a time zone; see `calendar`."""

    every: str
    zone: str


Window = Hopping | Sliding | Session | Count | Calendar


def _positive(name: str, duration: Duration) -> int:
    micros = span_micros(name, duration)
    if micros == 0:
        raise UsageError(f"{name} is zero", hint="Give a duration such as '5m'")
    return micros


def tumbling(size: Duration) -> Hopping:
    """Windows side by side: each row is in one. They start at multiples of ``size`` since 1970, in UTC.

    Args:
        size: Their length, such as ``"5m"``; a window covers ``[start, start + size)``.
    """
    micros = _positive("the size of the window", size)
    return Hopping(micros, micros)


def hopping(size: Duration, *, every: Duration) -> Hopping:
    """Windows that overlap: one starts every ``every``, and each row is in ``size / every`` of them.

    Args:
        size: Their length, such as ``"5m"``; a window covers ``[start, start + size)``.
        every: How far their starts are apart, such as ``"1m"``; at most ``size``.
    """
    micros, hop = _positive("the size of the window", size), _positive("every", every)
    if hop > micros:
        raise UsageError(f"windows of {size} every {every} would leave rows out", hint="Let every= be at most the size")
    if micros > _MOST * hop:
        raise UsageError(
            f"each row would be in {-(-micros // hop):,} windows of {size} every {every}",
            hint="Let every= be longer; or use sliding(...), which answers each row",
        )
    return Hopping(micros, hop)


def sliding(size: Duration, *, closed: Literal["both", "right"] = "both") -> Sliding:
    """An answer for each row, over the span of time that ends with it.

    Args:
        size: The length of the span, such as ``"5m"``.
        closed: ``"both"`` counts rows with time in ``[t - size, t]``, as SQL's ``RANGE BETWEEN … PRECEDING
            AND CURRENT ROW`` does; ``"right"`` leaves out those at exactly ``t - size``. Rows of the same
            key and time count for one another.
    """
    if closed not in ("both", "right"):
        raise UsageError(f"closed={closed!r} is not known", hint="Use 'both' or 'right'")
    return Sliding(_positive("the size of the window", size), closed)


def session(gap: Duration) -> Session:
    """Stretches of a key's rows, each less than ``gap`` after the one before.

    A session covers the time from its first row to ``gap`` after its last, and closes when the watermark is there.

    Args:
        gap: The time without a row that ends a session, such as ``"30m"``.
    """
    return Session(_positive("the gap between sessions", gap))


def count(rows: int) -> Count:
    """So many rows of a key, in order of time (ties in order of the log), side by side: each row is in one.

    A window is given once the watermark has passed its last row; ``window_start`` and ``window_end`` are the times
    of its first and last row. One that is never filled is never given.

    Args:
        rows: How many rows a window has.
    """
    if not isinstance(rows, int) or rows < 1:
        raise UsageError(f"a window of {rows!r} rows", hint="Give a number of rows, such as 100")
    return Count(rows)


def calendar(every: str, *, time_zone: str) -> Calendar:
    """Days, weeks, months as the clocks of a time zone show them: a day has 23 or 25 hours where they change.

    A day (and what begins with one) begins the first time that the clocks show its midnight, or when they jump over
    it. An hour begins each time that they strike it, or jump over that: one that comes twice is two windows; where
    clocks go back by half an hour, one has ninety minutes.

    Args:
        every: ``"1h"``, ``"1d"``, ``"1w"`` (from Monday), ``"1mo"``, ``"1q"`` or ``"1y"``.
        time_zone: Such as ``"America/New_York"``.
    """
    if every not in ("1h", "1d", "1w", "1mo", "1q", "1y"):
        raise UsageError(f"every={every!r} is no calendar window", hint="Use 1h, 1d, 1w, 1mo, 1q or 1y")
    try:
        ZoneInfo(time_zone)
    except (ZoneInfoNotFoundError, ValueError, OSError, TypeError) as error:
        raise UsageError(f"{time_zone!r} is no time zone", hint="Use a name such as 'America/New_York'") from error
    return Calendar(every, time_zone)


class PaneWindows(msgspec.Struct, frozen=True, eq=False):
    """The operator of tumbling and hopping windows. Kept are partials per pane and key."""

    window: Hopping
    keys: tuple[str, ...]
    aggregation: Aggregation

    order: ClassVar[Order] = "time"

    @property
    def pane(self) -> int:
        """The length of a pane."""
        return math.gcd(self.window.size, self.window.every)

    @property
    def reads(self) -> set[str]:
        """The columns that it reads."""
        return {*self.keys, *self.aggregation.reads}

    @property
    def shape(self) -> str:
        return f"window {self.window.size}/{self.window.every} by {self.keys} of {self.aggregation.shape}"

    def start(self) -> Kept:
        return Kept()

    def restore(self, parts: Parts, watermark: int) -> Kept:
        return Kept(parts.expire(self.limit(watermark), PANE))

    def step(self, state: OperatorState, batch: Batch) -> Step:
        parts = state.parts
        if batch.reshaped:
            like = self.partials(batch.frame)
            return Step(Kept(parts.reshaped(like, self.merge)), self.nothing(like))
        parts, late = self._with(parts, batch)
        closed = self.closed(parts, batch.before, batch.after)
        return Step(Kept(parts.expire(self.limit(batch.after), PANE)), closed, late)

    def closing(self, state: OperatorState, batch: Batch) -> Closing | None:
        """The same, when what closes is too much for one frame."""
        if batch.reshaped or not self.closes_much(state.parts, batch.before, batch.after):
            return None
        parts, late = self._with(state.parts, batch)
        results = map(self._finish, self._merged(parts, batch.before, batch.after))
        return Closing(results, lambda: Kept(parts.expire(self.limit(batch.after), PANE)), late)

    def _with(self, parts: Parts, batch: Batch) -> tuple[Parts, pl.DataFrame | None]:
        """The state with the rows of a batch, and those that came late."""
        rows, late = split_late(batch.frame)
        if rows.height:
            parts = parts.add_by(self.partials(rows), PANE).compact(self.merge, by=self.keys)
        return parts, late

    # --- rows to partials -----------------------------------------------------------------------------

    def partials(self, rows: pl.DataFrame) -> pl.DataFrame:
        """The partials of some rows, per pane and key."""
        need(self.keys, rows.columns, "group_by")
        rows = unsigned(rows, self.keys)
        least, most = rows[AT].min(), rows[AT].max()
        low, high = (each // self.pane if isinstance(each, int) else None for each in (least, most))
        by = [PANE, *self.keys]
        if low is None or high is None or high - low > 2:
            return partials_of(self.aggregation, self._in_panes(rows), by)
        if self.keys and low < high and self.aggregation.tallies is not None:
            found = tallied_of(self.aggregation, self._in_panes(rows), by)
            if found is not None:
                return found
        # A batch mostly falls into one or two panes; grouping by the key alone is then twice as fast.
        pieces = []
        for index in range(low, high + 1):
            inside = rows
            if low < high:
                inside = rows.filter(pl.col(AT).is_between(index * self.pane, (index + 1) * self.pane - 1))
            if inside.height:
                found = partials_of(self.aggregation, inside, self.keys)
                pieces.append(found.select(pl.lit(index, pl.Int64).alias(PANE), pl.all()))
        return concat(pieces)

    def _in_panes(self, rows: pl.DataFrame) -> pl.DataFrame:
        return rows.with_columns((pl.col(AT) // self.pane).alias(PANE))

    def merge(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Partials with those of one pane and key as one."""
        return merge_partials(self.aggregation, frame, [PANE, *self.keys])

    # --- partials to windows --------------------------------------------------------------------------

    def _last_closed(self, watermark: int) -> int:
        """The number of the last window whose end the watermark has reached."""
        return (watermark - self.window.size) // self.window.every

    def limit(self, watermark: int) -> int:
        """The first pane that some window still needs."""
        return (self._last_closed(watermark) + 1) * self.window.every // self.pane

    def closed(self, parts: Parts, before: int, after: int) -> pl.DataFrame:
        """The results of the windows that close while the watermark goes from one time to another."""
        merged = list(self._merged(parts, before, after))
        return self._finish(concat(merged)) if merged else pl.DataFrame()

    def closes_much(self, parts: Parts, before: int, after: int) -> bool:
        """Whether the windows that close between two times hold more than should be in memory together."""
        closing = self._closing(parts, before, after)
        return closing is not None and is_much(parts, closing[2])

    def _closing(self, parts: Parts, before: int, after: int) -> tuple[int, int, int] | None:
        """The numbers of the first and the last of those windows, and the pane after all; None without any."""
        first, last = self._last_closed(before) + 1, self._last_closed(after)
        every, pane = self.window.every, self.pane
        low = parts.low
        if low is not None:
            # No window before the first that holds the earliest pane has anything in it.
            first = max(first, (low * pane - self.window.size) // every + 1)
        if low is None or first > last:
            return None
        return first, last, (last * every + self.window.size) // pane

    def _merged(self, parts: Parts, before: int, after: int) -> Iterator[pl.DataFrame]:
        """The partials of those windows, in several frames, each with all of its keys."""
        closing = self._closing(parts, before, after)
        if closing is None:
            return
        first, last, end = closing
        every, pane = self.window.every, self.pane
        for held in parts.pieces(self.keys, end):
            if first == last:
                inside = held.filter(pl.col(PANE).is_between(first * every // pane, end - 1))
                if inside.height:
                    merged = merge_partials(self.aggregation, inside, self.keys)
                    yield merged.with_columns(pl.lit(first, pl.Int64).alias(WINDOW))
                continue
            windows = self.spread(held, lambda window: window.is_between(first, last))
            yield merge_partials(self.aggregation, windows, [WINDOW, *self.keys])

    def spread(self, held: pl.DataFrame, wanted: Callable[[pl.Expr], pl.Expr]) -> pl.DataFrame:
        """Rows per pane, once for each window that they are in, of those windows that are wanted, by their numbers."""
        size, every, pane = self.window.size, self.window.every, self.pane
        # A pane belongs to the window that starts last before it, and to those before as far as they reach.
        newest = pl.col(PANE) * pane // every
        spread = []
        for back in range(-(-size // every)):
            window = newest - back
            inside = held.filter(wanted(window) & (window * every + size > pl.col(PANE) * pane))
            spread.append(inside.with_columns(window.alias(WINDOW)))
        return concat(spread)

    def end(self, window: pl.Expr) -> pl.Expr:
        """When a window ends, by its number."""
        return window * self.window.every + self.window.size

    def revised(self, spread: pl.DataFrame, at: int) -> pl.DataFrame:
        """The results of windows that are given at another time than their end."""
        merged = merge_partials(self.aggregation, spread, [WINDOW, *self.keys]).sort(WINDOW)
        return self._result(merged, pl.lit(at)) if merged.height else pl.DataFrame()

    def _finish(self, merged: pl.DataFrame) -> pl.DataFrame:
        return self._result(merged) if merged.height else pl.DataFrame()

    def _result(self, merged: pl.DataFrame, at: pl.Expr | None = None) -> pl.DataFrame:
        end = self.end(pl.col(WINDOW))
        # The last moment that it covers: its end is the first of the window after it.
        at = end - 1 if at is None else at
        return results(merged, self.keys, self.aggregation, end - self.window.size, end, at)

    def nothing(self, like: pl.DataFrame) -> pl.DataFrame:
        """No result, with its columns, by partials without a row."""
        return self._result(like.with_columns(pl.col(PANE).alias(WINDOW)))


def results(
    merged: pl.DataFrame, keys: Sequence[str], aggregation: Aggregation, start: pl.Expr, end: pl.Expr, at: pl.Expr
) -> pl.DataFrame:
    """What windows give, from the partials of each: in output order, numbered.

    Args:
        merged: A row for each window and key.
        keys: The key columns.
        aggregation: What finishes the partials.
        start: Each window's start, as integer microseconds.
        end: Its end.
        at: The event time of the result.
    """
    result = aggregation.finished(merged).select(
        *keys,
        utc(start).alias("window_start"),
        utc(end).alias("window_end"),
        *aggregation.finals,
        at.cast(pl.Int64).alias(AT),
        pl.lit(False).alias(LATE),
        *(pl.col(key).alias(key_column(i)) for i, key in enumerate(keys)),
    )
    return numbered(result)


def numbered(result: pl.DataFrame) -> pl.DataFrame:
    """Results in output order, numbered, for operators downstream that break ties by sequence.

    The number starts anew with each batch; it is compared only between rows of one time, and those always
    come in one batch.
    """
    return by_time_and_key(result).with_columns(pl.Series(SEQUENCE, np.arange(result.height)))


def split_late(frame: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame | None]:
    """The rows that are in time, and those that are late (None when there are none)."""
    if not frame.height or not frame[LATE].any():
        return frame, None
    return frame.filter(~pl.col(LATE)), frame.filter(LATE)


def check_name(name: str) -> None:
    """Refuse an output column that would not be seen."""
    if is_hidden(name):
        raise FlowError(
            f"column {name!r} would not come out: the name is the {'log' if name in ENVELOPE else 'flow'}'s own",
            hint=f"Give it another name: with_columns({name.strip('_') or 'x'}=pl.col({name!r}))",
        )


def check_names(keys: Sequence[str], names: Sequence[str], others: Sequence[str] = ()) -> None:
    """Refuse output columns that would hide one another."""
    seen: set[str] = set()
    for name in (*keys, *others, *names):
        check_name(name)
        check_one(name)
        if name in seen:
            raise UsageError(f"two output columns are named {name!r}", hint="Give one of them another name")
        seen.add(name)
