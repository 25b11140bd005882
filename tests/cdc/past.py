"""Captured tables made by hand: changes go into a log as a capture would write them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import millstream as ms
from millstream.cdc import Change, Column, SchemaChanged, Shape, SnapshotCompleted
from millstream.cdc.source import Piece, pieces_of
from millstream.cdc.verify import _staged
from millstream.events import Event
from millstream.storage.base import StagedAppend

BEGIN = datetime(2024, 1, 15, tzinfo=UTC)


class Made:
    """A table in a log, and what it says."""

    def __init__(self, shape: Shape, log: ms.Log | None = None, table: str = "users") -> None:
        self.log = log or ms.open()
        self.shape = shape
        self.table = table
        self.seconds = 0

    def now(self) -> datetime:
        self.seconds += 1
        return BEGIN + timedelta(seconds=self.seconds)

    def change(self, operation: str, before: Any = None, after: Any = None) -> Change:
        return Change(operation=operation, table=self.table, before=before, after=after, timestamp=self.now())  # type: ignore[arg-type]

    def write(self, *events: Event, effective: int | None = None, metadata: dict[str, Any] | None = None) -> int:
        """Append events as one transaction; the position of the last one."""
        pieces = pieces_of(self.table, self.shape, events, metadata or {"lsn": 1}, effective)
        return write_pieces(self.log, self.table, pieces)

    def read(self, *rows: dict[str, Any]) -> int:
        """Append a whole snapshot."""
        self.write(*[self.change("READ", None, row) for row in rows]) if rows else None
        return self.complete(len(rows))

    def complete(self, rows: int = 0) -> int:
        return self.write(
            SnapshotCompleted(table=self.table, columns=list(self.shape.names), rows=rows, timestamp=self.now())
        )

    def reshape(self, shape: Shape, **said: Any) -> int:
        self.shape = shape
        return self.write(
            SchemaChanged(
                table=self.table, columns=list(shape.names), added=said.pop("added", {}), timestamp=self.now(), **said
            )
        )


def write_pieces(log: ms.Log, stream: str, pieces: Iterable[Piece]) -> int:
    append = StagedAppend(stream, [_staged(piece) for piece in pieces])
    for run, piece in zip(append.runs, pieces, strict=True):
        run.effective = piece.effective
    append.count = sum(run.count for run in append.runs)
    return log.commit([append]).position


def shape(*columns: tuple[str, str], key: tuple[str, ...] = ("id",)) -> Shape:
    return Shape(tuple(Column(*column) for column in columns), key)
