"""From rows of the change table to events."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import msgspec

from ...time import from_micros
from ..change import SchemaChanged
from ..shape import Column, Shape
from ..source import Piece, Progress, pieces_of
from ..values import encode_any
from .encode import Line, encoder, row_class
from .install import Layout
from .schema import Table
from .triggers import DELETE, INSERT, RESHAPED, STARTED, UPDATE

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
        name, n, w = "", 0, 0
        make = row_class(())
        events: list[Line | SchemaChanged] | None = None
        ranges: list[list[int]] = []
        progress = Progress(done=True)
        keyless = False
        current = -1
        for row in rows:
            id, layout_id, op, at = row[:4]
            if layout_id != current:
                current = layout_id
                layout = self.layouts[layout_id]
                name, n, w = layout.name, len(layout.table.columns), layout.table.width
                make = row_class(layout.table.columns)
                events = None
                if name in self.tables:
                    parts = self.parts.setdefault(name, [])
                    if not parts or parts[-1].layout != layout_id:
                        parts.append(_Part(layout_id, shape_of(layout.table), [], []))
                    events, ranges = parts[-1].events, parts[-1].ranges
                    progress = self.progress.setdefault(name, Progress())
                    keyless = not layout.table.key
            if events is None:
                continue
            if op == STARTED:
                progress.restart()
                continue
            if not progress.begun and not progress.again:
                continue  # the first page will show it
            if keyless and not progress.done and op != RESHAPED:
                found = _as_read(row, op, n, w, progress.cursor)
                if found is None:
                    continue
                op, row = found
            if ranges and ranges[-1][1] == id - 1:
                ranges[-1][1] = id
            else:
                ranges.append([id, id])
            time = moment(at)
            if op == UPDATE:
                before, after = make(*encode(row[4 : 4 + n])), make(*encode(row[4 + w : 4 + w + n]))
                events.append(Line("UPDATE", name, before, after, time))
            elif op == INSERT:
                events.append(Line("INSERT", name, None, make(*encode(row[4 : 4 + n])), time))
            elif op == DELETE:
                events.append(Line("DELETE", name, make(*encode(row[4 : 4 + n])), None, time))
            else:
                assert op == RESHAPED
                events.append(self._reshaped(self.layouts[layout_id], row, time))

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
