"""The rows of a PostgreSQL database as they are at one moment, to be compared with what the log has of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from ...errors import CaptureError
from ..shape import Shape
from ..values import Row
from .catalog import Catalog, Connection, SourceTable
from .relation import Relation
from .snapshot import STATE, select_rows
from .visibility import parse_snapshot

if TYPE_CHECKING:
    from ...log import Run


class PostgresReader:
    """One open transaction, which sees one state of the database.

    Args:
        connection: Inside a transaction of REPEATABLE READ that has not read anything yet.
        publications: What the capture's stream tells from.
    """

    def __init__(self, connection: Connection, location: str, publications: Sequence[str]) -> None:
        row = connection.execute(STATE).fetchone()
        assert row is not None
        self.visibility = parse_snapshot(row)
        self.position = self.visibility.high
        """Where a capture has taken in all that the rows show."""
        self._connection = connection
        self._catalog = Catalog(connection)
        self._location = location
        self._publications = publications
        self._relations: dict[str, tuple[SourceTable, Relation]] = {}
        self._open: dict[str, Any] = {}

    def _relation(self, table: str) -> tuple[SourceTable, Relation]:
        found = self._relations.get(table)
        if found is None:
            known = self._catalog.find(table)
            if known is None:
                raise CaptureError(f"{self._location} has no table {table!r}", hint="Check its name")
            found = known, self._catalog.relation_of(known, self._publications)
            self._relations[table] = found
        return found

    def shape(self, table: str) -> Shape:
        """The shape of a table, as its changes carry it."""
        return self._relation(table)[1].shape

    def rows(self, table: str, after: Row | None, limit: int) -> list[Row]:
        """The next rows of a table, in JSON as in `Change`; it keeps its place itself."""
        if after is None and (former := self._open.pop(table, None)) is not None:
            former.close()
        if table not in self._open:
            known, relation = self._relation(table)
            cursor = self._connection.cursor(f"rows of {len(self._open)} {table}")
            cursor.execute(f"select row_to_json(x)::text as row from ({select_rows(known, relation)}) x")
            self._open[table] = cursor
        found = self._open[table].fetchmany(limit)
        return [msgspec.json.decode(row["row"]) for row in found]

    def close(self) -> None:
        """End what is being read."""
        for cursor in self._open.values():
            cursor.close()
        self._open.clear()

    def held(self, run: Run) -> int:
        """How many of a run's events tell what the rows show already: all of a transaction that is seen, or none."""
        xid = run.metadata.get("xid")
        return run.count if xid is None or self.visibility.sees(xid) else 0
