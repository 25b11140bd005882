"""Which rows made a row, by what each operator is declared to do."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl
from polars.exceptions import PolarsError

from ..log.objects import fitted, union
from .broadcast import Broadcast
from .calendars import CalendarWindows
from .columns import AT, END_OF_TIME, ID, LATE, NO_TIME, OTHER, SEQUENCE, key_column, visible
from .counted import CountWindows
from .fold import Fold
from .joins import AsOfJoin, IntervalJoin
from .keyed import beside
from .match import Match
from .processing import Processed
from .revising import RevisingWindows
from .sequences import Sequences
from .sessions import SessionWindows
from .state import Batch, Operator
from .trailing import SlidingWindows
from .tree import Meeting
from .windowjoin import WindowJoin
from .windows import PaneWindows

Combining = (
    PaneWindows
    | RevisingWindows
    | SessionWindows
    | CalendarWindows
    | CountWindows
    | SlidingWindows
    | Match
    | Sequences
    | Fold
    | Processed
)
"""The stages whose rows are made of several rows; those of all others are rows that they were given."""

MINE = "__mine"
"""Of a joined row, the row of its own side."""

MARK = "__mark"
"""Of a row that came into a window whose results may change: the watermark before it."""

_LOW, _HIGH = "__low", "__high"


def parents_of(operator: Operator | Meeting, rows: pl.DataFrame, came: Sequence[pl.DataFrame | None]) -> set[int]:
    """The numbers of the rows that some rows of an operator were made of.

    Args:
        operator: A stage of several rows, or where flows meet.
        rows: The rows.
        came: All that came into each of its inputs; None where nothing did.
    """
    match operator:
        case PaneWindows() | SessionWindows() | CalendarWindows():
            start, end = pl.col("window_start").dt.epoch("us"), pl.col("window_end").dt.epoch("us")
            return _within(rows, _in_time(came[0]), operator.keys, start, end - 1)
        case SlidingWindows():
            span = operator.window.size - (operator.window.closed == "right")
            return _within(rows, _in_time(came[0]), operator.keys, pl.col(AT) - span, pl.col(AT))
        case CountWindows():
            return _counted(operator, rows, _in_time(came[0]))
        case Match() | Sequences():
            return _matched(operator, rows, _in_time(came[0]))
        case Processed():
            return _processed(operator, rows, _in_time(came[0]))
        case Fold():
            return _folded(operator, rows, _in_time(came[0]))
        case IntervalJoin() if operator.how == "semi":
            left = pl.col(AT) - operator.ahead
            partners = came[1]
            found = _within(rows, partners, operator.on, left - operator.back, pl.col(AT), nulls=False)
            return found | _ids(rows[MINE])
        case WindowJoin() if operator.how == "semi":
            start, end = pl.col("window_start").dt.epoch("us"), pl.col("window_end").dt.epoch("us")
            return _within(rows, came[1], operator.on, start, end - 1, nulls=False) | _ids(rows[MINE])
        case IntervalJoin() | AsOfJoin() | WindowJoin() | Broadcast():
            return _ids(rows[MINE]) | _ids(rows[OTHER])
        case RevisingWindows():
            assert came[0] is not None
            return _revised(operator, rows, came[0])
    raise AssertionError(f"{type(operator).__name__} has no origins")


def _ids(series: pl.Series) -> set[int]:
    return set(series.drop_nulls().to_list())


def _in_time(came: pl.DataFrame | None) -> pl.DataFrame:
    assert came is not None
    return came.filter(~pl.col(LATE))


def _within(
    rows: pl.DataFrame,
    came: pl.DataFrame | None,
    keys: Sequence[str],
    low: pl.Expr,
    high: pl.Expr,
    *,
    nulls: bool = True,
) -> set[int]:
    """The rows of the same key whose time is in a span of some row."""
    if came is None:
        return set()
    names = [key_column(number) for number in range(len(keys))]
    spans = rows.select(*names, low.alias(_LOW), high.alias(_HIGH)).unique()
    others = came.select(*(pl.col(key).alias(name) for key, name in zip(keys, names, strict=True)), AT, ID)
    near = _joined(spans, others, names, nulls) if keys else spans.join(others, how="cross")
    return _ids(near.filter(pl.col(AT).is_between(pl.col(_LOW), pl.col(_HIGH)))[ID])


def _joined(spans: pl.DataFrame, others: pl.DataFrame, names: list[str], nulls: bool) -> pl.DataFrame:
    """Rows that agree in some columns, whose types may be those of two sides of a join."""
    types = union(dict(spans.select(names).schema), dict(others.select(names).schema))
    sides = [fitted(each, {**dict(each.schema), **types}) for each in (spans, others)]
    return beside(sides[0], sides[1], names, how="inner", nulls_equal=nulls)


def _of_key(row: pl.DataFrame, came: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    """The rows of a row's key, in order of time and place."""
    same = pl.lit(True)
    for number, key in enumerate(keys):
        same = same & pl.col(key).eq_missing(pl.lit(row[key_column(number)].item(), row[key_column(number)].dtype))
    return came.filter(same).sort(AT, SEQUENCE, maintain_order=True)


