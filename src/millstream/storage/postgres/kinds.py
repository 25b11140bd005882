"""The kinds of a log, as far as this process has met them. None is ever removed: only new ones are asked for."""

from __future__ import annotations

from ..base import Kind, Scope
from ..forked import lock
from .database import Connection
from .reader import Reader

_SCOPES = 1_000


class Kinds:
    """Kinds by number, and the numbers that a scope takes in. Safe to share between threads."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._mutex = lock()
        self._known: dict[int, Kind] = {}
        self._rows: list[tuple[int, str, str]] = []
        self._scopes: dict[Scope, tuple[int, list[int]]] = {}
        """For each scope, how many rows were looked at, and which of them it takes in."""

    def get(self, id: int) -> Kind | None:
        """The kind with this number, if it was met before."""
        return self._known.get(id)

    def find(self, connection: Connection, id: int) -> Kind | None:
        """The kind with this number, if there is one."""
        with self._mutex:
            self._look(connection)
        return self._known.get(id)

    def of(self, connection: Connection, scope: Scope) -> list[int]:
        """The kinds that a scope by category or by type takes in."""
        with self._mutex:
            self._look(connection)
            looked, found = self._scopes.get(scope, (0, []))
            if looked < len(self._rows):
                new = self._rows[looked:]
                found = [*found, *(id for id, category, type in new if scope.takes(category, type))]
                if len(self._scopes) > _SCOPES:
                    self._scopes.clear()
                self._scopes[scope] = (len(self._rows), found)
            return found

    def _look(self, connection: Connection) -> None:
        # Numbers are given under the log's lock, so that none becomes visible after a larger one.
        last = self._rows[-1][0] if self._rows else 0
        for id, *names in self._reader.kinds_after(connection, last):
            self._known[id] = Kind(*names)
            self._rows.append((id, names[0], names[1]))
