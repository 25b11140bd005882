"""SQLite connections, and how this library sets them up."""

from __future__ import annotations

import gc
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ...errors import DatabaseError
from ..database import Database, Params, no_rows, no_statement
from .authorizer import Authorizer
from .faults import MISFITS, misfit, translate, translated
from .forks import Guarded, Tracked, at_work, opened

if TYPE_CHECKING:
    from ..watching import Watch


class SQLiteDatabase(Database):
    """A SQLite connection as a `Database`."""

    dialect = "sqlite"
    blob = "blob"

    def __init__(self, connection: sqlite3.Connection, path: str = "") -> None:
        self.connection = connection
        self.path = path
        self._authorizer: Authorizer | None = None
        self._watched: dict[Watch, SQLiteDatabase] = {}

    @property
    def authorizer(self) -> Authorizer:
        """What SQLite asks about statements on this connection, from the first time on that it is asked for."""
        if self._authorizer is None:
            self._authorizer = Authorizer(self.connection)
        return self._authorizer

    def allows(self, action: int, first: Any, second: Any, database: Any) -> bool:
        """Whether those who use it by this object may do something: see `sqlite3.Connection.set_authorizer`."""
        return True

    def watched(self, watch: Watch) -> SQLiteDatabase:
        from .guard import WatchedDatabase

        found = self._watched.get(watch)
        if found is None:
            found = self._watched[watch] = WatchedDatabase(self, watch)
        return found

    def execute(self, sql: str, params: Params = ()) -> sqlite3.Cursor:
        try:
            return self.connection.execute(sql, params)
        except sqlite3.Error as error:
            raise translate(error, self.path) from error
        except MISFITS as error:
            raise misfit(error) from error
        except TypeError as error:
            if isinstance(sql, str):
                raise
            raise no_statement(sql) from error

    def one(self, sql: str, params: Params = ()) -> dict[str, Any] | None:
        cursor = self.execute(sql, params)
        try:
            row = cursor.fetchone()
        except sqlite3.Error as error:
            raise translate(error, self.path) from error
        if row is None:
            return None
        return dict(zip([column[0] for column in cursor.description], row, strict=True))

    def executemany(self, sql: str, rows: Iterable[Params]) -> None:
        try:
            self.connection.executemany(sql, rows)
        except sqlite3.Error as error:
            raise translate(error, self.path) from error
        except MISFITS as error:
            raise misfit(error) from error
        except TypeError as error:
            if (wrong := misshapen(sql, rows)) is None:
                raise
            raise wrong from error

    def executescript(self, sql: str) -> None:
        if not isinstance(sql, str):
            raise no_statement(sql)
        for statement in statements(sql):
            self.execute(statement)

    def has_table(self, name: str) -> bool:
        return self.execute("select 1 from sqlite_master where name = ?", (name,)).fetchone() is not None

    def find_table(self, name: str) -> str | None:
        row = self.execute(
            "select name from sqlite_master where type in ('table', 'view') and lower(name) = lower(?)", (name,)
        ).fetchone()
        return '"' + row[0].replace('"', '""') + '"' if row is not None else None

    def own(self, name: str) -> str:
        return name

    def _faults(self) -> AbstractContextManager[None]:
        return translated(self.path)

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        self._control("savepoint millstream")
        try:
            yield
        except BaseException:
            # A full disk makes SQLite give up the whole transaction, savepoints and all.
            if self.connection.in_transaction:
                self._control("rollback to millstream")
                self._control("release millstream")
            raise
        self._control("release millstream")

    def _control(self, sql: str) -> None:
        """Run a statement that begins or ends something, on behalf of this class."""
        self.execute(sql)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        self.execute("begin immediate")
        try:
            yield
            self.execute("commit")
        except BaseException:
            if self.connection.in_transaction:
                self.connection.execute("rollback")
            raise

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        # In memory there is one connection for all, which is not opened read-only.
        memory = self.path == ":memory:"
        if memory:
            self.execute("pragma query_only = on")
        else:
            self.execute("begin")
        try:
            yield
        finally:
            if memory:
                self.connection.execute("pragma query_only = off")
            elif self.connection.in_transaction:
                self.connection.execute("rollback")

    def close(self) -> None:
        self.connection.close()