def _each(rows: pl.DataFrame) -> list[pl.DataFrame]:
    return [rows.slice(index, 1) for index in range(rows.height)]


def _counted(stage: CountWindows, rows: pl.DataFrame, came: pl.DataFrame) -> set[int]:
    found: set[int] = set()
    for row in _each(rows):
        mine = _of_key(row, came, stage.keys)
        nth = pl.int_range(pl.len()) // stage.window.rows
        last = pl.col(AT).max().over(nth)
        first = pl.col(AT).min().over(nth)
        start, end = (row[name].dt.epoch("us").item() for name in ("window_start", "window_end"))
        windows = mine.with_columns(nth.alias("__nth"), first.alias(_LOW), last.alias(_HIGH))
        alike = windows.filter((pl.col(_LOW) == start) & (pl.col(_HIGH) == end))
        # Several windows may lie within one moment; they are told apart by what they aggregate.
        for _, window in alike.group_by("__nth", maintain_order=True):
            if alike["__nth"].n_unique() == 1 or _gives(stage, window, row):
                found |= _ids(window[ID])
                break
    return found


def _folded(stage: Fold, rows: pl.DataFrame, came: pl.DataFrame) -> set[int]:
    found: set[int] = set()
    for row in _each(rows):
        at, place = row[AT].item(), row[SEQUENCE].item()
        before = (pl.col(AT) < at) | ((pl.col(AT) == at) & (pl.col(SEQUENCE) <= place))
        mine = _of_key(row, came, stage.keys).filter(before)
        if stage.forget is not None:
            begins = (pl.col(AT) - pl.col(AT).shift(1) >= stage.forget).fill_null(False)
            life = mine.select(begins.cum_sum().alias("__life"))["__life"]
            mine = mine.filter(life == life[-1])
        found |= _ids(mine[ID])
    return found


def _revised(stage: RevisingWindows, rows: pl.DataFrame, came: pl.DataFrame) -> set[int]:
    """The rows of a window that had come when its result was given: it is given when the watermark passes a tick."""
    counts = came.filter((~pl.col(LATE) | (pl.col(AT) >= pl.col(MARK) - stage.allowed)).fill_null(False))
    start, end = pl.col("window_start").dt.epoch("us"), pl.col("window_end").dt.epoch("us")
    found: set[int] = set()
    for row in _each(rows):
        found |= _within(row, counts.filter(pl.col(MARK) <= row[AT].item()), stage.windows.keys, start, end - 1)
    return found


def _processed(stage: Processed, rows: pl.DataFrame, came: pl.DataFrame) -> set[int]:
    """All rows of the key up to the time of a row: any of them may have set the timer."""
    found: set[int] = set()
    for row in _each(rows):
        mine = _of_key(row, came, stage.keys)
        found |= _ids(mine.filter(pl.col(AT) <= row[AT].item())[ID])
    return found


def _matched(stage: Match | Sequences, rows: pl.DataFrame, came: pl.DataFrame) -> set[int]:
    """The rows that a match took: of those of its time, as few as give it."""
    found: set[int] = set()
    for row in _each(rows):
        start, end = (row[name].dt.epoch("us").item() for name in ("match_start", "match_end"))
        near = _of_key(row, came, stage.keys).filter(pl.col(AT).is_between(start, end))
        first = int((near[AT] == start).sum())
        # Rows of the first moment may have been part of a match before.
        for skipped in range(first):
            if _gives(stage, near.slice(skipped), row):
                near = _fewest(stage, near.slice(skipped), row)
                break
        found |= _ids(near[ID])
    return found


def _fewest(stage: Match | Sequences, rows: pl.DataFrame, row: pl.DataFrame) -> pl.DataFrame:
    """Rows without those that a match can do without: by ever smaller pieces."""
    wanted = row["events"].item()
    size = max(rows.height // 2, 1)
    while rows.height > wanted:
        at, fewer = 0, False
        while at < rows.height and rows.height > wanted:
            without = pl.concat([rows.slice(0, at), rows.slice(at + size)])
            if without.height >= wanted and _gives(stage, without, row):
                rows, fewer = without, True
            else:
                at += size
        if size == 1 and not fewer:
            break
        size = max(size // 2, 1)
    return rows


def _gives(stage: Operator, rows: pl.DataFrame, row: pl.DataFrame) -> bool:
    """Whether a stage makes a row of these rows alone."""
    made = stage.step(stage.start(), Batch(rows, NO_TIME, END_OF_TIME)).frame
    if not made.width:
        return False
    names = visible(row)
    try:
        return bool(made.select(names).join(row.select(names), on=names, how="semi", nulls_equal=True).height)
    except PolarsError:  # a column that cannot be compared
        return made.height > 0
