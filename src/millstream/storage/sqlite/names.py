"""Names and numbers: streams and kinds (category, type, schema) are numbered, and never renamed."""

from __future__ import annotations

import sqlite3

from ...errors import DamagedLog
from ..base import Kind

_AHEAD = 256


class Names:
    """The numbers of streams and kinds as far as this process has met them.

    Readers learn them from what is committed; what the writer gave a number to in a transaction that was rolled
    back is dropped by `forget_new`.
    """

    def __init__(self) -> None:
        self._kind_ids: dict[tuple[str, str, str], int] = {}
        self._kinds: dict[int, Kind] = {}
        self._last_stream = -1
        """The last number that a name was looked up for."""
        self._streams: dict[int, str] = {}
        self._new: list[tuple[str, str, str]] = []

    # --- the writer's side ----------------------------------------------------------------------------

    def kind_id(self, connection: sqlite3.Connection, category: str, type: str, schema: str) -> int:
        """The number of a kind, given to it now if it has none (inside the writer's transaction)."""
        key = (category, type, schema)
        found = self._kind_ids.get(key)
        if found is None:
            row = connection.execute(
                "select id from kinds where category = ? and type = ? and schema = ?", key
            ).fetchone()
            if row is None:
                cursor = connection.execute("insert into kinds (category, type, schema) values (?, ?, ?)", key)
                assert cursor.lastrowid is not None
                found = cursor.lastrowid
                self._new.append(key)
            else:
                found = int(row[0])
            self._kind_ids[key] = found
        return found

    def committed(self) -> None:
        """What was new in the transaction is now there to stay."""
        self._new.clear()

    def forget_new(self) -> None:
        """The transaction was rolled back, wholly or in part."""
        for key in self._new:
            self._kind_ids.pop(key, None)
        self._new.clear()

    def forget_all(self) -> None:
        """Nothing that was read is to be trusted: it was of a transaction that was undone."""
        self._kinds.clear()
        self._streams.clear()

    # --- the readers' side ----------------------------------------------------------------------------

    def known_kind(self, id: int) -> Kind | None:
        """The kind with this number, if it was met before."""
        return self._kinds.get(id)

    def known_stream(self, id: int) -> str | None:
        """The name of the stream with this number, if it was met before."""
        return self._streams.get(id)

    def kind(self, connection: sqlite3.Connection, id: int) -> Kind:
        """The kind with this number."""
        found = self._kinds.get(id)
        if found is None:
            for row in connection.execute("select id, category, type, schema from kinds"):
                self._kinds[row[0]] = Kind(*row[1:])
            found = self._kinds.get(id)
            if found is None:
                raise DamagedLog(0, f"kind {id} has no name")
        return found

    def stream(self, connection: sqlite3.Connection, id: int) -> str:
        """The name of the stream with this number."""
        found = self._streams.get(id)
        if found is None:
            # Who reads the log from end to end meets streams in the order of their numbers.
            count = _AHEAD if id == self._last_stream + 1 else 1
            rows = connection.execute(
                "select id, name from streams where id >= ? and id < ?", (id, id + count)
            ).fetchall()
            if not rows or rows[0][0] != id:
                raise DamagedLog(0, f"stream {id} has no name")
            if len(self._streams) > 500_000:
                self._streams.clear()
            self._streams.update(rows)
            self._last_stream = rows[-1][0]
            found = rows[0][1]
        return found
