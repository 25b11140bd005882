"""What a user's SQL may do inside a commit of the log: anything, but to the log itself.

A commit runs user code (inline handlers, consumers' work, ``tx.db``) on the writer's connection. There a COMMIT would
publish half of it, and a DELETE could take events away. SQLite asks an authorizer when it compiles a statement; this
one refuses such statements while user code's are compiled, and nothing at other times.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

from ..database import Params
from .database import SQLiteDatabase
from .faults import translated

OWN_TABLES = frozenset(
    {"runs", "bodies", "streams", "kinds", "tags", "appends", "catalogue", "ranges", "meta", "events"}
)
_MARK = "/*tx*/ "
"""Sets users' statements apart in the driver's cache from the log's own, which were compiled without the guard."""

_REFUSED = {sqlite3.SQLITE_TRANSACTION, sqlite3.SQLITE_SAVEPOINT, sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH}
_ON_FIRST = {
    sqlite3.SQLITE_INSERT,
    sqlite3.SQLITE_UPDATE,
    sqlite3.SQLITE_DELETE,
    sqlite3.SQLITE_DROP_TABLE,
    sqlite3.SQLITE_DROP_VIEW,
}
_ON_SECOND = {
    sqlite3.SQLITE_ALTER_TABLE,
    sqlite3.SQLITE_DROP_INDEX,
    sqlite3.SQLITE_CREATE_INDEX,
    sqlite3.SQLITE_CREATE_TRIGGER,
    sqlite3.SQLITE_DROP_TRIGGER,
}


class GuardedDatabase(SQLiteDatabase):
    """The writer's connection as user code sees it, inside a commit of the log."""

    def __init__(self, connection: sqlite3.Connection, path: str) -> None:
        super().__init__(connection, path)
        self._compiling = False
        self.placed: Sequence[tuple[Any, ...]] = ()
        """The headers that the request at hand has placed, as they were inserted: they need not be read back."""
        connection.set_authorizer(self._authorize)

    def execute(self, sql: str, params: Params = ()) -> sqlite3.Cursor:
        self._compiling = True
        try:
            return super().execute(_MARK + sql, params)
        finally:
            self._compiling = False

    def executemany(self, sql: str, rows: Iterable[Params]) -> None:
        self._compiling = True
        try:
            super().executemany(_MARK + sql, rows)
        finally:
            self._compiling = False

    def _control(self, sql: str) -> None:
        with translated(self.path):
            self.connection.execute(sql)

    def _authorize(self, action: int, first: Any, second: Any, database: Any, trigger: Any) -> int:
        if self._compiling and (
            action in _REFUSED
            or (action in _ON_FIRST and first in OWN_TABLES)
            or (action in _ON_SECOND and second in OWN_TABLES)
        ):
            return sqlite3.SQLITE_DENY
        return sqlite3.SQLITE_OK