def misshapen(sql: object, rows: object) -> DatabaseError | None:
    """What is wrong with the arguments of `executemany`, if it is they that are not of the right types."""
    if not isinstance(sql, str):
        return no_statement(sql)
    return None if isinstance(rows, Iterable) else no_rows(rows)


def close_cursors(connection: sqlite3.Connection) -> bool:
    """Close the cursors that users of a connection have kept; whether there were any.

    One that was not read to its end holds the connection at the moment that it reads, also after ROLLBACK: who uses it
    next would be shown the past, and could write nothing once others have. Finding them is slow: know that there are.
    """
    kept = [each for each in gc.get_referrers(connection) if isinstance(each, sqlite3.Cursor)]
    for cursor in kept:
        cursor.close()
    return bool(kept)


def control(connection: sqlite3.Connection, sql: str) -> None:
    """Begin or end a transaction or a savepoint, in spite of cursors that users have kept."""
    try:
        connection.execute(sql)
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or not close_cursors(connection):
            raise
        connection.execute(sql)


def statements(script: str) -> Iterator[str]:
    """The statements of a script, one by one (triggers and strings may hold semicolons)."""
    rest = ""
    for piece in script.split(";"):
        rest += piece + ";"
        if sqlite3.complete_statement(rest):
            if rest.strip(" \t\r\n;"):
                yield rest
            rest = ""
    if rest.strip(" \t\r\n;"):
        yield rest


def connect(
    path: str,
    *,
    readonly: bool = False,
    immutable: bool = False,
    synchronous: str = "FULL",
    timeout: float = 30.0,
    name: str = "",
    kind: type[Tracked] = Tracked,
) -> sqlite3.Connection:
    """A connection set up the way this library uses SQLite: WAL, explicit transactions, any thread.

    Args:
        kind: `Tracked` is used inside `at_work`; `Guarded` takes care of that itself, which takes time.
        immutable: Nobody writes the file, and its folder takes no file beside it: read it without any lock.
        name: What errors call it, if that is not the path.
    """
    uri = path != ":memory:"
    target = _uri(path, readonly, immutable) if uri else path
    with translated(name or path, lock_timeout=timeout), at_work:
        connection = opened(
            ":memory:" if path.startswith(MEMORY) else path,
            target,
            kind=kind,
            uri=uri,
            isolation_level=None,
            timeout=timeout,
            cached_statements=256,
        )
        try:
            if path.startswith(MEMORY):
                connection.execute(f"pragma query_only = {int(readonly)}")
            elif not readonly and path != ":memory:":
                connection.execute("pragma journal_mode = wal")
            connection.execute(f"pragma synchronous = {synchronous}")
            connection.execute("pragma foreign_keys = on")
        except BaseException:
            connection.close()
            raise
    return connection


MEMORY = "memdb:"
"""How the path begins of a database in memory that all connections of this process share; it goes with the last one."""


def _uri(path: str, readonly: bool, immutable: bool) -> str:
    if path.startswith(MEMORY):
        return f"file:/{quote(path.removeprefix(MEMORY))}?vfs=memdb"
    return address(path, "ro&immutable=1" if immutable else "ro" if readonly else "rwc")


def address(path: str, mode: str) -> str:
    """A file as SQLite's addresses name it, whatever bytes its path has, and where two slashes begin it, too."""
    return f"file:{'//' if path.startswith('/') else ''}{quote(os.fsencode(path))}?mode={mode}"


def attached(path: str) -> str:
    """How ATTACH names a file that is only read."""
    return _uri(path, True, False)


def open_database(
    path: str, *, synchronous: str = "FULL", readonly: bool = False, kind: type[Tracked] = Guarded
) -> SQLiteDatabase:
    """Open a SQLite file of one's own, such as a read model's (for ``kind`` see `connect`)."""
    return SQLiteDatabase(connect(path, readonly=readonly, synchronous=synchronous, kind=kind), path)
