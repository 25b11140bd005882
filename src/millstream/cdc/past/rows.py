"""The rows of a table with a key while changes are applied to it: columns, and what is still to be merged into them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from .lines import Left, Lines

SEQUENCE = "\0sequence"
GONE = "\0gone"
FROM = "\0from"
"""Columns of changes beside those of the table, whose names have no such character."""

MERGE_AT_LEAST, MERGE_AT_MOST = 1_000_000, 4_000_000
"""How many changes are gathered before they are merged into the rows: as many as these have, within such bounds."""


def left(name: str) -> str:
    """The column that says whether a change left a column as it was."""
    return f"\0left:{name}"


class KeyedRows:
    """Rows that are told apart by a key. Of many changes of one row, only the last one counts.

    Args:
        frame: The rows; each key is there once.
        key: The key's columns; none of their values is null.
    """

    def __init__(self, frame: pl.DataFrame, key: Sequence[str]) -> None:
        self._frame = frame
        self.key = list(key)
        self._waiting: list[pl.DataFrame] = []
        self._count = 0

    @property
    def frame(self) -> pl.DataFrame:
        """The rows, in no particular order."""
        self._merge()
        return self._frame

    def clear(self) -> None:
        """No row is left."""
        self._frame = self._frame.clear()
        self._waiting, self._count = [], 0

    def apply(self, changes: pl.DataFrame) -> None:
        """Take in what `changes_of` made, after all that came before."""
        self._waiting.append(changes)
        self._count += changes.height
        if self._count >= min(max(self._frame.height, MERGE_AT_LEAST), MERGE_AT_MOST):
            self._merge()

    def _merge(self) -> None:
        if not self._waiting:
            return
        parts, self._waiting, self._count = self._waiting, [], 0
        columns = self._frame.columns
        told = [name for name in columns if any(left(name) in part.columns for part in parts)]
        changes = pl.concat([_with_left(part, told) for part in parts]) if told else pl.concat(parts)
        del parts
        if told:
            changes = self._filled(changes, told)
        last = changes.unique(self.key, keep="last", maintain_order=True)
        del changes
        rows = self._frame.join(last.select(self.key), on=self.key, how="anti")
        self._frame = pl.concat([rows, last.filter(~pl.col(GONE)).select(columns)], rechunk=False)

    def _filled(self, changes: pl.DataFrame, told: list[str]) -> pl.DataFrame:
        """Changes with the values that they left as they were: of the change before, or of the row itself."""
        flags = [left(name) for name in told]
        wanted = changes.filter(pl.any_horizontal(flags)).select(self.key).unique()
        known = self._frame.join(wanted, on=self.key, how="semi").with_columns(
            [pl.lit(False).alias(flag) for flag in (GONE, *flags)]
        )
        changes = pl.concat([known.select(changes.columns), changes]).sort(self.key, maintain_order=True)
        first = pl.any_horizontal(pl.col(name).ne_missing(pl.col(name).shift()) for name in self.key)
        row = pl.int_range(pl.len(), dtype=pl.Int64)
        # A value is the one of the nearest row before that tells it, which may be a NULL.
        filled = [
            pl.col(name).gather(pl.when(~pl.col(left(name)) | first.fill_null(True)).then(row).forward_fill())
            for name in told
        ]
        return changes.with_columns(filled).drop(flags)


def _with_left(part: pl.DataFrame, told: list[str]) -> pl.DataFrame:
    missing = [pl.lit(False).alias(left(name)) for name in told if left(name) not in part.columns]
    names = [name for name in part.columns if not name.startswith("\0")]
    return part.with_columns(missing).select(*names, GONE, *[left(name) for name in told])


class KeyIsNull(Exception):
    """A change of a row whose key holds NULL: only an exact reading can follow it."""


class MovedAndLeft(Exception):
    """A row was given another key by a change that left columns as they were.

    Attributes:
        index: Which of the changes.
    """

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index


def changes_of(lines: Lines, key: Sequence[str]) -> pl.DataFrame:
    """Decoded changes (no TRUNCATE among them) as rows of what comes and what goes, in order.

    Raises:
        KeyIsNull, MovedAndLeft: They cannot be told so.
    """
    events = lines.events
    afters = [event.after for event in events if event.after is not None]
    columns: list[pl.Series] = []
    flags: list[pl.Series] = []
    for name in lines.names:
        values = lines.values(afters, name)
        if lines.some_left and any(value.__class__ is Left for value in values):
            flags.append(pl.Series(left(name), [value.__class__ is Left for value in values], dtype=pl.Boolean))
            values = [None if value.__class__ is Left else value for value in values]
        columns.append(pl.Series(name, values, dtype=lines.held(name).dtype, strict=True))
    coming = pl.DataFrame(columns)
    if any(coming[name].null_count() for name in key):
        raise KeyIsNull
    befores = [event.before for event in events if event.before is not None]
    if not befores:
        return coming.with_columns(pl.lit(False).alias(GONE), *flags)
    was = pl.DataFrame(
        [pl.Series(name, lines.values(befores, name), dtype=lines.held(name).dtype, strict=True) for name in key]
    )
    if any(was[name].null_count() for name in key):
        raise KeyIsNull
    return _with_gone(coming.with_columns(flags), was, events, list(key))


def _with_gone(coming: pl.DataFrame, was: pl.DataFrame, events: list[Any], key: list[str]) -> pl.DataFrame:
    """What comes, and between it the keys that go: of deleted rows, and of those that have another key now."""
    has_after = pl.Series("after", [event.after is not None for event in events], dtype=pl.Boolean)
    has_before = pl.Series("before", [event.before is not None for event in events], dtype=pl.Boolean)
    index = pl.Series(SEQUENCE, range(len(events)), dtype=pl.Int64)
    coming = coming.with_columns(index.filter(has_after))
    was = was.with_columns(index.filter(has_before))
    now = coming.select(SEQUENCE, *[pl.col(name).alias(f"\0now:{name}") for name in key])
    both = was.join(now, on=SEQUENCE, how="left", maintain_order="left")
    same = pl.all_horizontal(pl.col(name).eq_missing(pl.col(f"\0now:{name}")) for name in key)
    going = both.filter(~same).select(*key, SEQUENCE)
    flags = [name for name in coming.columns if name.startswith("\0left:")]
    coming = coming.with_columns(pl.lit(False).alias(GONE))
    if not going.height:
        return coming.drop(SEQUENCE)
    if flags:
        moved = coming.join(going.select(SEQUENCE), on=SEQUENCE, how="semi")
        moved = moved.filter(pl.any_horizontal(flags))
        if moved.height:
            raise MovedAndLeft(moved[SEQUENCE].min())  # type: ignore[arg-type]
    going = going.with_columns(pl.lit(True).alias(GONE))
    filled = pl.concat([going, coming], how="diagonal").with_columns([pl.col(flag).fill_null(False) for flag in flags])
    # Of one change, the old key goes before the new one comes.
    return filled.sort(SEQUENCE, maintain_order=True).drop(SEQUENCE).select(coming.drop(SEQUENCE).columns)
