"""Single events by the thousand without a Python object for each of their values: SQLite joins these into texts."""

from __future__ import annotations

import sqlite3

from ..base import PackedEvents, Scope
from . import reader

_FEWEST = 64
"""So many are looked at first: where they do not stand alike, little was lost. Fewer are not worth it."""


def page(connection: sqlite3.Connection, scope: Scope, after: int, until: int, limit: int) -> PackedEvents | None:
    """See `Store.packed`."""
    if scope.matching is not None or scope.further is not None or until <= after + _FEWEST:
        return None
    if after > 0 and reader.containing(connection, after + 1) <= after:
        return None  # a longer run, whose rest comes first
    chosen = ""
    if scope.by_kind:
        kinds = reader.kind_ids(connection, scope)
        if len(kinds) != 1:
            return None  # of several kinds, events hardly stand alike
        chosen = f" and kind = {kinds[0]}"
    place, bounds = "position", (after + 1, until)
    if scope.stream is not None:
        row = connection.execute("select id from streams where name = ?", (scope.stream,)).fetchone()
        if row is None:
            return None
        place, bounds = "version", reader.versions_between(connection, row[0], after + 1, until)
        chosen += f" and stream = {row[0]}"
    return _Alike(connection, place, chosen).page(bounds, limit)


class _Alike:
    """The events from one on that stand as it does.

    Args:
        place: The column that they are in the order of.
        chosen: What else is asked of them.
    """

    def __init__(self, connection: sqlite3.Connection, place: str, chosen: str) -> None:
        self._connection = connection
        self._place = place
        self._from = f"from runs where {place} >= ? and {place} < ?{chosen}"

    def page(self, bounds: tuple[int, int], limit: int) -> PackedEvents | None:
        sql = f"select kind, metadata is null {self._from} order by {self._place} limit 1"
        first = self._connection.execute(sql, bounds).fetchone()
        if first is None:
            return None
        found = None
        for most in (_FEWEST, limit):
            inside = bounds[0], self._nth(bounds, "", most) or bounds[1]
            found = self._packed(inside, first[0])
            if found is None and most > _FEWEST:
                unlike = (
                    f"effective is not null or body is null or kind <> {first[0]} or (metadata is null) <> {first[1]}"
                )
                found = self._packed((bounds[0], self._nth(inside, f" and ({unlike})", 0) or inside[1]), first[0])
            if found is None or found.count < _FEWEST:
                return None
        return found

    def _nth(self, bounds: tuple[int, int], more: str, number: int) -> int | None:
        """Where the event stands that has so many before it; None beyond the last."""
        sql = f"select {self._place} {self._from}{more} order by {self._place} limit 1 offset {number}"
        row = self._connection.execute(sql, bounds).fetchone()
        return row[0] if row is not None else None

    def _packed(self, bounds: tuple[int, int], kind: int) -> PackedEvents | None:
        # In each column one value an event, or it is not what it should be: nulls are left out. So there is no need
        # to count them in SQL, where each count costs as much as a column.
        sql = (
            "select group_concat(position), group_concat(stream), group_concat(version), group_concat(recorded),"
            " group_concat(case when effective is null and kind = ? then body end, char(10)),"
            f" group_concat(metadata, char(10)) {self._from}"
        )
        try:
            found = self._connection.execute(sql, (kind, *bounds)).fetchone()
        except sqlite3.DataError:  # so much is no one text
            return None
        positions, streams, versions, recorded, bodies, metadata = found
        if positions is None:
            return None
        count = positions.count(",") + 1
        if bodies is None or any(text and text.count("\n") + 1 != count for text in (bodies, metadata)):
            return None
        return PackedEvents(count, kind, positions, streams, versions, recorded, bodies, metadata)
