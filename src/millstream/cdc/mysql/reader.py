"""The rows of a database as they are at one moment, to be compared with what the log has of them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from ...errors import CaptureError
from ..shape import Shape
from ..values import Row
from .catalog import Catalog
from .layout import Layout
from .place import quote_name
from .snapshot import view
from .textrows import make_reader, select_list
from .transaction import position_of
from .wire import text_rows

if TYPE_CHECKING:
    from ...log import Run


class MySQLReader:
    """One open transaction, which sees one state of the database, at a known position of the server's log."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._layouts: dict[str, Layout] = {}
        self.position = view(catalog.connection, catalog.place, catalog.server, None)
        """Where a capture has taken in all that the rows show."""
        self._table = ""
        self._rows: Iterator[bytes] = iter(())

    def _layout(self, table: str) -> Layout:
        found = self._layouts.get(table)
        if found is None:
            layout = self._catalog.layout(table)
            if layout is None:
                raise CaptureError(
                    f"{self._catalog.place.location} has no table {table!r}",
                    hint="Check its name; or GRANT SELECT ON it",
                )
            layout.check(table)
            found = self._layouts[table] = layout
        return found

    def shape(self, table: str) -> Shape:
        """The shape of a table, as its changes carry it."""
        self._finish()
        return self._layout(table).shape

    def rows(self, table: str, after: Row | None, limit: int) -> list[Row]:
        """The next rows of a table, in JSON as in `Change`; it keeps its place itself."""
        layout = self._layout(table) if table in self._layouts else self._open(table)
        if after is None or table != self._table:
            self._finish()
            name = f"{quote_name(self._catalog.place.database)}.{quote_name(table)}"
            self._rows = text_rows(self._catalog.connection, f"SELECT {select_list(layout)} FROM {name}")
            self._table = table
        read = make_reader(layout)
        return [msgspec.json.decode(read(row, 0)) for row in islice(self._rows, limit)]

    def _open(self, table: str) -> Layout:
        self._finish()
        return self._layout(table)

    def _finish(self) -> None:
        """Take what is left of an answer, before another question is asked."""
        for _ in self._rows:
            pass
        self._rows = iter(())

    def held(self, run: Run) -> int:
        """How many of a run's events tell what the rows show already: all of a transaction that is seen, or none."""
        place = run.metadata.get("position")
        if place is None:
            return run.count
        file, offset = place
        return run.count if position_of(file, offset) <= self.position else 0
