"""The rows of a SQLite source at one moment, beside the newest change that they show."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from ...errors import CaptureError
from ..shape import Shape
from ..values import Row, encode_any
from . import install
from .decode import shape_of
from .errors import source_errors
from .pages import fetch_page, rows_after
from .schema import Table, inspect
from .triggers import CHANGES

if TYPE_CHECKING:
    from ...log import Run


class SQLiteReader:
    """One read transaction, which sees the rows and the change table as of the same commit."""

    def __init__(self, db: sqlite3.Connection, path: str) -> None:
        self._db = db
        self._path = path
        self._tables: dict[str, Table] = {}
        self._cursors: dict[str, list[Any]] = {}
        found = db.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (CHANGES,)).fetchone()
        if found is None:
            raise CaptureError(
                f"{path} is not captured", hint="Run the capture first: there is nothing to compare its rows with"
            )
        self.position = install.newest(db)

    def shape(self, table: str) -> Shape:
        """See `RowReader`."""
        return shape_of(self._table(table))

    def rows(self, table: str, after: Row | None, limit: int) -> list[Row]:
        """See `RowReader`. A row's place is its rowid, or the key of a table without one."""
        found = self._table(table)
        cursor = self._cursors.get(table) if after is not None else None
        sql, params, address = rows_after(found, cursor)
        with source_errors(self._path):
            rows = fetch_page(self._db, sql, (*params, limit))
        if rows:
            self._cursors[table] = [encode_any(value) for value in rows[-1][:address]]
        return [dict(zip(found.columns, map(encode_any, row[address:]), strict=True)) for row in rows]

    def held(self, run: Run) -> int:
        """See `RowReader`: by the numbers of the changes; a page of a snapshot names the last one it has seen."""
        about = run.metadata
        if "changes" not in about:
            return run.count if about.get("change", 0) <= self.position else 0
        numbers = _numbers(about["changes"])
        first = run.position - (run.base or run.position)
        return sum(number <= self.position for number in islice(numbers, first, first + run.count))

    def _table(self, name: str) -> Table:
        if name not in self._tables:
            with source_errors(self._path):
                self._tables[name] = inspect(self._db, name)
        return self._tables[name]


def _numbers(ranges: list[list[int]]) -> Iterator[int]:
    for first, last in ranges:
        yield from range(first, last + 1)
