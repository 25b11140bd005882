"""What a user's SQL may do inside a commit of the log: anything, but to the log itself.

A commit runs user code (inline handlers, consumers' work, ``tx.db``) on the writer's connection. There a COMMIT would
publish half of it, and a DELETE could take events away. SQLite asks an authorizer when it compiles a statement; this
one refuses such statements while user code's are compiled, and nothing at other times.
"""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

from ...errors import ReadOnlyLog, UsageError
from ..database import ONLY_READS, Database, Params, no_rows, no_statement
from ..watching import Watch
from .database import SQLiteDatabase, control, misshapen
from .faults import MISFITS, misfit, translate

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
_BY_FIRST = {*_ON_FIRST, sqlite3.SQLITE_READ, sqlite3.SQLITE_ANALYZE}
_TEMP_TRIGGER = sqlite3.SQLITE_CREATE_TEMP_TRIGGER
_BY_SECOND = {*_ON_SECOND, _TEMP_TRIGGER}
_PRAGMAS = frozenset(
    {"table_info", "table_xinfo", "table_list", "index_list", "index_info", "index_xinfo", "foreign_key_list"}
    | {"foreign_key_check", "defer_foreign_keys"}
)
"""Those that say or set nothing beyond what a handler may know and the transaction at hand."""

_numbers = itertools.count(1)
"""Of those whose statements are compiled by rules of their own, and so kept apart in the driver's cache."""


def _sets(action: int, pragma: Any, value: Any) -> bool:
    """Whether it is a PRAGMA that sets something of the file or the connection."""
    return action == sqlite3.SQLITE_PRAGMA and not (value is None or pragma in _PRAGMAS)


class GuardedDatabase(SQLiteDatabase):
    """The writer's connection as user code sees it, inside a commit of the log."""

    def __init__(self, connection: sqlite3.Connection, path: str) -> None:
        super().__init__(connection, path)
        self.placed: Sequence[tuple[Any, ...]] = ()
        """The headers that the request at hand has placed, as they were inserted: they need not be read back."""
        self._asked, self._rule = self.authorizer, self.allows

    def execute(self, sql: str, params: Params = ()) -> sqlite3.Cursor:
        self._asked.rule = self._rule
        try:
            return super().execute(_MARK + sql, params)
        except TypeError as error:
            if isinstance(sql, str):
                raise
            raise no_statement(sql) from error
        finally:
            self._asked.rule = None

    def executemany(self, sql: str, rows: Iterable[Params]) -> None:
        self._asked.rule = self._rule
        try:
            super().executemany(_MARK + sql, rows)
        except TypeError as error:
            if (wrong := misshapen(sql, rows)) is None:
                raise
            raise wrong from error
        finally:
            self._asked.rule = None

    def allows(self, action: int, first: Any, second: Any, database: Any) -> bool:
        return not (
            action in _REFUSED
            or _sets(action, first, second)  # the marks by which a log is known, or how it gets to the disk
            or (action in _ON_FIRST and first in OWN_TABLES)
            or (action in _ON_SECOND and second in OWN_TABLES)
        )

    def _control(self, sql: str) -> None:
        try:
            control(self.connection, sql)
        except sqlite3.Error as error:
            raise translate(error, self.path) from error


class ReadingDatabase(SQLiteDatabase):
    """A connection of a log that others write, for reading alone."""

    def execute(self, sql: str, params: Params = ()) -> sqlite3.Cursor:
        try:
            return super().execute(sql, params)
        except ReadOnlyLog as error:
            raise self._refused() from error

    def executemany(self, sql: str, rows: Iterable[Params]) -> None:
        try:
            super().executemany(sql, rows)
        except ReadOnlyLog as error:
            raise self._refused() from error

    def _refused(self) -> ReadOnlyLog:
        return ReadOnlyLog(self.path, hint=ONLY_READS)


class MemoryReadingDatabase(ReadingDatabase):
    """The same of a log in memory, whose one connection can write: each statement is kept from it."""

    def execute(self, sql: str, params: Params = ()) -> sqlite3.Cursor:
        self.connection.execute("pragma query_only = on")
        try:
            return super().execute(sql, params)
        finally:
            self.connection.execute("pragma query_only = off")

    def executemany(self, sql: str, rows: Iterable[Params]) -> None:
        rows = list(rows)  # what makes them may write
        self.connection.execute("pragma query_only = on")
        try:
            super().executemany(sql, rows)
        finally:
            self.connection.execute("pragma query_only = off")


class WatchedDatabase(SQLiteDatabase):
    """A connection for the handlers of a projection, beside whose tables others stand that they are not to use.

    They have no transactions of their own here, and attach nothing: by another name, a table would be another one.
    """

    _watch: Watch

    def __init__(self, of: SQLiteDatabase, watch: Watch) -> None:
        super().__init__(of.connection, of.path)
        self._of = of
        self._watch = watch
        self._mark = f"/*{next(_numbers)}*/ "
        self._asked, self._rule = of.authorizer, self.allows
        self._met = ""

    def execute(self, sql: str, params: Params = ()) -> sqlite3.Cursor:
        # Row by row, each of these lines counts: what goes well does so without another call.
        self._asked.rule = self._rule
        try:
            return self.connection.execute(self._mark + sql, params)
        except sqlite3.Error as error:
            raise self._refused(error) from error
        except MISFITS as error:
            raise misfit(error) from error
        except TypeError as error:
            if isinstance(sql, str):
                raise
            raise no_statement(sql) from error
        finally:
            self._asked.rule = None

    def executemany(self, sql: str, rows: Iterable[Params]) -> None:
        if not isinstance(rows, list | tuple):
            if not isinstance(rows, Iterable):
                raise no_rows(rows)
            rows = list(rows)  # what makes them may use the connection
        self._asked.rule = self._rule
        try:
            self.connection.executemany(self._mark + sql, rows)
        except sqlite3.Error as error:
            raise self._refused(error) from error
        except MISFITS as error:
            raise misfit(error) from error
        except TypeError as error:
            if (wrong := misshapen(sql, rows)) is None:
                raise
            raise wrong from error
        finally:
            self._asked.rule = None

    def allows(self, action: int, first: Any, second: Any, database: Any) -> bool:
        if action in _REFUSED or _sets(action, first, second):
            return False
        table = second if action in _BY_SECOND else first if action in _BY_FIRST else None
        if table is not None and (database != "temp" or action == _TEMP_TRIGGER) and self._watch.keeps(table.lower()):
            self._met = table.lower()
            return False
        return self._of.allows(action, first, second, database)

    def unwatched(self) -> Database:
        return self._of

    def _refused(self, error: sqlite3.Error) -> Exception:
        met, self._met = self._met, ""
        if met:
            return self._watch.refusal(met)
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_AUTH:
            return UsageError(
                "this statement is not for a handler of a projection",
                hint="Leave out BEGIN, COMMIT, savepoints, ATTACH, PRAGMAs that set things, and the log's own tables",
            )
        return translate(error, self.path)

    def _control(self, sql: str) -> None:
        self._of._control(sql)
