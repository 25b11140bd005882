"""What tests of sinks share: a source, its log, and changes of PostgreSQL's kind written by hand."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import millstream as ms
from millstream.cdc import Change, Column, Shape
from millstream.cdc.source import Piece, pieces_of
from millstream.cdc.values import encode_row
from millstream.storage.base import Encoding, StagedAppend, StagedRun

USERS = "CREATE TABLE users (id INTEGER PRIMARY KEY, email TEXT)"

NOON = datetime(2024, 1, 15, 12, tzinfo=UTC)


class Source:
    """A SQLite database with a table of users, captured into a log."""

    def __init__(self, folder: Path, create: str = USERS) -> None:
        self.folder = folder
        self.path = folder / "shop.sqlite"
        self.db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        self.db.execute("PRAGMA journal_mode = wal")
        self.db.execute("PRAGMA synchronous = OFF")
        self.db.execute(create)
        self.log_path = str(folder / "log.db")
        self.log = ms.open(self.log_path)
        self.capture = ms.capture(f"sqlite:///{self.path}")
        self.capture.catch_up(self.log)

    def sql(self, *statements: str) -> None:
        for statement in statements:
            self.db.execute(statement)
        self.capture.catch_up(self.log)

    def rows(self, query: str = "SELECT * FROM users ORDER BY 1") -> list[tuple[Any, ...]]:
        return self.db.execute(query).fetchall()

    def close(self) -> None:
        self.log.close()
        self.db.close()


def shape(*columns: tuple[str, str] | tuple[str, str, str], key: Sequence[str] = ("id",)) -> Shape:
    return Shape(tuple(Column(*column) for column in columns), tuple(key))


def change(
    operation: str, before: dict[str, Any] | None, after: dict[str, Any] | None, shape: Shape, table: str = "users"
) -> Change:
    """A change with its values as the source holds them."""
    return Change(
        operation=operation,  # type: ignore[arg-type]
        table=table,
        before=before and encode_row(before, shape),
        after=after and encode_row(after, shape),
        timestamp=NOON,
    )


def put(log: ms.Log, shape: Shape, *events: Any, metadata: dict[str, Any] | None = None, table: str = "users") -> None:
    """Write events of a captured table into the log, as a capture does."""
    for piece in pieces_of(table, shape, events, metadata):
        put_piece(log, piece)


def put_piece(log: ms.Log, piece: Piece) -> None:
    import hashlib

    encoding = Encoding.JSON if piece.count == 1 else Encoding.NDJSON
    schema = piece.shape.text if piece.shape else "1"
    run = StagedRun(
        piece.type, schema, piece.count, encoding, piece.body, hashlib.sha256(piece.body).digest(), (), piece.metadata,
        piece.effective,
    )  # fmt: skip
    append = StagedAppend(piece.table, [run])
    append.count = piece.count
    log.commit([append])


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait for something that is to happen."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.005)
