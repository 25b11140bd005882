"""From rows of the change table to events."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from typing import Any

import msgspec

from ...time import from_micros
from ..change import SchemaChanged
from ..shape import Column, Shape
from ..source import Piece, Progress, pieces_of
from ..values import encode_any
from .encode import Line, Values, encoder, row_class
from .install import Layout
from .schema import Table
from .triggers import DELETE, INSERT, RESHAPED, STARTED, UPDATE

_LAYOUT_AND_OP = itemgetter(1, 2)
_FIRST = itemgetter(0)
_JULIAN_EPOCH = 2440587.5
_DAY_MS = 86_400_000


@lru_cache(maxsize=1024)
def moment(julian: float) -> datetime:
    """The time that a trigger's clock showed: whole milliseconds, which a Julian day holds exactly."""
    return from_micros(round((julian - _JULIAN_EPOCH) * _DAY_MS) * 1_000)


def shape_of(table: Table) -> Shape:
    """A table's shape. A column of SQLite holds what it is given, whatever its type says."""
    return Shape(tuple(Column(name) for name in table.columns), table.key)


class _Part(msgspec.Struct):
    """Neighbouring changes of one table and one layout."""

    layout: int
    shape: Shape
    events: list[Line | SchemaChanged]
    ranges: list[list[int]]


class Decoder:
    """Makes the events of one page of changes, grouped by table.

    Args:
        layouts: What the values of each layout mean.
        tables: The captured tables; changes of others are passed over.
        progress: Each table's snapshot; a STARTED mark restarts it.
    """

    def __init__(
        self,
        layouts: dict[int, Layout],
        tables: Iterable[str],
        progress: dict[str, Progress],
    ) -> None:
        self.layouts = layouts
        self.tables = frozenset(tables)
        self.progress = progress
        self.parts: dict[str, list[_Part]] = {}

    def add(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Take rows of the change table: id, layout, op, time, values."""
        encode = encoder(rows, 4)
        for (layout_id, op), stretch in groupby(rows, key=_LAYOUT_AND_OP):
            layout = self.layouts[layout_id]
            name, table = layout.name, layout.table
            if name not in self.tables:
                continue
            progress = self.progress.setdefault(name, Progress())
            if op == STARTED:
                for _ in stretch:
                    progress.restart()
                continue
            if not progress.begun and not progress.again:
                continue  # the first page will show it
            if not table.key and not progress.done and op != RESHAPED:
                changes = [_as_read(row, op, len(table.columns), table.width, progress.cursor) for row in stretch]
                for op_seen, some in groupby([c for c in changes if c is not None], key=_FIRST):
                    self._add(layout, op_seen, [row for _, row in some], encode)
            else:
                self._add(layout, op, list(stretch), encode)

    def _add(self, layout: Layout, op: int, rows: list[tuple[Any, ...]], encode: Callable[[Values], Values]) -> None:
        """Neighbouring rows of one layout that say the same of theirs."""
        name, n, w = layout.name, len(layout.table.columns), layout.table.width
        parts = self.parts.setdefault(name, [])
        if not parts or parts[-1].layout != layout.id:
            parts.append(_Part(layout.id, shape_of(layout.table), [], []))
        part, make = parts[-1], row_class(layout.table.columns)
        _note(part.ranges, rows)
        before, after = slice(4, 4 + n), slice(4 + w, 4 + w + n)
        if op == UPDATE:
            part.events += [
                Line("UPDATE", name, make(*encode(row[before])), make(*encode(row[after])), moment(row[3]))
                for row in rows
            ]
        elif op == INSERT:
            part.events += [Line("INSERT", name, None, make(*encode(row[before])), moment(row[3])) for row in rows]
        elif op == DELETE:
            part.events += [Line("DELETE", name, make(*encode(row[before])), None, moment(row[3])) for row in rows]
        else:
            assert op == RESHAPED
            part.events += [self._reshaped(layout, row, moment(row[3])) for row in rows]

    def _reshaped(self, layout: Layout, row: tuple[Any, ...], time: datetime) -> SchemaChanged:
        """A RESHAPED mark: its values are the defaults of the columns that were added, which stand last."""
        count = len(layout.table.columns)
        known = row[4 + count]
        added = layout.table.columns[known:]
        return SchemaChanged(
            table=layout.name,
            columns=list(layout.table.columns),
            added={c: encode_any(v) for c, v in zip(added, row[4 + known : 4 + count], strict=True)},
            timestamp=time,
        )

    def pieces(self, metadata: dict[str, Any]) -> list[Piece]:
        """What was found, table by table."""
        return [
            piece
            for name, parts in self.parts.items()
            for part in parts
            for piece in pieces_of(name, part.shape, part.events, {**metadata, "changes": part.ranges})
        ]


def _note(ranges: list[list[int]], rows: list[tuple[Any, ...]]) -> None:
    """Add the numbers of some rows to ranges."""
    first, last = rows[0][0], rows[-1][0]
    numbers = [[first, last]] if last - first + 1 == len(rows) else [[row[0], row[0]] for row in rows]
    for low, high in numbers:
        if ranges and ranges[-1][1] == low - 1:
            ranges[-1][1] = high
        else:
            ranges.append([low, high])


def _as_read(
    row: tuple[Any, ...], op: int, n: int, width: int, cursor: list[Any] | None
) -> tuple[int, tuple[Any, ...]] | None:
    """A change of a table without a key whose snapshot is under way, as seen by the rows read so far.

    Rows that look alike cannot be told apart later, so a row must not come as a change and then once more as
    READ: what happens beyond the cursor is left out, since the page that reads it will show it.
    """
    upto = cursor[0] if cursor else None

    def is_read(rowid: Any) -> bool:
        return upto is not None and rowid <= upto

    was = op != INSERT and is_read(row[4 + n])
    now = op != DELETE and is_read(row[4 + n] if op == INSERT else row[4 + width + n])
    if was and now:
        return UPDATE, row
    if was:
        return DELETE, row
    if now:
        return INSERT, (*row[:4], *row[4 + width :]) if op == UPDATE else row
    return None


def copy_progress(tables: dict[str, Progress]) -> dict[str, Progress]:
    """A copy that can be changed without touching what is committed."""
    return {name: msgspec.structs.replace(progress) for name, progress in tables.items()}
